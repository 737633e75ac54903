"""The reader of a corpus. A new kind is a file beside this, with a `Reader` or a `Format`, and a line in
`pipeline.config.kinds`."""

from pkgutil import resolve_name

from pipeline.config import Corpus
from pipeline.config.kinds import CORPORA
from pipeline.corpora.reader import Reader
from pipeline.corpora.recorded.reader import Recorded


def reader_of(corpus: Corpus) -> Reader:
    """The reader of a corpus; a format is read as a recorded corpus."""
    kind = resolve_name(CORPORA[corpus.kind])
    return Recorded(kind, corpus) if hasattr(kind, "pieces") else kind(corpus)
