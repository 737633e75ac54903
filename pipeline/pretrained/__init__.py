"""Pretrained weights: fetched, converted to Hugging Face folders, identified by one digest."""
