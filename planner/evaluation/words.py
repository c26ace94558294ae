"""One name for an ingredient however it is written, for the scores.

In: names as catalogue and pantry write them. Out: keys that are equal for `Tomatoes` and `tomato`.
The verifier has rules of its own and does not import this.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_NO_WORD = re.compile(r"[\W_]+")
_APOSTROPHE = re.compile(r"['’`´]")


@lru_cache(maxsize=65536)
def ingredient_key(name: str) -> str:
    """The name's words without case, accents, plural and punctuation, joined by one space; may be empty."""
    letters = unicodedata.normalize("NFKD", _APOSTROPHE.sub("", name)).casefold()
    plain = "".join(c for c in letters if not unicodedata.combining(c))
    return " ".join(_singular(word) for word in _NO_WORD.split(plain) if word)


def _singular(word: str) -> str:
    """A stem that singular and plural share; not always a word (`olive` and `olives` give `olif`)."""
    for ending in ("s", "e", "s"):  # the second s: gases -> gase -> gas -> ga, as gas -> ga
        if len(word) > 2 and word.endswith(ending) and not word.endswith("ss"):
            word = word[:-1]
    if len(word) > 2 and word.endswith("i"):
        return word[:-1] + "y"
    if len(word) > 2 and word.endswith("v"):
        return word[:-1] + "f"
    return word
