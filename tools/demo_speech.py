"""The speech that the demo model learns from: espeak-ng says words, this module arranges them into recordings.

Everything is drawn from seeded generators, so the same seed gives the same recordings on the same espeak-ng version.
This module knows nothing about models; it returns waveforms and the words that were said in them.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import soxr

from tools.espeak import espeak

SAMPLE_RATE = 16_000
FULL_SCALE = 32_767
NOISE_TRACK_SECONDS = 80

DIGITS = "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred"
DAYS = "monday tuesday wednesday thursday friday saturday sunday"
MONTHS = "january february march april may june july august september october november december"
COLOURS = "red orange yellow green blue purple black white brown silver gray"
SPELLING = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike oscar papa quebec romeo sierra "
    "tango uniform victor whiskey xray yankee zulu"
)
FUNCTION_WORDS = "the and in on at from with is are was my your"
EVERYDAY = (
    f"{FUNCTION_WORDS} house water river mountain garden window music paper table doctor morning evening open close "
    "send call play stop start meeting right"
)
# Spellings that sound like a word above. espeak-ng is given the common one, so the sound is the same; the label is the
# rare spelling in RARE_SPELLING of the cases. A model can therefore only prefer the common spelling, never know.
SOUND_ALIKES = {"grey": "gray", "to": "two", "for": "four", "ate": "eight", "write": "right"}
RARE_SPELLING = 0.2
# Sounds that are something done where a function word or a time follows ("read the paper", "won on monday"), and else a
# number or a colour. The realtime model hears what follows only if its delay is long enough.
DONE = {"one": "won", "red": "read", "blue": "blew"}
AFTER_DONE = frozenset(" ".join([FUNCTION_WORDS, DAYS, MONTHS]).split())
SPOKEN_WORDS = " ".join([DIGITS, DAYS, MONTHS, COLOURS, SPELLING, EVERYDAY]).split()

TRAINED_VOICES = (
    "en-us", "en-gb", "en-us+m3", "en-us+f2", "en-us+f4", "en-gb+m7", "en-us+m1", "en-gb+f3", "en-gb-x-rp",
    "en-gb-x-rp+f5", "en-us+m8", "en-gb+m5",
)  # fmt: skip
UNHEARD_VOICES = ("en-us+m4", "en-gb+f1")


@dataclass(frozen=True)
class Utterance:
    words: tuple[str, ...]
    samples: np.ndarray  # int16 (n,), 16 kHz, no silence at its ends
    voice: str
    starts: tuple[int, ...]  # sample at which each word begins


@dataclass(frozen=True)
class Spoiling:
    """What a room and a microphone do to speech."""

    noise_db: tuple[float, float]  # of seven recordings in ten, root mean square over the peak of the speech
    muffled: float  # share of the recordings that lost their high tones


VARIED = Spoiling((-55.0, -22.0), 0.12)
LIGHT, HEAVY = Spoiling((-55.0, -30.0), 0.12), Spoiling((-30.0, -22.0), 0.12)
HARSH = Spoiling((-45.0, -20.0), 0.2)


@dataclass(frozen=True)
class Recording:
    samples: np.ndarray  # float32 (n,), 16 kHz, peak at most 1
    words: tuple[str, ...]  # as espeak-ng was given them: the common spelling of each sound
    spans: tuple[tuple[int, int], ...] = ()  # first sample of each word, and the one after its last


def speak(words: tuple[str, ...], voice: str, words_per_minute: int, pitch: int) -> Utterance:
    """Say `words` with espeak-ng and cut the silence off both ends."""
    raw, word_starts = espeak().speak(" ".join(words), voice, words_per_minute, pitch)
    rate = espeak().sample_rate
    characters = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    known = sorted(word_starts.items())
    # A word that espeak-ng joined to the one before begins in proportion to its place among the letters.
    word_samples = np.interp(
        characters, [*(c for c, _ in known), len(" ".join(words))], [*(sample for _, sample in known), len(raw)]
    )
    samples = soxr.resample(raw.astype(np.float32) / FULL_SCALE, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(samples) > 1e-3)
    first = max(0, int(loud[0]) - 400)
    samples = samples[first : loud[-1] + 800]
    starts = tuple(max(0, int(start) * SAMPLE_RATE // rate - first) for start in word_samples)
    return Utterance(words, np.round(np.clip(samples, -1, 1) * FULL_SCALE).astype(np.int16), voice, starts)


def make_bank(count: int, voices: tuple[str, ...], seed: int) -> list[Utterance]:
    """`count` utterances of one to seven words, spread evenly over `voices`, at 130 to 200 words a minute."""
    rng = random.Random(seed)
    return [
        speak(
            tuple(rng.choice(SPOKEN_WORDS) for _ in range(rng.randint(1, 7))),
            voices[i % len(voices)],
            rng.randint(130, 200),
            rng.randint(35, 65),
        )
        for i in range(count)
    ]


def load_bank(path: Path, count: int, voices: tuple[str, ...], seed: int) -> list[Utterance]:
    """`make_bank`, kept on disk between runs because speaking takes minutes."""
    if not path.exists():
        path.write_bytes(pickle.dumps(make_bank(count, voices, seed)))
    return pickle.loads(path.read_bytes())


def spell(words: Sequence[str], rng: random.Random) -> list[str]:
    """`words` as they are written, now and then a sound-alike the rare way."""
    rare = {common: other for other, common in SOUND_ALIKES.items()}
    return [rare[w] if w in rare and rng.random() < RARE_SPELLING else w for w in words]


def spell_by_what_follows(recording: Recording) -> list[str]:
    """The words of `recording`, those of `DONE` as what follows without a pause decides."""
    words = list(recording.words)
    for i, ((_, end), (start, _)) in enumerate(pairwise(recording.spans)):
        if end == start and words[i + 1] in AFTER_DONE:
            words[i] = DONE.get(words[i], words[i])
    return words


def decided_by_what_follows(bank: list[Utterance]) -> list[Utterance]:
    """The utterances of `bank` in which a word of `DONE` is spoken."""
    return [utterance for utterance in bank if DONE.keys() & set(utterance.words)]


def coloured_noise(n: int, rng: np.random.Generator) -> np.ndarray:
    """White, pink or brown noise, or mains hum, float32 (n,), root mean square 1."""
    kind = rng.integers(4)
    if kind == 3:
        t = np.arange(n) / SAMPLE_RATE
        hum = sum(rng.uniform(0, 1) * np.sin(2 * np.pi * rng.choice([50, 60]) * k * t) for k in range(1, 6))
        noise = hum + 0.02 * rng.standard_normal(n)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(n))
        spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (kind / 2)
        noise = np.fft.irfft(spectrum, n)
    return (noise / (noise.std() + 1e-12)).astype(np.float32)


def low_pass(samples: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """What a telephone or a low bit rate leaves of a recording."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > cutoff_hz] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


class Arranger:
    """Arranges utterances of a bank into recordings as people make them: dense or sparse, loud or quiet, or silent."""

    # Seconds of pause between two utterances: talking without a break, speaking with pauses, thinking aloud.
    PAUSES = ((0.1, 0.9), (0.1, 2.0), (0.5, 5.0))
    # Peak in dB of full scale: far from the microphone, anywhere, close to it.
    LOUDNESS = ((-42.0, -32.0), (-32.0, 0.0), (-14.0, 0.0))

    def __init__(
        self,
        bank: list[Utterance],
        seed: int,
        loudness: tuple[tuple[float, float], ...] = LOUDNESS,
        spoiling: Spoiling = VARIED,
        pause_weights: tuple[int, int, int] = (35, 15, 50),
    ) -> None:
        self.bank, self.loudness, self.spoiling, self.pause_weights = bank, loudness, spoiling, pause_weights
        self.rng = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self._tracks = [coloured_noise(NOISE_TRACK_SECONDS * SAMPLE_RATE, self.noise) for _ in range(32)]

    def _noise(self, n: int) -> np.ndarray:
        """`n` samples from one of the noise tracks; new noise for each would take longer than training."""
        track = self.rng.choice(self._tracks)
        start = self.rng.randrange(len(track) - n + 1)
        return track[start : start + n]

    def recording(self, seconds: float, pauses: tuple[float, float], most: int = 10_000) -> Recording:
        """Clean speech of exactly `seconds`, at most `most` utterances, peak 1."""
        n = int(seconds * SAMPLE_RATE)
        samples, words, spans = np.zeros(n, np.float32), [], []
        position = int(self.rng.uniform(0.0, 0.6) * SAMPLE_RATE)
        for _ in range(most):
            utterance = self._fitting(n - position)
            if utterance is None:
                break
            spoken = utterance.samples.astype(np.float32) / FULL_SCALE * self.rng.uniform(0.4, 1.0)
            samples[position : position + len(spoken)] = spoken
            words.extend(utterance.words)
            edges = [position + start for start in (*utterance.starts, len(spoken))]
            spans.extend(pairwise(edges))
            position += len(spoken) + int(self.rng.uniform(*pauses) * SAMPLE_RATE)
        return Recording(samples / max(float(np.abs(samples).max()), 1e-9), tuple(words), tuple(spans))

    def _fitting(self, space: int) -> Utterance | None:
        for _ in range(8):
            utterance = self.rng.choice(self.bank)
            if len(utterance.samples) <= space:
                return utterance
        return None

    def degrade(self, recording: Recording, gain_db: float) -> Recording:
        """Set the peak to `gain_db` of full scale and add what microphones and encoders add."""
        samples = recording.samples
        if self.rng.random() < 0.7:
            samples = samples + self._noise(len(samples)) * 10 ** (self.rng.uniform(*self.spoiling.noise_db) / 20)
        if self.rng.random() < self.spoiling.muffled:
            samples = low_pass(samples, self.rng.uniform(3300, 6500))
        samples = samples / max(float(np.abs(samples).max()), 1e-9) * 10 ** (gain_db / 20)
        if self.rng.random() < 0.5:
            samples = np.round(samples * FULL_SCALE) / FULL_SCALE
        return replace(recording, samples=samples.astype(np.float32))

    def nothing(self, seconds: float) -> Recording:
        """Silence, noise or clicks: what must give no words."""
        n = int(seconds * SAMPLE_RATE)
        samples = np.zeros(n, np.float32)
        if self.rng.random() < 0.75:
            samples = self._noise(n) * 10 ** (self.rng.uniform(-85, -12) / 20)
        if self.rng.random() < 0.3:
            for _ in range(self.rng.randint(1, 5)):
                samples[self.rng.randrange(n)] += self.rng.uniform(-0.5, 0.5)
        return Recording(np.clip(samples, -1, 1).astype(np.float32), ())

    def training_recording(self, longest: float) -> Recording:
        """One recording of at most `longest` seconds, of any of the kinds above."""
        seconds = longest if self.rng.random() < 0.75 else self.rng.uniform(1.0, longest)
        if self.rng.random() < 0.06:
            return self.nothing(seconds)
        pauses = self.rng.choices(self.PAUSES, weights=self.pause_weights)[0]
        most = self.rng.choice((1, 2, 3)) if self.rng.random() < 0.1 else 10_000
        if self.rng.random() < 0.15:
            seconds = min(seconds, self.rng.uniform(1.0, 12.0))
        low, high = self.rng.choices(self.loudness, weights=(30, 30, 40))[0]
        gain_db = self.rng.uniform(low, high)
        return self.degrade(self.recording(seconds, pauses, most), gain_db)
