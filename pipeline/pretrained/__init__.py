"""Pretrained weights: fetched, converted to Hugging Face folders, and known by one digest."""
