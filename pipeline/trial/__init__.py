"""One trial: what goes into it, and its training."""
