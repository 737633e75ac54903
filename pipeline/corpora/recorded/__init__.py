"""Recorded corpora: clips are split, converted, mixed with noise and checked."""
