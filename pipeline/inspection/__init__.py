"""The sink instrument on a trial or on any language model: in words, in figures, and by intervention."""
