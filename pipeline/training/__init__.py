"""A trial's inputs (`inputs.py`) and model (`build.py`), its training (`fit.py`), and its evaluation (`evaluation.py`)."""
