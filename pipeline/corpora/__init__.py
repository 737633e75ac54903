"""Corpora: how they are read and prepared, their manifest and their media."""
