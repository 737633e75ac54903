"""MLflow: the folders of trials shown as runs."""
