"""One's own recordings through a trained adapter: a file to what the encoders take, to text, and to its sinks."""
