"""Transcription of your own recordings with a trained trial."""
