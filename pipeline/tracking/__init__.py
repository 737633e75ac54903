"""MLflow, written from the folders of trials by one writer (`writer.py`): a run per trial, a parent run per sweep.

A run shows what its folder has, and is completed, or made again, when that changes. What people add to it (a name, a
note, tags) stays: the names and notes that we gave are remembered in tags, `given_name` and `given_note`, so that any
other is known to be a person's.
"""
