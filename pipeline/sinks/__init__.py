"""Attention sinks and massive activations on any Hugging Face decoder, given the roles."""
