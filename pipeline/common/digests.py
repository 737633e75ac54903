"""Digests of values. They seed random choices, so this code is part of every identity."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """Canonical JSON, the input of digests: sorted keys, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of `canonical(value)`, 64 hexadecimal digits."""
    return text_sha256(canonical(value))


def text_sha256(text: str) -> str:
    """SHA-256 of UTF-8 text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
