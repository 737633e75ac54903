"""Text normalisation into words, in any script: one rule for the texts of corpora and for scoring."""

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼ`´′׳", "'"))
_JOINERS = re.compile("[\u200c\u200d]+")
ZERO_WIDTH_NON_JOINER = "\u200c"
VIRAMA = 9
"""The combining class of the sign that removes the vowel of an Indic letter."""


class _Characters(dict):
    """A table for `str.translate`: characters of words stay, invisible ones are dropped, others become a space."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LMN" and not _is_variation(code):
            self[code] = character
        else:
            self[code] = None if category == "Cf" or _is_variation(code) else " "
        return self[code]


def _is_variation(code: int) -> bool:
    """Whether a mark only selects a variant shape of the character before it."""
    return code in (0x034F, 0x180B, 0x180C, 0x180D, 0x180F) or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF


_CHARACTERS = _Characters({ord(character): character for character in "'\u200c\u200d"})


def folded(text: str) -> str:
    """Compatible characters unified (NFKC), one apostrophe, lower case; nothing is removed."""
    # Apostrophes first: NFKC turns a spacing accent used as an apostrophe into a space and a mark.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES).lower()
    # NFKC decomposes the vowel am of Thai and Lao; the dot of a Turkish capital I is that of the small one.
    for decomposed, composed in (("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"), ("i\u0307", "i")):
        text = text.replace(decomposed, composed)
    return unicodedata.normalize("NFC", text)


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces.

    A word consists of letters, digits, and the marks on them (vowel signs, tones, accents). Punctuation and symbols
    become a space (`twenty-one` is two words); an apostrophe is kept inside a word (`don't`) and removed at its edges,
    where it may be a quotation mark. Invisible characters, such as a soft hyphen, a zero-width space or a direction
    mark, do not separate words and are dropped, except the two joiners where they are part of the spelling (Unicode
    Standard Annex 31, section 2.3.1): after a virama, and the non-joiner between Arabic letters.
    """
    words = _JOINERS.sub(_spelt_joiner, folded(text).translate(_CHARACTERS)).replace("''", " ").split()
    return " ".join(bare for word in words if (bare := _bare(word)))


def _spelt_joiner(match: re.Match) -> str:
    text, joiner = match.string, match.group()[0]
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    if before and unicodedata.combining(before) == VIRAMA:
        return joiner
    arabic = _is_arabic(before) and after and unicodedata.bidirectional(after) == "AL"
    return joiner if joiner == ZERO_WIDTH_NON_JOINER and arabic else ""


def _is_arabic(character: str) -> bool:
    """Whether it is an Arabic letter or a mark."""
    return bool(character) and unicodedata.bidirectional(character) in ("AL", "NSM")


def _bare(word: str) -> str:
    """A word without apostrophes at its edges, and without marks before its first letter."""
    start = next((number for number, character in enumerate(word) if character.isalnum()), len(word))
    return word[start:].rstrip("'")
