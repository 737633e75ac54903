"""Identity, provenance, the trial folder, its spool and lease, and the MLflow writer."""
