"""Frozen encoders behind one protocol, and the store of what they gave."""
