"""Languages by code and name, and the language of a text."""

from __future__ import annotations

import threading
from functools import cache, lru_cache
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


# Names of Whisper, which its clients send and read, where ISO has another one.
WHISPERS_NAMES = {
    "Greek": "el", "Haitian Creole": "ht", "Myanmar": "my", "Nynorsk": "nn", "Pashto": "ps", "Punjabi": "pa",
}  # fmt: skip
OTHER_NAMES = {
    "castilian": "es", "farsi": "fa", "flemish": "nl", "iw": "he", "jw": "jv", "letzeburgesch": "lb", "mandarin": "zh",
    "moldavian": "ro", "moldovan": "ro", "sinhalese": "si", "valencian": "ca",
}  # fmt: skip


@cache
def _codes() -> dict[str, str]:
    """ISO 639-1 codes by names in small letters, without what ISO says of a name in brackets."""
    known = [language for language in pycountry.languages if hasattr(language, "alpha_2")]
    named = {_plain_name(language): language.alpha_2 for language in known} | WHISPERS_NAMES
    return {name.lower(): code for name, code in named.items()} | OTHER_NAMES


def _plain_name(language: Any) -> str:
    return language.name.split(" (")[0]


def code_of(name: str) -> str | None:
    """ISO 639-1 code from a code with or without a region (`de`, `de-DE`) or an English name (`german`)."""
    short = name.replace("_", "-").split("-")[0].strip().lower()
    # By code first: pycountry's own lookup takes `en` for a language of Vietnam that is called En.
    found: Any = pycountry.languages.get(alpha_2=short) or pycountry.languages.get(alpha_3=short)
    if found is None:
        if code := _codes().get(short):
            return code
        try:
            found = pycountry.languages.lookup(short)
        except LookupError:
            return None
    return getattr(found, "alpha_2", None)


def name_of(code: str) -> str:
    """The English name, `Greek` for `el`."""
    by_code = {code: name for name, code in WHISPERS_NAMES.items()}
    return by_code.get(code) or _plain_name(pycountry.languages.get(alpha_2=code))
