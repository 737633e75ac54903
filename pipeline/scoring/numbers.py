"""Normalisation of numbers before scoring, for a word error rate in which `21` equals `twenty-one`.

Digits are spelt out. The other direction would be ambiguous: `two four` may be 2 4 or 24, while 24 is always `twenty
four`.
"""

import re

from pipeline.common.normalisation import folded, normalise

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
LIMIT = 10**12
"""Numbers from here on are spelt digit by digit, like a card number."""

_NUMBER_WORD = "|".join({*_SMALL, *_TENS, *_IRREGULAR_ORDINALS.values()})
_AND = re.compile(rf"\b(hundred|thousand|million|billion) and (?=(?:{_NUMBER_WORD})(?:th|ieth)?\b)")


def normalise_numbers(text: str) -> str:
    """As `normalise`, with numbers spelt out, so that `21` equals `twenty-one` and `3rd` equals `third`.

    Handles integers (with or without grouping commas), decimals (`3.5` is `three point five`) and ordinals. The `and`
    of `one hundred and five` is removed. Years are spelt like other numbers: `1999` is not `nineteen ninety nine`.
    """
    text = _GROUPED.sub("", folded(text))
    spelt = _NUMBER.sub(lambda match: f" {_spelt(*match.groups())} ", text)
    return _AND.sub(r"\1 ", normalise(spelt))


def _spelt(digits: str, decimals: str | None, suffix: str | None) -> str:
    # Digits of any script: `int` reads them all.
    has_leading_zero = len(digits) > 1 and int(digits[0]) == 0
    is_long = len(digits) >= len(str(LIMIT))
    words = _digit_by_digit(digits) if is_long or has_leading_zero else cardinal(int(digits))
    if decimals:
        return f"{words} point {_digit_by_digit(decimals)}"
    return _ordinal(words) if suffix else words


def _digit_by_digit(digits: str) -> str:
    return " ".join(_SMALL[int(digit)] for digit in digits)


def cardinal(number: int) -> str:
    """A whole number in words, without `and` and hyphens.

    Raises:
        ValueError: it is negative, or not below `LIMIT`.
    """
    if not 0 <= number < LIMIT:
        raise ValueError(f"{number} is not in [0, {LIMIT})")
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
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return " ".join([*before, _IRREGULAR_ORDINALS.get(last, regular)])
