"""Form and JSON fields to values, each with a 400 that names the field when it cannot be one.

Clients write the same field in many ways: `true` or `True`, an empty string or `null` for absent, `name` or `name[]`
for a list. Fields that nobody knows are ignored, as every compatible server does; fields that are known and would
change the answer are either obeyed or refused.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.datastructures import ImmutableMultiDict

import languages
from api.errors import invalid, unsupported

LONGEST = 200_000  # characters or items of a list: 1000 words to expect, each as long as one may be
LONGEST_LITERAL = 10_000  # characters in Python's own way of writing a list, which takes 100 times as long to read
ABSENT = ("", "null", "None", None)


def text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value in ABSENT:
        return None
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be text.")
    if len(value) > LONGEST:
        raise invalid(name, f"{name} is longer than {LONGEST} characters. Shorten it.")
    return value


def number(values: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = values.get(name)
    if value in ABSENT:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise invalid(name, f"{name} must be a number from {low:g} to {high:g}, not '{value}'.") from None
    if isinstance(value, bool) or not low <= result <= high:
        raise invalid(name, f"{name} must be a number from {low:g} to {high:g}, not '{value}'.")
    return result


def steady_temperature(temperature: float | None) -> float:
    """0, the likeliest token, for what is as good as 0: logits divided by it would leave float32."""
    return temperature if temperature and temperature >= 0.001 else 0.0


def integer(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value in ABSENT:
        return None
    try:
        return int(str(value))  # by way of text, so that 1.5 and true are none
    except ValueError:
        raise invalid(name, f"{name} must be a whole number, not '{value}'.") from None


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
    """A list of texts however it is spelled: `name` or `name[]` repeated, `name[0]`, a JSON array, Python's own way of
    writing a list (LiteLLM sends that), or commas."""
    keys = [key for key in dict.fromkeys(values) if key in (name, f"{name}[]") or _indexed(key, name)]
    given = [value for key in keys for value in every(values, key)]
    length = sum(len(value) for value in given if isinstance(value, str | list))
    if length > LONGEST:
        raise invalid(name, f"{name} is longer than {LONGEST} characters or items. Shorten it.")
    found = [item for value in given for item in _items(value, name, literal=length <= LONGEST_LITERAL)]
    return [item for item in found if item not in ABSENT]


def _indexed(key: str, name: str) -> bool:
    return key.startswith(f"{name}[") and key[len(name) + 1 : -1].isdigit()


def every(values: Mapping[str, Any], key: str) -> list[Any]:
    """Every value of a repeated form field."""
    return values.getlist(key) if isinstance(values, ImmutableMultiDict) else [values[key]]


def _items(value: Any, name: str, literal: bool) -> list[str | None]:
    items = _read_list(value.strip(), name, literal) if isinstance(value, str) else value
    if items in ABSENT:
        return []
    if not isinstance(items, list) or not all(isinstance(item, str | None) for item in items):
        raise invalid(name, f"{name} must be a list of texts.")
    return items


def _read_list(text: str, name: str, literal: bool) -> object:
    if text.startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
        if not literal:
            raise invalid(name, f"{name} is long and begins as a list. Write it as a JSON array.")
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(text)
    return [item.strip() for item in text.split(",")]


def nested(values: Mapping[str, Any], name: str) -> dict[str, Any] | str | None:
    """An object however it is spelled: `name[key]` fields, a JSON string, an object in JSON; or a plain text."""
    parts = {key[len(name) + 1 : -1]: values[key] for key in values if key.startswith(f"{name}[")}
    value = values.get(name)
    if parts or value in ABSENT:
        return parts or None
    if isinstance(value, str) and len(value) > LONGEST:
        raise invalid(name, f"{name} is longer than {LONGEST} characters. Shorten it.")
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise invalid(name, f"{name} is not valid JSON.") from None
    if not isinstance(value, str | dict):
        raise invalid(name, f"{name} must be a text or an object, not '{value}'.")
    return value


def refuse(values: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    for name in names:
        if values.get(name) not in (*ABSENT, [], "[]") or any(key.startswith(f"{name}[") for key in values):
            raise unsupported(name, f"{name} {why}")


def language(values: Mapping[str, Any]) -> str | None:
    """ISO 639-1 from a code (`de`, `de-DE`) or an English name (`german`), in `language` or alone in `languages`.

    None for `auto` and absent.
    """
    given = text(values, "language") or next(iter(listed(values, "languages")), None)
    if given is None or given.lower() == "auto":
        return None
    code = languages.code_of(given)
    if code is None:
        raise invalid(
            "language", f"language '{given}' is not known. Send an ISO 639-1 code such as 'en', or leave it out."
        )
    return code
