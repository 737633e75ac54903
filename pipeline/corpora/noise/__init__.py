"""Noise from a folder, or babble, mixed with speech at a given signal-to-noise ratio."""
