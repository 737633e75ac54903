"""Names of the splits, held-out splits, and random choices that depend on names alone."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.config import Corpus

SPLITS = ("train", "validation", "test")
Key = TypeVar("Key", bound=Hashable)


def hold_out(corpus: Corpus, split: str, keys: Sequence[Key], unit: str, remedy: str = "set it lower") -> set[Key]:
    """Choose the speakers or texts that move from training to a held-out split (`validation` or `test`), with at least
    as many utterances as `corpus.held_out` sets.

    `keys` has per utterance the speaker or text that must stay in one split. They are ordered by `random_rank`, so a
    corpus that grows keeps its splits, except for the last key. PipelineError if more than half of the utterances would
    be held out, as with a single key; `unit` (`speaker` or `text`) and `remedy` are for its message.
    """
    wanted = getattr(corpus.held_out, split)
    counts = Counter(keys)
    taken: set[Key] = set()
    utterances = 0
    for key in sorted(counts, key=lambda key: random_rank(corpus.seed, split, key)):
        if utterances >= wanted:
            break
        taken.add(key)
        utterances += counts[key]
    if 2 * utterances > len(keys):
        raise PipelineError(
            f"corpus.held_out.{split}",
            f"is {wanted}, and of the {len(keys):,} utterances of {len(counts):,} {unit}s in "
            f"{corpus.root} at most half may be held out",
            remedy,
        )
    return taken


def random_rank(*names: Hashable) -> str:
    """Sort key that gives a reproducible random order."""
    return digest([str(name) for name in names])


def random_generator(*names: str | float) -> np.random.Generator:
    """Random generator seeded by these names alone, so that results do not depend on the order of work."""
    return np.random.default_rng(list(bytes.fromhex(digest(names))))
