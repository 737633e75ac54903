"""The training of one trial, and what its evaluation runs."""
