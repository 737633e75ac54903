"""The formats of recorded corpora: LRS3, LRS2, auto_avsr, GRID, a folder or a CSV of clips.

A new format is a file here with a subclass of `RecordedCorpus`, and a line in `pipeline.config.registry`.
"""
