"""Word and character error rates, and numbers as words."""
