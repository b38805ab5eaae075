"""How long clients wait for their first text and for the end, alone, in a crowd, and beside a long file.

    python -m bench.latency http://127.0.0.1:11344 [OTHER ...] [--requests 1,4,16] [--long 600]

Medians and the slowest over all requests of all rounds. "beside a long file": a short recording that arrives when the
transcription of a long one is under way.
"""

from __future__ import annotations

import argparse
import asyncio
import io

import numpy as np
import soundfile as sf

from bench.peers import Heard, Peer, arguments, audio_files, middle, noise, open_peers, table

HEAD_START = 2.0  # seconds that the long file is at work before the short one comes


def long_file(args: argparse.Namespace) -> bytes:
    """A recording of `args.long` seconds: the clips over and over, or noise."""
    if args.noise is not None:
        return noise(args.long, seed=999)
    clips = [sf.read(io.BytesIO(file), dtype="float32") for file in audio_files(args, 8, 0)]
    joined = np.concatenate([samples for samples, _ in clips])
    rate = clips[0][1]
    file = io.BytesIO()
    sf.write(file, np.resize(joined, int(args.long * rate)), rate, format="FLAC")
    return file.getvalue()


async def beside(peer: Peer, long: bytes, short: bytes) -> Heard:
    at_work = asyncio.create_task(peer.hear(long))
    await asyncio.sleep(HEAD_START)
    heard = await peer.hear(short)
    await at_work
    return heard


async def measure(args: argparse.Namespace) -> str:
    long = long_file(args)
    waits: dict[tuple[str, str], list[Heard]] = {}
    async with open_peers(args) as peers:
        for round_number in range(1, args.rounds + 1):
            for count in args.requests:
                files = audio_files(args, count, round_number)
                for peer in peers:
                    heard = await asyncio.gather(*(peer.hear(file) for file in files))
                    waits.setdefault((f"{count} at once", peer.name), []).extend(heard)
            for peer in peers:
                short = audio_files(args, 1, round_number)[0]
                case = (f"beside {args.long:g} s", peer.name)
                waits.setdefault(case, []).append(await beside(peer, long, short))
    rows = [
        (case, name, middle([h.first_text for h in heard]), max(h.first_text for h in heard),
         middle([h.whole for h in heard]), max(h.whole for h in heard))
        for (case, name), heard in waits.items()
    ]  # fmt: skip
    return table(("requests", "peer", "first text, s", "slowest", "end, s", "slowest"), rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--long", type=float, default=600, help="seconds of the long file")
    print(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
