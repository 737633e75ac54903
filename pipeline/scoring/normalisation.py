"""Text as it is scored: what counts as the same word.

Two forms. `normalise`, the rule of the corpus too, is what the raw word error rate compares, as the field does it:
lower case, no punctuation. Models that write digits lose there against references that spell them, so
`normalise_numbers` spells every number first. Spelling digits, rather than reading words, is unambiguous: `two four`
may be 2 4 or 24, while 24 is `twenty four`.
"""

import re

from pipeline.common.words import folded, normalise

_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(\d+)(?:\.(\d+)|(st|nd|rd|th)\b)?")

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GROUPS = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))
_IRREGULAR_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
LARGEST = 10**12
"""Numbers from here on are read digit by digit, as one reads a card number."""

_NUMBER_WORD = "|".join({*_SMALL, *_TENS, *_IRREGULAR_ORDINALS.values()})
_AND = re.compile(rf"\b(hundred|thousand|million|billion) and (?=(?:{_NUMBER_WORD})(?:th|ieth)?\b)")


def normalise_numbers(text: str) -> str:
    """As `normalise`, with numbers spelt out: `21` and `twenty-one`, `3rd` and `third` become equal.

    Integers (with or without grouping commas), decimals (`3.5` is `three point five`) and ordinals. The `and` of
    `one hundred and five` is dropped. A year is read as any number, so that `1999` is not
    `nineteen ninety nine`.
    """
    text = _GROUPED.sub("", folded(text))
    spelt = _NUMBER.sub(lambda match: f" {_spelt(*match.groups())} ", text)
    return _AND.sub(r"\1 ", normalise(spelt))


def _spelt(digits: str, decimals: str | None, suffix: str | None) -> str:
    by_digits = len(digits) >= len(str(LARGEST)) or _has_leading_zero(digits)
    words = _one_by_one(digits) if by_digits else cardinal(int(digits))
    if decimals:
        return f"{words} point {_one_by_one(decimals)}"
    return _ordinal(words) if suffix else words


def _has_leading_zero(digits: str) -> bool:
    return len(digits) > 1 and int(digits[0]) == 0


def _one_by_one(digits: str) -> str:
    return " ".join(_SMALL[int(digit)] for digit in digits)


def cardinal(number: int) -> str:
    """A whole number in words, without `and` and hyphens.

    Raises:
        ValueError: it is below 0, or `LARGEST` or more.
    """
    if not 0 <= number < LARGEST:
        raise ValueError(f"{number} is not in [0, {LARGEST})")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        rest, words = number % 10, [_TENS[number // 10 - 2]]
    elif number < 1000:
        rest, words = number % 100, [_SMALL[number // 100], "hundred"]
    else:
        size, name = next(group for group in _GROUPS if number >= group[0])
        rest, words = number % size, [cardinal(number // size), name]
    return " ".join([*words, cardinal(rest)] if rest else words)


def _ordinal(words: str) -> str:
    *before, last = words.split()
    if last not in _IRREGULAR_ORDINALS:
        last = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    else:
        last = _IRREGULAR_ORDINALS[last]
    return " ".join([*before, last])
