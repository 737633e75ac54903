"""Corpora: the manifest, media, the synthetic corpus and noise."""
