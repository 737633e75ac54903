"""The report of a sweep: a self-contained page."""
