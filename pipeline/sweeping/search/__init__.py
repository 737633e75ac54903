"""The search of a sweep: its space, the searcher, what was suggested, and which keys matter."""
