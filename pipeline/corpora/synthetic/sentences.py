"""Sentences to be spoken: the GRID grammar, or the lines of a text file.

GRID (Cooke et al., "An audio-visual corpus for speech perception and automatic speech recognition", JASA 2006):
command, colour, preposition, letter (no w, the only name of more than one syllable), digit, adverb. All letters and
digits are equally likely, so no word can be guessed from its neighbours.
"""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.normalisation import normalise
from pipeline.corpora.text_files import damage_of, read_lines

GRID = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("abcdefghijklmnopqrstuvxyz"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)
LETTER = 3
"""Slot of the letter in `GRID`."""
READABLE = "set corpus.synthetic.sentences to a text file with a sentence per line, or to null"
"""The remedy for a file that cannot be read."""
LETTER_A = "[['eI]]"
"""The name of the letter a in espeak's phoneme notation; as plain text, `a` is spoken as the article."""


@dataclass(frozen=True)
class Sentence:
    """A sentence."""

    text: str
    """The transcript: lower case, words separated by single spaces."""
    spoken: str
    """Input of espeak: the text, with phonemes for letters that espeak would read as words."""


@functools.cache
def grid_sentences() -> list[Sentence]:
    """All 64,000 sentences of the GRID grammar, in the order of its slots."""
    sentences = []
    for words in itertools.product(*GRID):
        spoken = [LETTER_A if slot == LETTER and word == "a" else word for slot, word in enumerate(words)]
        sentences.append(Sentence(" ".join(words), " ".join(spoken)))
    return sentences


def file_sentences(path: str | Path) -> list[Sentence]:
    """The normalised lines of a text file; lines without words are ignored. PipelineError if the file cannot be read, a
    line is damaged, or there are no sentences."""
    try:
        lines = read_lines(Path(path))
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", READABLE) from None
    for number, line in enumerate(lines, 1):
        if (damage := damage_of(line)) is not None:
            raise PipelineError(f"{path}:{number}", *damage)
    texts = dict.fromkeys(text for line in lines if (text := normalise(line)))
    if not texts:
        raise PipelineError(path, "has no sentences", "write one sentence per line")
    return [Sentence(text, text) for text in texts]


def sentences_of(path: str | None) -> list[Sentence]:
    """The sentences of a text file, or those of the GRID grammar if `path` is null."""
    return grid_sentences() if path is None else file_sentences(path)


def draw(sentences: list[Sentence], count: int, generator: np.random.Generator) -> list[Sentence]:
    """Draw `count` sentences; none is repeated before all were drawn."""
    rounds = -(-count // len(sentences))
    order = np.concatenate([generator.permutation(len(sentences)) for _ in range(rounds)])
    return [sentences[index] for index in order[:count]]
