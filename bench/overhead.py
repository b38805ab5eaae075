"""What a server adds to the engine: the share of the time at work in which its model did not compute.

    python -m bench.overhead http://127.0.0.1:11344 [--requests 1,8] [--noise 30 --tokens 120]

Receiving, decoding, voice activity, scheduling and sending hide behind the model's work where it has some; what shows
here is what they make it wait. Medians over the rounds; `computing` comes from the server's own /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import re

import httpx

from bench.peers import arguments, audio_files, middle, open_peers, table
from bench.throughput import at_once

BUSY = re.compile(r"^voxtral_engine_busy_seconds\{.*\} (\S+)$", re.MULTILINE)


def busy_seconds(url: str) -> float:
    """Of all models that the server has loaded."""
    return sum(map(float, BUSY.findall(httpx.get(f"{url}/metrics").raise_for_status().text)))


async def measure(args: argparse.Namespace) -> str:
    (url,) = args.peers
    shares: dict[int, list[tuple[float, float]]] = {count: [] for count in args.requests}
    async with open_peers(args) as (peer,):
        for round_number in range(1, args.rounds + 1):
            for count in args.requests:
                before = busy_seconds(url)
                wall = await at_once(peer, audio_files(args, count, round_number))
                shares[count].append((wall, busy_seconds(url) - before))
    rows = [
        (count, middle([wall for wall, _ in times]), middle([busy for _, busy in times]),
         100 * middle([1 - busy / wall for wall, busy in times]))
        for count, times in shares.items()
    ]  # fmt: skip
    return table(("requests", "seconds", "computing", "not computing, %"), rows)


def main() -> None:
    print(asyncio.run(measure(arguments(__doc__).parse_args())))


if __name__ == "__main__":
    main()
