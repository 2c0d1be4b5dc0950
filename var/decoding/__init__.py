"""Who reads the canvas, what is kept, and the one loop."""
