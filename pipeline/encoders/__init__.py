"""Frozen encoders behind one protocol, and cached features.

A new encoder is a file here with a class like `Whisper`, and a line in `pipeline.config.registry`.
"""
