"""Frozen encoders behind one protocol, and cached features."""
