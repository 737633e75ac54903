"""The audio-visual LLM: roles, downsampling, projector, LoRA, losses, decoding."""
