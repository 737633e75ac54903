"""The mouth region of a video of a face."""
