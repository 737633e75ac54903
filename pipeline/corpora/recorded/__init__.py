"""Recorded corpora: clips cut, converted, mixed with noise and checked."""
