"""How much audio peers transcribe in a second, for several numbers of requests at once.

    python -m bench.throughput http://127.0.0.1:11344 [transformers:FOLDER | http://OTHER:PORT ...] [--requests 1,4,16]

Peers take turns on the same files, so that a machine whose speed drifts is fair to all. Medians over the rounds; the
ratio is to the first peer with as many requests.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from bench.peers import Peer, arguments, audio_files, middle, open_peers, seconds_of, table


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
    return table(("requests", "peer", "seconds", "times real time", "ratio"), rows)


def main() -> None:
    print(asyncio.run(measure(arguments(__doc__).parse_args())))


if __name__ == "__main__":
    main()
