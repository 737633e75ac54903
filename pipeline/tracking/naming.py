"""What people call a trial: its task, weight and seed."""

from typing import Any


def trial_name(configuration: dict[str, Any]) -> str:
    """What tells one trial from another at a glance, such as `audiovisual a16 v5 weight 0.1 seed 0`.

    Args:
        configuration: as `pipeline.tracking.identity.configuration` gives it.
    """
    weight, seed = configuration["decorrelation"]["weight"], configuration["train"]["seed"]
    return f"{task_name(configuration)} weight {weight:g} seed {seed}"


def task_name(configuration: dict[str, Any]) -> str:
    """Modality and rates, such as `audiovisual a16 v5`; `configuration` as for `trial_name`."""
    model = configuration["model"]
    return " ".join([model["modality"], *(f"{stream[0]}{rate}" for stream, rate in model["rates"].items())])
