"""Options that several commands have, and what each may be."""

from __future__ import annotations

import math
from typing import Annotated

import httpx
import typer


def _address(server: str) -> str:
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise typer.BadParameter(f"'{server}' is no address such as http://127.0.0.1:11344.")
    return server


def _key(key: str | None) -> str | None:
    if key and not (key.isascii() and key.isprintable()):
        raise typer.BadParameter("a key holds letters, digits and signs of ASCII only.")
    return key


def _delay(milliseconds: int | None) -> int | None:
    if milliseconds not in (None, *range(80, 1201, 80), 2400):
        raise typer.BadParameter("it can be 80 to 1200 in steps of 80, or 2400.")
    return milliseconds


def _number(value: float | None) -> float | None:
    """`nan` is between all bounds."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("it must be a number.")
    return value


Server = Annotated[
    str, typer.Option(envvar="VOXTRAL_SERVER", callback=_address, help="Where the server is.", metavar="URL")
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="VOXTRAL_API_KEY", callback=_key, help="One of the server's API_KEYS.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, notes or warnings; errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Say what is sent and answered, on stderr.")]
Model = Annotated[str, typer.Option(help="Id or alias of a model that the server has; whisper-1 is its default one.")]
Language = Annotated[str | None, typer.Option("--language", "-l", help="What is spoken, as `en` or `English`.")]
Prompt = Annotated[str | None, typer.Option(help="Names, spellings and style to expect.")]
Keyword = Annotated[list[str] | None, typer.Option("--keyword", "-k", help="A word to expect. May be repeated.")]
Delay = Annotated[
    int | None,
    typer.Option(callback=_delay, metavar="MS", help="Milliseconds by which a realtime model follows, 80 to 2400."),
]
Interval = Annotated[
    float | None,
    typer.Option(callback=_number, min=0.08, max=5, help="Seconds that a realtime model hears at once."),
]
Alternatives = Annotated[
    float | None,
    typer.Option(
        callback=_number, min=0, max=1, metavar="CUTOFF",
        help="Show [this|other] where the other token, of probability p, is as good as this one, of q: 1 - p/q <= "
        "CUTOFF. 0.95 shows many, 0.1 few.",
    ),
]  # fmt: skip
