"""Text normalisation, and word and character error rates."""
