"""One recorded run, made again: its code, its data, its stages, and what came out against what was recorded."""
