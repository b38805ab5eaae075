"""How far text lags behind those who speak, for several numbers of live sessions at once.

    python -m bench.live http://127.0.0.1:11344 [--sessions 1,20] [--seconds 20] [--model NAME]

Clips are sent as fast as they are spoken, over and over, each session beginning a little later than the one before it.
The lag is from when a turn's last sample was sent, the silence included that ends it, to when its whole text has come.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time

import numpy as np
import soundfile as sf
from websockets.asyncio.client import ClientConnection, connect

from bench.peers import CLIPS, SAMPLE_RATE, middle, numbers, table

PIECE_SECONDS = 0.1
PATIENCE_SECONDS = 60.0  # for the last text
PREFIX = "conversation.item.input_audio_transcription"


def speech(number: int, seconds: float) -> bytes:
    """s16le at 16 kHz: other clips for each session, and silence at the end, so that the last turn ends."""
    files = sorted(CLIPS.glob("voice_*.flac"))
    clips = [sf.read(files[(number + i) % len(files)], dtype="int16")[0] for i in range(len(files))]
    spoken = np.resize(np.concatenate(clips), int(seconds * SAMPLE_RATE))
    return np.concatenate([spoken, np.zeros(SAMPLE_RATE, np.int16)]).astype("<i2").tobytes()


async def speak(live: ClientConnection, data: bytes) -> None:
    """In real time: each piece when its last sample would have been spoken."""
    size, started = int(PIECE_SECONDS * SAMPLE_RATE) * 2, time.perf_counter()
    for start in range(0, len(data), size):
        due = started + min(start + size, len(data)) / 2 / SAMPLE_RATE
        await asyncio.sleep(due - time.perf_counter())
        audio = base64.b64encode(data[start : start + size]).decode()
        await live.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))


async def lags(live: ClientConnection, started: float) -> list[float]:
    """Of each turn, until what was committed by hand is done, which no turn ended."""
    ended: dict[str, float] = {}  # on the clock of the audio, seconds
    found = []
    async for message in live:
        event = json.loads(message)
        if event["type"] == "input_audio_buffer.speech_stopped":
            ended[event["item_id"]] = event["audio_end_ms"] / 1000
        elif event["type"] == f"{PREFIX}.completed":
            if event["item_id"] not in ended:
                return found
            found.append(time.perf_counter() - started - ended[event["item_id"]])
        elif event["type"] in ("error", f"{PREFIX}.failed"):
            raise RuntimeError(event["error"]["message"])
    raise RuntimeError("the server has closed the session")


async def session(args: argparse.Namespace, number: int, count: int) -> list[float]:
    heard = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "transcription": {"model": args.model}}
    update = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}}
    await asyncio.sleep(number / count)
    async with connect(args.server.replace("http", "ws", 1) + "/v1/realtime?intent=transcription") as live:
        await live.send(json.dumps(update))
        hearing = asyncio.create_task(lags(live, time.perf_counter()))
        await speak(live, speech(number, args.seconds))
        await live.send(json.dumps({"type": "input_audio_buffer.commit"}))
        return await asyncio.wait_for(hearing, PATIENCE_SECONDS)


async def measure(args: argparse.Namespace) -> str:
    rows = []
    for count in args.sessions:
        found = await asyncio.gather(*(session(args, number, count) for number in range(count)))
        waits = sorted(lag for each in found for lag in each)
        rows.append((count, len(waits), middle(waits), waits[int(0.95 * (len(waits) - 1))], waits[-1]))
    return table(("sessions", "turns", "lag, s", "of 95 %", "slowest"), rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="http://HOST:PORT")
    parser.add_argument("--sessions", type=numbers, default=(1, 20), help="at once; several with commas between")
    parser.add_argument("--seconds", type=float, default=20, help="of speech in each")
    parser.add_argument("--model", default="whisper-1", help="the name that the server knows the model by")
    return parser


if __name__ == "__main__":
    print(asyncio.run(measure(arguments().parse_args())))
