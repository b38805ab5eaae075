"""Memory, first text and speed of this server as recordings grow longer.

    python -m bench.memory [--minutes 1,10,60,180] [--spoken 60] [-- ARGUMENTS OF main.py, --demo unless given]

Starts a server of its own for each length, so that none profits from what another left. The recording is the committed
clips over and over, with silence for what is left of a minute after `--spoken` seconds. Memory is the largest resident
set of the server's process while it worked, beside what it held before.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile as sf

from bench.peers import CLIPS, Heard, ServerPeer, numbers, table

ROOT = Path(__file__).resolve().parent.parent
LISTENS = re.compile(r"listens on (http://\S+)")
POLL_SECONDS = 0.05


@contextmanager
def server(options: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a server that has loaded its model, and hears a chunk again that it has heard before."""
    command = [sys.executable, "main.py", "--port", "0", *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"CHUNK_STORE_MB": "0"}, text=True, **streams) as process:
        try:
            found = LISTENS.search(process.stdout.readline())
            if not found:
                raise RuntimeError("the server did not start")
            with httpx.Client(base_url=found[1], timeout=60) as client:
                while not client.get("/health").json()["model_loaded"]:
                    time.sleep(POLL_SECONDS)
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()


def recording(minutes: int, spoken: int) -> bytes:
    """FLAC, built a minute at a time, of which so many seconds are speech."""
    clips = [sf.read(file, dtype="int16") for file in sorted(CLIPS.glob("voice_*.flac"))]
    minute = np.resize(np.concatenate([samples for samples, _ in clips]), 60 * clips[0][1])
    minute[spoken * clips[0][1] :] = 0
    file = io.BytesIO()
    with sf.SoundFile(file, "w", clips[0][1], 1, format="FLAC", subtype="PCM_16") as output:
        for _ in range(minutes):
            output.write(minute)
    return file.getvalue()


async def largest(process: psutil.Process, work: asyncio.Task[Heard]) -> int:
    """Bytes resident at most until `work` is done."""
    most = 0
    while not work.done():
        most = max(most, process.memory_info().rss)
        await asyncio.sleep(POLL_SECONDS)
    return most


async def grow(url: str, process: psutil.Process, minutes: int, spoken: int) -> tuple[object, ...]:
    """A row of the table."""
    peer = ServerPeer(url, "whisper-1", None)
    await peer.hear(recording(1, spoken))  # what any work needs is there now
    before = process.memory_info().rss
    work = asyncio.create_task(peer.hear(recording(minutes, spoken)))
    most = await largest(process, work)
    heard = await work
    await peer.close()
    return minutes, before / 1e6, (most - before) / 1e6, heard.first_text, heard.whole, minutes * 60 / heard.whole


def measure(args: argparse.Namespace) -> str:
    rows = []
    for minutes in args.minutes:
        with server(args.options or ["--demo"]) as (url, process):
            rows.append(asyncio.run(grow(url, process, minutes, args.spoken)))
    heads = ("minutes", "MB before", "MB more", "first text, s", "end, s", "times real time")
    return table(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=numbers, default=(1, 10, 60))
    parser.add_argument("--spoken", type=int, default=60, help="seconds of each minute in which somebody speaks")
    parser.add_argument("options", nargs="*", help="arguments of main.py, after --")
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
