"""The search of a sweep: its space, the sampler, what was suggested, and which keys matter."""
