"""What people call a trial: its task, weight and seed."""

from collections.abc import Iterable
from typing import Any

PAPER_NAMES = {"audio": "ASR", "video": "VSR", "audiovisual": "AVSR"}


def trial_name(configuration: dict[str, Any]) -> str:
    """What tells one trial from another at a glance, such as `AVSR 16, 5 weight 0.1 seed 0`.

    Args:
        configuration: as `pipeline.trials.identity.configuration` gives it.
    """
    weight, seed = configuration["decorrelation"]["weight"], configuration["train"]["seed"]
    return f"{task_of(configuration)} weight {weight:g} seed {seed}"


def task_of(configuration: dict[str, Any]) -> str:
    """The task of a trial; `configuration` as for `trial_name`."""
    model = configuration["model"]
    return task_name(model["modality"], model["rates"].values())


def task_name(modality: str, rates: Iterable[int]) -> str:
    """A modality as the paper calls it, with its rates, that of audio first: `ASR 16`, `VSR 5`, `AVSR 16, 5`."""
    return f"{PAPER_NAMES[modality]} {', '.join(map(str, rates))}"
