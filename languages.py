"""Languages by code and name, and the language of a text."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import pycountry
from py3langid.langid import MODEL_FILE, LanguageIdentifier

LEAST_PROBABILITY = 0.5  # below it a text is too short or too mixed to name its language
_one_at_a_time = threading.Lock()  # the identifier keeps what it counts in itself


def detect(text: str, among: tuple[str, ...]) -> str | None:
    """ISO 639-1 code of the language of `text`, one of `among`, or None where that cannot be told. Takes milliseconds,
    the first time most of a second."""
    if not text.strip():
        return None
    with _one_at_a_time:
        code, probability = _identifier(among).classify(text)
    return code if probability >= LEAST_PROBABILITY else None


@lru_cache(maxsize=8)
def _identifier(among: tuple[str, ...]) -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(among)
    return identifier


def code_of(name: str) -> str | None:
    """ISO 639-1 code from a code with or without a region (`de`, `de-DE`) or an English name (`german`)."""
    short = name.replace("_", "-").split("-")[0].strip().lower()
    # By code first: pycountry's own lookup takes `en` for a language of Vietnam that is called En.
    found: Any = pycountry.languages.get(alpha_2=short) or pycountry.languages.get(alpha_3=short)
    if found is None:
        try:
            found = pycountry.languages.lookup(short)
        except LookupError:
            return None
    return getattr(found, "alpha_2", None)


def name_of(code: str) -> str:
    """The English name, `Greek` for `el`."""
    return pycountry.languages.get(alpha_2=code).name.split(" (")[0]
