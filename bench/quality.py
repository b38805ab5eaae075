"""How well a server hears long recordings, word by word, and what becomes of words where it cuts.

    python -m bench.quality http://127.0.0.1:11344 [--minutes 10] [--long 60] [--chunk 60] [--rounds 1]

espeak-ng says words in many voices, with pauses from 0.05 to 8 s between utterances, so that every word and its time is
known. Any server with OpenAI's API will do. Words are lost, replaced, doubled (a stretch of text that stands twice in a
row) or else invented; all of that is wrong. A seam is where this repository's chunking cuts, in chunks of at most
`--chunk` seconds: give the server's own AUDIO_CHUNK_SIZE_SECONDS. A word that no chunk has whole is torn, whatever the
model makes of it. Few words stand near seams, so what is said of them wants several rounds, whose recordings are
counted together. Spellings that sound alike count as equal.
"""

from __future__ import annotations

import argparse
import io
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import soundfile as sf
from rapidfuzz.distance import Levenshtein

from bench.peers import table
from chunking import Chunk, speech_chunks
from tools.demo_speech import (
    FULL_SCALE,
    SAMPLE_RATE,
    SOUND_ALIKES,
    TRAINED_VOICES,
    Recording,
    Utterance,
    coloured_noise,
    load_bank,
)
from voice_activity import AUTO

PAUSES = (0.05, 8.0)  # seconds; as many short ones as long ones, on a logarithmic scale
QUIET_PEAK = 0.02
NOISE = 10 ** (-30 / 20)  # root mean square, of the speech's peak
NEAR_MS = 1000  # of a seam
WHOLE = 0.95  # of a word's energy
NUMERALS = dict(
    zip(
        [*map(str, range(13)), "20", "30", "40", "50", "100"],
        "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred".split(),
        strict=True,
    )
)
HEADS = (
    "recording", "minutes", "words", "torn", "wrong, %", "near a seam: of", "wrong, %", "lost", "doubled",
    "elsewhere: wrong, %", "lost", "doubled", "invented", "start off, ms: median", "95 %",
)  # fmt: skip


@dataclass(frozen=True)
class Heard:
    words: list[str]
    starts_ms: list[float]  # of each word, or none where the server knows no times of words


def arrange(bank: list[Utterance], seconds: float, rng: random.Random) -> Recording:
    """Utterances one after another until `seconds` are full, peak 1."""
    parts, words, spans, position = [], [], [], 0
    while position < seconds * SAMPLE_RATE:
        utterance = rng.choice(bank)
        spoken = utterance.samples.astype(np.float32) / FULL_SCALE * rng.uniform(0.4, 1.0)
        pause = int(math.exp(rng.uniform(*map(math.log, PAUSES))) * SAMPLE_RATE)
        parts += [spoken, np.zeros(pause, np.float32)]
        words += utterance.words
        spans += pairwise([position + start for start in (*utterance.starts, len(spoken))])
        position += len(spoken) + pause
    samples = np.concatenate(parts)
    return Recording(samples / np.abs(samples).max(), tuple(words), tuple(spans))


def recordings(bank: list[Utterance], minutes: float, long: float, seed: int) -> Iterator[tuple[str, Recording]]:
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    plain, quiet, noisy = (arrange(bank, 60 * minutes, rng) for _ in range(3))
    hiss = coloured_noise(len(noisy.samples), noise) * NOISE
    yield "plain", plain
    yield f"quiet, peak {QUIET_PEAK}", replace(quiet, samples=quiet.samples * QUIET_PEAK)
    yield "noisy, -30 dB", replace(noisy, samples=(noisy.samples + hiss) / (1 + np.abs(hiss).max()))
    yield "long", arrange(bank, 60 * long, rng)
    n = int(20 * minutes) * SAMPLE_RATE
    nobody = [np.zeros(n, np.float32), *(coloured_noise(n, noise) * level for level in (0.01, 0.1))]
    yield "nobody speaks", Recording(np.clip(np.concatenate(nobody), -1, 1), ())


def hear(client: httpx.Client, model: str, recording: Recording) -> Heard:
    """The server's words, with their times if it knows them. Raises RuntimeError over a refusal."""
    file = io.BytesIO()
    sf.write(file, recording.samples, SAMPLE_RATE, format="FLAC")
    form = {"model": model, "language": "en", "temperature": "0", "response_format": "verbose_json"}
    for granularities in (["segment", "word"], ["segment"]):
        data = {**form, "timestamp_granularities[]": granularities}
        answer = client.post("/v1/audio/transcriptions", files={"file": ("speech.flac", file.getvalue())}, data=data)
        if answer.status_code != 400:
            break
    if answer.is_error:
        raise RuntimeError(f"{client.base_url}: {answer.text}")
    body = answer.json()
    timed = [(normal(word["word"]), 1000 * word["start"]) for word in body.get("words") or []]
    if timed:
        return Heard([word for word, _ in timed if word], [start for word, start in timed if word])
    return Heard([word for word in map(normal, body["text"].split()) if word], [])


def normal(word: str) -> str:
    word = "".join(filter(str.isalnum, word.casefold()))
    return NUMERALS.get(word) or SOUND_ALIKES.get(word, word)


def chunks_of(recording: Recording, chunk_seconds: float) -> list[Chunk]:
    blocks = np.array_split(recording.samples, len(recording.samples) // SAMPLE_RATE + 1)
    return list(speech_chunks(blocks, chunk_seconds, AUTO))


def seams(chunks: list[Chunk]) -> list[tuple[float, float]]:
    """Milliseconds between which each cut lies: the end of speech before it and the start after it."""
    speech = [chunk.speech_ms() for chunk in chunks]
    return [(before[1], after[0]) for before, after in pairwise(speech)]


def torn(recording: Recording, chunks: list[Chunk]) -> int:
    """How many words no chunk has nearly whole, because of a cut or because a part was not taken for speech.

    No model has a say in it: what is wrong with the other words near a cut is what a model mishears.
    """
    sound = np.append(0.0, np.cumsum(np.square(recording.samples, dtype=np.float64)))
    starts, ends = np.array([(span.start, span.end) for chunk in chunks for span in chunk.regions]).T
    first, last = np.array(recording.spans).T[..., None]
    begins = np.clip(starts, first, last)  # (words, spans of speech)
    shares = (sound[np.clip(ends, begins, last)] - sound[begins]) / (sound[last] - sound[first])
    return int((shares.max(axis=1) < WHOLE).sum())


@dataclass
class Counts:
    """Of words said somewhere."""

    words: int = 0
    wrong: int = 0  # replaced or lost
    lost: int = 0
    doubled: int = 0  # right before or behind one of them

    def row(self) -> tuple[object, ...]:
        return (_percent(self.wrong, self.words), self.lost, self.doubled)


@dataclass
class Judgement:
    near: Counts = field(default_factory=Counts)  # a seam
    elsewhere: Counts = field(default_factory=Counts)
    torn: int = 0  # words
    invented: int = 0
    late_ms: list[float] = field(default_factory=list)  # by which the start of a right word is off, without sign

    def add(self, recording: Recording, heard: Heard, cuts: list[tuple[float, float]]) -> None:
        said = [normal(word) for word in recording.words]
        times = [(1000 * first / SAMPLE_RATE, 1000 * end / SAMPLE_RATE) for first, end in recording.spans]
        at = [
            self.near if any(s < b + NEAR_MS and e > a - NEAR_MS for a, b in cuts) else self.elsewhere for s, e in times
        ]
        for counts in at:
            counts.words += 1
        for step in Levenshtein.opcodes(said, heard.words):
            if step.tag == "insert":
                length = step.dest_end - step.dest_start
                if at and _stands_twice(heard.words, step.dest_start, step.dest_end):
                    at[min(step.src_start, len(at) - 1)].doubled += length
                else:
                    self.invented += length
            elif step.tag == "equal":
                told = heard.starts_ms[step.dest_start : step.dest_end]
                self.late_ms += [abs(start - times[i][0]) for i, start in enumerate(told, start=step.src_start)]
            for counts in at[step.src_start : step.src_end] if step.tag in ("replace", "delete") else ():
                counts.wrong += 1
                counts.lost += step.tag == "delete"

    def row(self) -> tuple[object, ...]:
        """What is behind the name and the minutes."""
        words = self.near.words + self.elsewhere.words
        wrong = sum(counts.wrong + counts.doubled for counts in (self.near, self.elsewhere)) + self.invented
        off = [float(np.quantile(self.late_ms, share)) for share in (0.5, 0.95)] if self.late_ms else ["", ""]
        near = (self.near.words, *self.near.row())
        return (words, self.torn, _percent(wrong, words), *near, *self.elsewhere.row(), self.invented, *off)


def _stands_twice(words: list[str], start: int, end: int) -> bool:
    """Whether words `start` to `end` are also what stands right before them or right behind."""
    length, block = end - start, words[start:end]
    return words[max(start - length, 0) : start] == block or words[end : end + length] == block


def _percent(count: int, of: int) -> float | str:
    return 100 * float(count) / float(of) if of else ""


def measure(args: argparse.Namespace, bank: list[Utterance]) -> str:
    judged: defaultdict[str, Judgement] = defaultdict(Judgement)
    minutes: Counter[str] = Counter()
    with httpx.Client(base_url=args.server, timeout=7200) as client:
        for seed in range(args.seed, args.seed + args.rounds):
            for name, recording in recordings(bank, args.minutes, args.long, seed):
                heard, chunks = hear(client, args.model, recording), chunks_of(recording, args.chunk)
                judged[name].add(recording, heard, seams(chunks))
                judged[name].torn += torn(recording, chunks) if recording.words else 0
                minutes[name] += len(recording.samples) / SAMPLE_RATE / 60
    return table(HEADS, [(name, minutes[name], *judgement.row()) for name, judgement in judged.items()])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", metavar="http://HOST:PORT")
    parser.add_argument("--model", default="whisper-1", help="the name that the server knows the model by")
    parser.add_argument("--minutes", type=float, default=10, help="of each recording")
    parser.add_argument("--long", type=float, default=60, help="minutes of the long one")
    parser.add_argument("--chunk", type=float, default=60, help="seconds of a chunk at most; the demo's are 15")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="recordings of each kind, with one seed after another")
    parser.add_argument("--bank", type=Path, default=Path("quality.pkl"), help="where spoken utterances are kept")
    return parser


def main() -> None:
    args = parser().parse_args()
    print(measure(args, load_bank(args.bank, 400, TRAINED_VOICES, seed=5)))


if __name__ == "__main__":
    main()
