"""The kinds of corpora. A new one is a file beside this, a line here, and its name in `pipeline.config`."""

from collections.abc import Callable
from functools import partial

from pipeline.config import Corpus
from pipeline.corpora.auto_avsr import AutoAVSR
from pipeline.corpora.folder import Folder
from pipeline.corpora.grid import Grid
from pipeline.corpora.lrs import LRS2, LRS3
from pipeline.corpora.reader import Reader
from pipeline.corpora.recorded import Recorded
from pipeline.corpora.spoken import Spoken

READERS: dict[str, Callable[[Corpus], Reader]] = {
    "synthetic": Spoken,
    "lrs3": partial(Recorded, LRS3),
    "lrs2": partial(Recorded, LRS2),
    "auto_avsr": partial(Recorded, AutoAVSR),
    "grid": partial(Recorded, Grid),
    "folder": partial(Recorded, Folder),
}


def reader_of(corpus: Corpus) -> Reader:
    """The reader of a corpus."""
    return READERS[corpus.kind](corpus)
