"""Splits that a corpus does not have: taken out of training, whole speakers or whole texts at a time."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.config import Corpus

Key = TypeVar("Key", bound=Hashable)


def hold_out(corpus: Corpus, split: str, keys: Sequence[Key]) -> set[Key]:
    """Choose whose utterances go to a split that is taken out of training.

    Keys come in an order that is drawn by `corpus.seed`, each by its own name, so that a corpus that grows keeps its
    splits, but for the last key.

    Args:
        corpus: its `held_out` says how many utterances are taken at least.
        split: `validation` or `test`.
        keys: of each utterance what must not be parted: its speaker, or its text.

    Raises:
        PipelineError: there are fewer than two keys, or more than half of the utterances would go.
    """
    wanted = getattr(corpus.held_out, split)
    counts = Counter(keys)
    taken: set[Key] = set()
    for key in sorted(counts, key=lambda key: rank(corpus.seed, split, key)):
        if sum(counts[one] for one in taken) >= wanted:
            break
        taken.add(key)
    if 2 * sum(counts[key] for key in taken) > len(keys):
        raise PipelineError(
            f"corpus.held_out.{split}",
            f"is {wanted}, and of the {len(keys):,} utterances of {len(counts):,} {corpus.held_out.by}s in "
            f"{corpus.root} at most half may be held out",
            "ask for fewer, or, where there are few speakers, set corpus.held_out.by=text",
        )
    return taken


def rank(*names: Hashable) -> str:
    """What a random order by name is sorted by."""
    return hashlib.sha256(canonical([str(name) for name in names]).encode()).hexdigest()
