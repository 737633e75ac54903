"""A trial: `inputs.py` reads its inputs, `build.py` makes its model, `fit.py` trains, `evaluation.py` evaluates it."""
