"""A WebSocket to the server as the dialects' own scripts write one, and audio to send through it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.serving import Server
from tests.speech import clip

SPOKEN = clip("voice_en-us")


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32_767).astype("<i2").tobytes()


def pieces(samples: np.ndarray, seconds: float = 0.5, rate: int = 16_000) -> Iterator[str]:
    """base64 of `samples`, s16le."""
    step = round(seconds * rate)
    for start in range(0, len(samples), step):
        yield base64.b64encode(pcm(samples[start : start + step])).decode()


class Socket:
    """Says and hears events."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def say(self, kind: str, **parts: Any) -> None:
        self.connection.send(json.dumps({"type": kind, **parts}))

    def hear(self, timeout: float = 60) -> dict[str, Any]:
        return json.loads(self.connection.recv(timeout))

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Everything up to and with the first event of this type; any other error fails the test."""
        events = [self.hear()]
        while events[-1]["type"] != kind:
            assert events[-1]["type"] != "error", events[-1]
            events.append(self.hear())
        return events


@contextmanager
def socket(server: Server, path: str = "/v1/realtime?intent=transcription", **options: Any) -> Iterator[Socket]:
    with connect(server.url.replace("http", "ws") + path, max_size=None, **options) as connection:
        yield Socket(connection)
