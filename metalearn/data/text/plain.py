"""Texts as every kind of features sees them: checked, and in one form."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np


def check_texts(texts: Any) -> list[str]:
    """Texts as a list.

    Raises:
      TypeError: one text alone, no sequence, or something else than text among them.
      ValueError: there is none, or one holds no visible character.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, (Sequence, np.ndarray)):
        raise TypeError(
            f"texts is a {type(texts).__name__}; expected a list of texts, such as "
            "['where is my card?']."
        )
    if not len(texts):
        raise ValueError("texts is empty; expected one text or more.")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is a {type(text).__name__}; expected a str.")
        if is_empty(text):
            raise ValueError(
                f"text {number} is {text[:20]!r}; expected a visible character. Leave it "
                "out."
            )
    return found


def is_empty(text: str) -> bool:
    """Whether a text has no visible character: spaces, controls and marks of direction.

    Example:
      >>> is_empty("\\u200b "), is_empty("?")
      (True, False)
    """
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def folded(text: str) -> str:
    """The text without case, with one form of each character and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
