"""Whether words or memory drift in a live session that goes on for hours.

    python -m bench.endless http://127.0.0.1:11344 [--minutes 120] [--model voxtral-mini-4b-realtime]

The clips of the tests are sent over and over, as fast as the model hears them, each committed by hand, or with
`--uncommitted` none before the end, so that all is one utterance. A row of the table is what was heard since the row
before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bench.live import PREFIX
from bench.peers import SAMPLE_RATE, table
from tests.speech import Clip, clips_of, word_errors

MARKS = (1, 2, 5, 10, 20, 30, 60, 90)  # minutes after which a row is told, and after all
KINDS = ("trained voice", "half a minute")
PAUSE_SECONDS = 0.5  # between clips
AHEAD = 3  # clips that are sent and not yet written, where each is committed
POLL_SECONDS = 0.1
LEFT_SECONDS = 1.2  # that may stay with a server which was behind, until it is sent more
# A server that is busy hearing answers pings late.
CALM = {"ping_interval": None, "max_size": None}


async def say(live: ClientConnection, spoken: Clip) -> float:
    """Send a clip, and the pause after it. Returns its seconds."""
    samples = np.append(spoken.samples(), np.zeros(int(PAUSE_SECONDS * SAMPLE_RATE), np.float32))
    data = (samples * 32_767).astype("<i2").tobytes()
    await live.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}))
    return len(samples) / SAMPLE_RATE


async def commit(live: ClientConnection) -> None:
    await live.send(json.dumps({"type": "input_audio_buffer.commit"}))


async def told(live: ClientConnection, kind: str) -> AsyncIterator[dict[str, Any]]:
    """Events whose type ends so."""
    async for message in live:
        event = json.loads(message)
        if event["type"] in (f"{PREFIX}.{kind}", f"{PREFIX}.completed"):
            yield event
        elif event["type"] in ("error", f"{PREFIX}.failed"):
            raise RuntimeError(event["error"]["message"])
    raise RuntimeError("the server has closed the session")


async def begin(live: ClientConnection, model: str) -> None:
    heard = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": None}
    heard["transcription"] = {"model": model}
    update = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}}
    await live.send(json.dumps(update))


class Rows:
    """One at each mark."""

    def __init__(self, client: httpx.AsyncClient, minutes: int) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.seconds = 0.0  # heard
        self.marks = [mark for mark in MARKS if mark < minutes] + [minutes]
        self._client, self._started = client, time.perf_counter()

    @property
    def due(self) -> bool:
        return self.seconds >= 60 * self.marks[0]

    async def add(self, words: int, wrong: int) -> None:
        memory = (await self._client.get("/health")).json()["memory_bytes"] / 1e6
        speed = self.seconds / (time.perf_counter() - self._started)
        self.rows.append((self.marks.pop(0), words, 100 * wrong / words, round(memory), speed))

    async def fed(self) -> float:
        """Seconds that the server has fed to live sessions and that do not wait for the model."""
        lines = (await self._client.get("/metrics")).text.splitlines()
        figures = dict(line.rsplit(" ", 1) for line in lines if line.startswith("voxtral_live_"))
        return float(figures["voxtral_live_audio_seconds_total"]) - float(figures["voxtral_live_backlog_seconds"])


async def by_clips(live: ClientConnection, rows: Rows, clips: list[Clip]) -> None:
    """Each is an utterance."""
    heard, to_say, said, wrong, words = told(live, "completed"), cycle(clips), deque[Clip](), 0, 0
    while rows.marks:
        while len(said) < AHEAD:
            said.append(next(to_say))
            await say(live, said[-1])
            await commit(live)
        spoken = said.popleft()
        wrong += word_errors(spoken.words, (await anext(heard))["transcript"])
        words += len(spoken.words.split())
        rows.seconds += spoken.seconds + PAUSE_SECONDS
        if rows.due:
            await rows.add(words, wrong)
            wrong = words = 0


async def in_one(live: ClientConnection, rows: Rows, clips: list[Clip]) -> None:
    """All are one utterance. What was written late at the end of a row counts as wrong."""
    written: list[str] = []
    words: list[str] = []
    before = await rows.fed()
    reading = asyncio.create_task(read(live, written))
    for spoken in cycle(clips):
        rows.seconds += await say(live, spoken)
        words += spoken.words.split()
        heard = before + rows.seconds - LEFT_SECONDS
        while await rows.fed() < heard and not reading.done():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(POLL_SECONDS)
        if rows.due:
            text = "".join(written)
            written.clear()
            await rows.add(len(words), word_errors(" ".join(words), text))
            words.clear()
        if not rows.marks or reading.done():
            break
    if not rows.marks:
        await commit(live)
    await reading


async def read(live: ClientConnection, written: list[str]) -> None:
    """Deltas go to `written`, until the whole text comes, which must be theirs."""
    whole = ""
    async for event in told(live, "delta"):
        if "delta" not in event:
            break
        written.append(event["delta"])
        whole += event["delta"]
    if event["transcript"] != whole:
        raise RuntimeError("the whole text is not that of its deltas")


async def measure(args: argparse.Namespace) -> str:
    address = args.server.replace("http", "ws", 1) + "/v1/realtime?intent=transcription"
    async with httpx.AsyncClient(base_url=args.server, timeout=60) as client, connect(address, **CALM) as live:
        await begin(live, args.model)
        rows = Rows(client, args.minutes)
        await (in_one if args.uncommitted else by_clips)(live, rows, clips_of(*KINDS))
    return table(("minutes", "words since", "of them wrong, %", "MB of the server", "times real time"), rows.rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="http://HOST:PORT")
    parser.add_argument("--minutes", type=int, default=120, help="of speech")
    parser.add_argument("--uncommitted", action="store_true", help="commit nothing before the end")
    parser.add_argument("--model", default="voxtral-mini-4b-realtime", help="the name that the server knows it by")
    return parser


if __name__ == "__main__":
    print(asyncio.run(measure(arguments().parse_args())))
