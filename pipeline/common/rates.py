"""The rates of all media of a corpus, to which recordings are converted."""

SAMPLE_RATE = 16_000
"""Samples per second of audio."""
FRAME_RATE = 25
"""Frames per second of video."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
