"""Train audio-visual LLMs for speech recognition, sweep them, and measure their attention sinks."""
