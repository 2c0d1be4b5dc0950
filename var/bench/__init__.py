"""Speed and memory of combinations of pieces, side by side in one process."""
