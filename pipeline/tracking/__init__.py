"""MLflow, which shows what the folders of trials hold."""
