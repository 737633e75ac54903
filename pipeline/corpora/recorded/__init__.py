"""Recorded corpora: clips are cut, converted, mixed with noise and checked."""
