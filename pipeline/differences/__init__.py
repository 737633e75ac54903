"""Differences between two trials: parameters, code, data, versions, metrics, hypotheses."""
