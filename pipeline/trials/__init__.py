"""The folder of a trial: identity, provenance, lease, metrics log, results. One module for each file in it."""
