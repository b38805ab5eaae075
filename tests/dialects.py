"""What the tests of the realtime dialects share: two models to ask for, audio, and what a dialect said."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np

from api.errors import ApiError
from api.realtime_dialect import Action, Feed, LiveModel, Send, Terms, Update
from transcript import Segment, TextToken, Transcript, Usage

MODELS = {"whisper-1": LiveModel("whisper-1", streams=False), "live": LiveModel("live", streams=True)}
TOKEN = TextToken(7, b" red", -0.5, ((b" red", -0.5), (b" read", -1.5)))
USAGE = Usage(text_tokens=3, audio_tokens=13, output_tokens=4, audio_ms=1000)


def find(name: str | None) -> LiveModel:
    if model := MODELS.get(name or "whisper-1"):
        return model
    raise ApiError(404, f"The model '{name}' is not on this machine.", param="model", code="model_not_found")


TERMS = Terms("sess_1", 1_752_624_000, 1_752_627_600, find)


def audio(seconds: float = 0.5, rate: int = 24_000, kind: str = "<i2") -> str:
    return base64.b64encode(np.zeros(round(seconds * rate), kind).tobytes()).decode()


def transcript(text: str = "red blue", start_ms: int = 0, language: str | None = "en") -> Transcript:
    segment = Segment(start_ms, start_ms + 1000, text, (TOKEN,), 0.1, 0.0, USAGE)
    return Transcript(text, language, (segment,), USAGE)


def looped(text: str = "red blue", start_ms: int = 0) -> Transcript:
    """Of which words may be missing."""
    heard = transcript(text, start_ms)
    return replace(heard, segments=(replace(heard.segments[0], lapses=("loop",)),))


def said(actions: list[Action]) -> list[dict[str, Any]]:
    return [action.event for action in actions if isinstance(action, Send)]


def undo(actions: list[Action]) -> None:
    """As where the session refuses an update."""
    for action in actions:
        if isinstance(action, Update):
            action.undo()


def fed_seconds(actions: list[Action]) -> float:
    return sum(len(action.samples) for action in actions if isinstance(action, Feed)) / 16_000


def kinds(actions: list[Action]) -> list[str]:
    """Events by their type, other actions by their name."""
    return [a.event["type"] if isinstance(a, Send) else type(a).__name__ for a in actions]
