"""The folder of a trial: identity, provenance, lock, metrics log, results. One module for each file in it."""
