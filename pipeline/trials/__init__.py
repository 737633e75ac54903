"""The folder of a trial: identity, provenance, lease, metrics log, results."""
