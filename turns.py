"""When somebody begins to speak and when they have done: turns of a conversation, found while it goes on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Eagerness = Literal["low", "medium", "high", "auto"]


@dataclass(frozen=True)
class TurnDetection:
    """What ends a turn. Names and defaults are OpenAI's; those of the last three fields are Mistral's.

    `server_vad`: `silence_duration_ms` without speech. `semantic_vad`: a pause whose length goes by `eagerness`, and
    which is shorter where the text so far ends a sentence; its `threshold` and `prefix_padding_ms` count as well.
    """

    kind: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = 0.5  # probability of speech from which on a frame is speech, 0 to 1
    prefix_padding_ms: float = 300  # kept before speech
    silence_duration_ms: float = 500
    eagerness: Eagerness = "auto"  # auto is medium
    end_threshold: float | None = None  # below which a frame is silence; None: 0.15 below `threshold`
    eager_end_threshold: float | None = None  # below which it may be; None: as `end_threshold`
    end_timeout_ms: float | None = None  # of what may be silence, after which a turn ends too; None: nothing does
