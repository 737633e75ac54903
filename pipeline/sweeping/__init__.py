"""A sweep: its specification, the trials that follow from it, what they cost, and what is seen while they run."""
