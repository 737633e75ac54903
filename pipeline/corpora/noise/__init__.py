"""Noise at a given signal-to-noise ratio: of a folder, or babble."""
