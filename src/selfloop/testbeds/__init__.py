"""Small, real, self-contained tasks on which a whole loop runs in minutes on a laptop."""
