"""The formats of recorded corpora: LRS3, LRS2, auto_avsr, GRID, a folder or a CSV of clips."""
