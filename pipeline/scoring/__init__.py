"""Text normalisation, error counts, and bootstrap intervals."""
