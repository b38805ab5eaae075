"""Form and JSON fields to values, each with a 400 that names the field when it cannot be one.

Clients write the same field in many ways: `true` or `True`, an empty string or `null` for absent, `name` or `name[]`
for a list. Fields that nobody knows are ignored, as every compatible server does; fields that are known and would
change the answer are either obeyed or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pycountry

from api.errors import invalid, unsupported

ABSENT = ("", "null", "None", None)


def text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value in ABSENT:
        return None
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be text.")
    return value


def number(values: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = values.get(name)
    if value in ABSENT:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise invalid(name, f"{name} must be a number from {low:g} to {high:g}, not '{value}'.") from None
    if isinstance(value, bool) or not low <= result <= high:
        raise invalid(name, f"{name} must be a number from {low:g} to {high:g}, not '{value}'.")
    return result


def boolean(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    known = {"true": True, "1": True, "false": False, "0": False, "": False, "null": False, "none": False}
    result = known.get(str(value).lower())
    if result is None:
        raise invalid(name, f"{name} must be true or false, not '{value}'.")
    return result


def choice(values: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = text(values, name) or default
    if value not in allowed:
        raise invalid(name, f"{name} must be one of {', '.join(allowed)}, not '{value}'.")
    return value


def listed(values: Mapping[str, Any], name: str) -> list[str]:
    """A list however it is spelled, as far as deciding whether it was given at all needs it."""
    found = [values.get(key) for key in (name, f"{name}[]", f"{name}[0]")]
    return [str(value) for value in found if value not in ABSENT and value != []]


def refuse(values: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    for name in names:
        if listed(values, name):
            raise unsupported(name, f"{name} {why}")


def language(values: Mapping[str, Any]) -> str | None:
    """ISO 639-1 from a code (`de`, `de-DE`) or an English name (`german`); None for `auto` and absent."""
    given = text(values, "language")
    if given is None or given.lower() == "auto":
        return None
    found = _language(given.replace("_", "-").split("-")[0].strip().lower())
    if found is None or not hasattr(found, "alpha_2"):
        raise invalid(
            "language", f"language '{given}' is not known. Send an ISO 639-1 code such as 'en', or leave it out."
        )
    return found.alpha_2


def _language(name: str) -> Any | None:
    """By code first: pycountry's own lookup takes `en` for a language of Vietnam that is called En."""
    found = pycountry.languages.get(alpha_2=name) or pycountry.languages.get(alpha_3=name)
    if found is None:
        try:
            found = pycountry.languages.lookup(name)
        except LookupError:
            return None
    return found
