"""Whether words or memory drift in a live session that goes on for hours.

    python -m bench.endless http://127.0.0.1:11344 [--minutes 120] [--model voxtral-mini-4b-realtime]

The clips of the tests are sent over and over, as fast as the model hears them, each committed by hand. A row of the
table is what was heard since the row before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bench.live import PREFIX
from bench.peers import SAMPLE_RATE, table
from tests.speech import Clip, clips_of, word_errors

MARKS = (1, 2, 5, 10, 20, 30, 60, 90)  # minutes after which a row is told, and after all
KINDS = ("trained voice", "half a minute")
PAUSE_SECONDS = 0.5  # between clips
AHEAD = 3  # clips that are sent and not yet written
# A server that is busy hearing answers pings late.
CALM = {"ping_interval": None, "max_size": None}


async def say(live: ClientConnection, spoken: Clip) -> float:
    """Send a clip, and the pause after it. Returns its seconds."""
    samples = np.append(spoken.samples(), np.zeros(int(PAUSE_SECONDS * SAMPLE_RATE), np.float32))
    data = (samples * 32_767).astype("<i2").tobytes()
    await live.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}))
    await live.send(json.dumps({"type": "input_audio_buffer.commit"}))
    return len(samples) / SAMPLE_RATE


async def texts(live: ClientConnection) -> AsyncIterator[str]:
    """Of the clips, in their order."""
    async for message in live:
        event = json.loads(message)
        if event["type"] == f"{PREFIX}.completed":
            yield event["transcript"]
        elif event["type"] in ("error", f"{PREFIX}.failed"):
            raise RuntimeError(event["error"]["message"])
    raise RuntimeError("the server has closed the session")


async def begin(live: ClientConnection, model: str) -> None:
    heard = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": None}
    heard["transcription"] = {"model": model}
    update = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}}
    await live.send(json.dumps(update))


async def measure(args: argparse.Namespace) -> str:
    rows, clips, marks = [], clips_of(*KINDS), [mark for mark in MARKS if mark < args.minutes] + [args.minutes]
    address = args.server.replace("http", "ws", 1) + "/v1/realtime?intent=transcription"
    async with httpx.AsyncClient(base_url=args.server, timeout=60) as client, connect(address, **CALM) as live:
        await begin(live, args.model)
        heard, seconds, sent, wrong, words, started = texts(live), 0.0, 0, 0, 0, time.perf_counter()
        for _ in range(AHEAD):
            await say(live, clips[sent % len(clips)])
            sent += 1
        while marks:
            spoken = clips[(sent - AHEAD) % len(clips)]
            wrong += word_errors(spoken.words, await anext(heard))
            words += len(spoken.words.split())
            seconds += spoken.seconds + PAUSE_SECONDS
            await say(live, clips[sent % len(clips)])
            sent += 1
            if seconds >= 60 * marks[0]:
                memory = (await client.get("/health")).json()["memory_bytes"] / 1e6
                speed = seconds / (time.perf_counter() - started)
                rows.append((marks.pop(0), words, 100 * wrong / words, round(memory), speed))
                wrong = words = 0
    return table(("minutes", "words since", "of them wrong, %", "MB of the server", "times real time"), rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="http://HOST:PORT")
    parser.add_argument("--minutes", type=int, default=120, help="of speech")
    parser.add_argument("--model", default="voxtral-mini-4b-realtime", help="the name that the server knows it by")
    return parser


if __name__ == "__main__":
    print(asyncio.run(measure(arguments().parse_args())))
