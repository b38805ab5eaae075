"""How much audio peers transcribe in a second, for several numbers of requests at once.

    python -m bench.throughput http://127.0.0.1:11344 [transformers:FOLDER | http://OTHER:PORT ...] [--requests 1,4,16]
        [--plot FILE.svg]

Peers take turns on the same files, so that a machine whose speed drifts is fair to all. Medians over the rounds; the
ratio is to the first peer with as many requests.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from bench.peers import Peer, arguments, audio_files, middle, open_peers, seconds_of, table
from bench.plots import Curves, draw


async def at_once(peer: Peer, files: list[bytes]) -> float:
    """Wall seconds."""
    started = time.perf_counter()
    await asyncio.gather(*(peer.hear(file) for file in files))
    return time.perf_counter() - started


async def measure(args: argparse.Namespace) -> str:
    walls: dict[tuple[int, str], list[float]] = {}
    audio = {}
    async with open_peers(args) as peers:
        for round_number in range(1, args.rounds + 1):
            for count in args.requests:
                files = audio_files(args, count, round_number)
                audio[count] = seconds_of(files)
                for peer in peers:
                    walls.setdefault((count, peer.name), []).append(await at_once(peer, files))
    first = {count: middle(walls[count, peers[0].name]) for count in args.requests}
    rows = [
        (count, name, middle(values), audio[count] / middle(values), first[count] / middle(values))
        for (count, name), values in walls.items()
    ]
    if args.plot:
        draw(args.plot, curves(rows), "requests at once", "times real time")
    return table(("requests", "peer", "seconds", "times real time", "ratio"), rows)


def curves(rows: list[tuple[int, str, float, float, float]]) -> Curves:
    named: Curves = {}
    for count, name, _, speed, _ in rows:
        named.setdefault(name, []).append((count, speed))
    return named


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="draw the table as curves into this file, SVG")
    print(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
