"""Word error rates of the realtime demo model by delay, on new utterances, through the engine that serves it.

    python -m tools.evaluate_realtime demo_realtime [--recordings 12] [--delays 160,480,960,2400]

Each recording is a live stream; all streams of a condition are heard together. Sound-alike spellings count as equal,
but for those that what follows tells apart.
Needs espeak-ng.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from bench.peers import numbers, table
from engine.backends import load_backend
from engine.backends.base import LoadOptions
from engine.live import LiveOptions, LiveToken
from engine.live_worker import LiveWorker
from tests.speech import SOUND_ALIKES, word_error_rate
from tools.demo_speech import (
    TRAINED_VOICES,
    UNHEARD_VOICES,
    Arranger,
    Recording,
    decided_by_what_follows,
    load_bank,
    spell_by_what_follows,
)
from tools.evaluate_demo import DENSE, SPARSE
from tools.train_realtime import LOUDNESS

SEEDS = {"trained": 5, "unheard": 6, "decided": 7}


def conditions(trained: Arranger, unheard: Arranger, decided: Arranger) -> dict[str, Callable[[], Recording]]:
    def speech(arranger: Arranger, seconds: float, pauses: tuple[float, float], db: float) -> Callable[[], Recording]:
        return lambda: arranger.degrade(arranger.recording(seconds, pauses), db)

    return {
        "10 s, dense": speech(trained, 10, DENSE, -6),
        "30 s, dense": speech(trained, 30, DENSE, -6),
        "30 s, pauses of 2 to 5 s": speech(trained, 30, SPARSE, -6),
        "30 s, peak at -20 dB": speech(trained, 30, DENSE, -20),
        "unheard voices, 10 s": speech(unheard, 10, DENSE, -6),
        "10 s, spelled by what follows": speech(decided, 10, DENSE, -6),
    }


async def hear(worker: LiveWorker, recording: Recording, delay_ms: int) -> str:
    stream = worker.open(LiveOptions(delay_ms))
    stream.feed(recording.samples)
    stream.finish()
    ids = [item.id async for item in stream if isinstance(item, LiveToken)]
    return b"".join(map(worker.backend.tokenizer.token_bytes, ids)).decode(errors="replace")


async def evaluate(worker: LiveWorker, trained: Arranger, unheard: Arranger, args: argparse.Namespace) -> str:
    decided = Arranger(decided_by_what_follows(trained.bank), SEEDS["decided"], LOUDNESS)
    rows, all_pairs = [], defaultdict(list)
    for name, make in conditions(trained, unheard, decided).items():
        recordings = [r for r in (make() for _ in range(args.recordings)) if r.words]
        expected = [" ".join(spell_by_what_follows(recording)) for recording in recordings]
        rates = []
        for delay_ms in args.delays:
            texts = await asyncio.gather(*(hear(worker, recording, delay_ms) for recording in recordings))
            pairs = list(zip(expected, texts, strict=True))
            all_pairs[delay_ms] += pairs
            rates.append(_percent(pairs))
        rows.append((name, sum(len(recording.words) for recording in recordings), *rates))
    rows.append(("all of these", sum(int(row[1]) for row in rows), *map(_percent, all_pairs.values())))
    nothing = [trained.nothing(seconds) for seconds in (1, 5, 10, 30) * args.recordings]
    counts = []
    for delay_ms in args.delays:
        texts = await asyncio.gather(*(hear(worker, recording, delay_ms) for recording in nothing))
        counts.append(sum(bool(text.strip()) for text in texts))
    rows.append(("silence and noise: recordings that gave text", f"of {len(nothing)}", *counts))
    return table(("percent of words wrong", "words", *(f"{delay} ms" for delay in args.delays)), rows)


def _percent(pairs: list[tuple[str, str]]) -> str:
    return f"{100 * word_error_rate(pairs, SOUND_ALIKES):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--recordings", type=int, default=12, help="for each condition")
    parser.add_argument("--delays", type=numbers, default=(160, 480, 960, 2400), help="in ms, with commas between")
    parser.add_argument("--trained", type=Path, default=Path("evaluation.pkl"), help="where spoken utterances are kept")
    parser.add_argument("--unheard", type=Path, default=Path("evaluation_unheard.pkl"))
    parser.add_argument("--quantization", choices=("none", "int8", "int4"), default="none")
    args = parser.parse_args()
    trained = Arranger(load_bank(args.trained, 480, TRAINED_VOICES, seed=2), SEEDS["trained"], LOUDNESS)
    unheard = Arranger(load_bank(args.unheard, 200, UNHEARD_VOICES, seed=3), SEEDS["unheard"], LOUDNESS)
    worker = LiveWorker(load_backend("realtime", args.model, LoadOptions("cpu", "float32", 8, args.quantization)))
    print(asyncio.run(evaluate(worker, trained, unheard, args)))
    worker.close()


if __name__ == "__main__":
    main()
