"""Word error rates of the demo model on new utterances, through the engine that serves it.

    python -m tools.evaluate_demo demo_model [--recordings 12] [--served]

Sound-alike spellings count as equal. Noise is light, at most -30 dB of the peak, but for one row. Needs espeak-ng.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chunking import speech_chunks
from config import Settings
from decoding import Asked, ChunkDecoding
from engine.backends import load_backend
from engine.backends.base import LoadOptions
from engine.core import Job, Prompt, Sampling
from engine.tokenizer import TextDecoder, VoxtralTokenizer
from engine.worker import Worker
from instructions import instructed
from tests.speech import word_error_rate
from tools.demo_instructions import instruction
from tools.demo_speech import HEAVY, LIGHT, SAMPLE_RATE, TRAINED_VOICES, UNHEARD_VOICES, Arranger, Recording, load_bank
from transcript import TextDelta
from voice_activity import AUTO

DENSE, SPARSE = (0.1, 0.9), (2.0, 5.0)
SHORT = 8


@dataclass(frozen=True)
class Condition:
    name: str
    make: Callable[[], Recording]
    prompt: Callable[[VoxtralTokenizer], Prompt]
    times: int = 1  # as many recordings as were asked for; short ones have few words


def with_language(tokenizer: VoxtralTokenizer) -> Prompt:
    return tokenizer.transcription_prompt("en")


def without_language(tokenizer: VoxtralTokenizer) -> Prompt:
    return tokenizer.transcription_prompt(None)


def conditions(trained: Arranger, unheard: Arranger, noisy: Arranger) -> list[Condition]:
    rng = random.Random(11)

    def speech(arranger: Arranger, seconds: float, pauses: tuple[float, float], db: float) -> Callable[[], Recording]:
        return lambda: arranger.degrade(arranger.recording(seconds, pauses), db)

    def asked(tokenizer: VoxtralTokenizer) -> Prompt:
        return tokenizer.chat_prompt(instructed(instruction(rng)))[0]

    def short() -> Recording:
        return trained.degrade(trained.recording(rng.uniform(1, 4), DENSE, most=1), -6)

    return [
        Condition("1 to 4 s", short, with_language, SHORT),
        Condition("5 s", speech(trained, 5, DENSE, -6), with_language, SHORT),
        Condition("30 s, dense", speech(trained, 30, DENSE, -6), with_language),
        Condition("30 s, pauses of 2 to 5 s", speech(trained, 30, SPARSE, -6), with_language),
        Condition("30 s, no language given", speech(trained, 30, DENSE, -6), without_language),
        Condition("30 s, any instruction", speech(trained, 30, DENSE, -6), asked),
        Condition("30 s, peak at -40 dB", speech(trained, 30, DENSE, -40), with_language),
        Condition("60 s, dense", speech(trained, 60, DENSE, -6), with_language),
        Condition("60 s, pauses of 2 to 5 s", speech(trained, 60, SPARSE, -6), with_language),
        Condition("60 s, any instruction", speech(trained, 60, DENSE, -6), asked),
        Condition("30 s, in heavy noise", speech(noisy, 30, DENSE, -6), with_language),
        Condition("unheard voices, 5 s", speech(unheard, 5, DENSE, -6), with_language, SHORT),
        Condition("unheard voices, 30 s", speech(unheard, 30, DENSE, -6), with_language),
    ]


async def hear_whole(worker: Worker, recording: Recording, prompt: Prompt) -> str:
    """In one piece, as the model alone hears it."""
    samples = recording.samples
    stream = worker.submit(
        Job(prompt, (samples,), Settings().token_cap(len(samples) / SAMPLE_RATE), Sampling()), "evaluation"
    )
    decoder, token_bytes = TextDecoder(), worker.backend.tokenizer.token_bytes
    return "".join([decoder.add(token_bytes(token.id)) async for token in stream]) + decoder.finish()


async def hear_served(worker: Worker, recording: Recording, prompt: Prompt) -> str:
    """As the server hears it: packed speech in chunks of up to 60 s, decoded again where the model fails."""
    job = Job(prompt, (), worker.backend.context_length, Sampling(), loops_end=True)
    asked, texts = Asked(worker, "evaluation", job, Settings().token_cap), []
    blocks = np.split(recording.samples, range(SAMPLE_RATE, len(recording.samples), SAMPLE_RATE))
    for chunk in speech_chunks(blocks, 60, AUTO):
        events = [event async for event in ChunkDecoding(asked, chunk).events()]
        texts.append("".join(event.text for event in events if isinstance(event, TextDelta)))
    return " ".join(filter(None, texts))


async def evaluate(worker: Worker, arrangers: list[Arranger], count: int, hear: Callable[..., Awaitable[str]]) -> None:
    tokenizer = worker.backend.tokenizer
    for condition in conditions(*arrangers):
        recordings = [r for r in (condition.make() for _ in range(count * condition.times)) if r.words]
        texts = await asyncio.gather(*(hear(worker, r, condition.prompt(tokenizer)) for r in recordings))
        pairs = [(" ".join(r.words), text) for r, text in zip(recordings, texts, strict=True)]
        words = sum(len(r.words) for r in recordings)
        print(f"{condition.name:28} {word_error_rate(pairs):6.1%}  of {words} words", flush=True)
    nothing = [arrangers[0].nothing(seconds) for seconds in (1, 5, 10, 30) * count]
    texts = await asyncio.gather(*(hear(worker, r, with_language(tokenizer)) for r in nothing))
    print(f"{'silence and noise':28} {sum(bool(t) for t in texts)} of {len(texts)} recordings gave text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--recordings", type=int, default=12, help="for each condition")
    parser.add_argument("--trained", type=Path, default=Path("evaluation.pkl"), help="where spoken utterances are kept")
    parser.add_argument("--unheard", type=Path, default=Path("evaluation_unheard.pkl"))
    parser.add_argument("--quantization", choices=("none", "int8", "int4"), default="none")
    parser.add_argument("--served", action="store_true", help="hear as the server does; else each in one piece")
    args = parser.parse_args()
    said = load_bank(args.trained, 480, TRAINED_VOICES, seed=2)
    trained, noisy = Arranger(said, seed=5, spoiling=LIGHT), Arranger(said, seed=7, spoiling=HEAVY)
    unheard = Arranger(load_bank(args.unheard, 200, UNHEARD_VOICES, seed=3), seed=6, spoiling=LIGHT)
    worker = Worker(load_backend("transformers", args.model, LoadOptions("auto", "float32", 8, args.quantization)))
    hear = hear_served if args.served else hear_whole
    asyncio.run(evaluate(worker, [trained, unheard, noisy], args.recordings, hear))
    worker.close()


if __name__ == "__main__":
    main()
