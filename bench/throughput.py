"""Requests at once against the same requests in turn, at any server that speaks OpenAI's API.

    python -m bench.throughput http://127.0.0.1:11344 [--model whisper-1] [--requests 16] [--rounds 5] FILE ...

The two ways take turns, so that a machine whose speed drifts is fair to both. Prints medians and their ratio. Clips are
the committed ones of 5 s unless files are given.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median

import httpx

CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips"


async def transcribe(client: httpx.AsyncClient, model: str, audio: bytes) -> float:
    """One request; the audio seconds that the server counted."""
    form = {"model": model, "response_format": "verbose_json", "temperature": "0"}
    response = await client.post("/v1/audio/transcriptions", files={"file": audio}, data=form)
    response.raise_for_status()
    return response.json()["duration"]


async def at_once(client: httpx.AsyncClient, model: str, files: list[bytes]) -> tuple[float, float]:
    """Wall seconds and audio seconds."""
    started = time.perf_counter()
    seconds = await asyncio.gather(*(transcribe(client, model, file) for file in files))
    return time.perf_counter() - started, sum(seconds)


async def in_turn(client: httpx.AsyncClient, model: str, files: list[bytes]) -> tuple[float, float]:
    started = time.perf_counter()
    seconds = [await transcribe(client, model, file) for file in files]
    return time.perf_counter() - started, sum(seconds)


async def measure(url: str, model: str, files: list[bytes], rounds: int) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
        await transcribe(client, model, files[0])  # whoever loads on the first request has loaded now
        walls: dict[str, list[float]] = {"at once": [], "in turn": []}
        for _ in range(rounds):
            for name, way in (("at once", at_once), ("in turn", in_turn)):
                wall, audio = await way(client, model, files)
                walls[name].append(wall)
    print(f"{len(files)} requests, {audio:.0f} s of audio, median of {rounds} rounds")
    for name, values in walls.items():
        print(f"{name}: {median(values):6.2f} s, {audio / median(values):7.1f}x real time")
    print(f"at once takes {median(walls['at once']) / median(walls['in turn']):.2f} of the time in turn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("files", type=Path, nargs="*", default=sorted(CLIPS.glob("voice_*.flac")))
    parser.add_argument("--model", default="whisper-1")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    files = [args.files[i % len(args.files)].read_bytes() for i in range(args.requests)]
    asyncio.run(measure(args.url, args.model, files, args.rounds))


if __name__ == "__main__":
    main()
