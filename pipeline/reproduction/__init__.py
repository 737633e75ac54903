"""Reproduction of a recorded trial: its code, data and stages, and a comparison of the results."""
