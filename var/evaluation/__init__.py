"""How good images are: reports of figures, and what they are held against."""
