"""Audio and video files: read as a player plays them, whole or not at all."""
