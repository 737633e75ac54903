"""The model card of an exported trial, and the code in it that loads the trial without this project."""
