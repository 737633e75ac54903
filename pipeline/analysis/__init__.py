"""The sink instrument on a trial or on any causal language model: in words, in figures, and by intervention."""
