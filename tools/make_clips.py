"""Make the short clips that the tests listen to: tests/clips/*.flac and *.ogg, and clips.json with their words.

    python -m tools.make_clips tests/clips

None of their utterances was in the training set, and two of the voices were not either. Needs espeak-ng.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import soundfile as sf

from tools.demo_speech import (
    AFTER_DONE,
    DONE,
    EVERYDAY,
    FUNCTION_WORDS,
    SAMPLE_RATE,
    SPELLING,
    TRAINED_VOICES,
    UNHEARD_VOICES,
    Arranger,
    Recording,
    make_bank,
    speak,
    spell_by_what_follows,
)

BANK_SEED, ARRANGEMENT_SEED = 4, 40


def clips() -> list[tuple[str, str, Recording]]:
    """(name, kind, recording) of every clip."""
    bank = make_bank(360, TRAINED_VOICES, BANK_SEED)
    unheard = make_bank(60, UNHEARD_VOICES, BANK_SEED)
    everyone = Arranger(bank, ARRANGEMENT_SEED)
    made: list[tuple[str, str, Recording]] = []
    for voice in TRAINED_VOICES:
        own = Arranger([u for u in bank if u.voice == voice], ARRANGEMENT_SEED)
        made.append((f"voice_{voice}", "trained voice", own.degrade(own.recording(5, (0.1, 0.9)), -3)))
    for voice in UNHEARD_VOICES:
        own = Arranger([u for u in unheard if u.voice == voice], ARRANGEMENT_SEED)
        for i in range(3):
            made.append((f"unheard_{voice}_{i}", "unheard voice", own.degrade(own.recording(6, (0.1, 0.9)), -3)))
    for gain_db in (0, -10, -20, -30, -40):
        made.append((f"gain{gain_db}", "loudness", everyone.degrade(everyone.recording(5, (0.1, 0.9)), gain_db)))
    for i in range(3):
        made.append((f"short_{i}", "short", everyone.degrade(everyone.recording(2.5, (0.1, 0.5), most=1), -6)))
    for i in range(2):
        made.append((f"sparse_{i}", "long pauses", everyone.degrade(everyone.recording(20, (2.0, 5.0)), -6)))
    for i in range(2):
        made.append((f"dense_{i}", "half a minute", everyone.degrade(everyone.recording(30, (0.1, 0.9)), -6)))
    made.append(("minute", "a full chunk", everyone.degrade(everyone.recording(60, (0.1, 0.9)), -6)))
    made.append(("silence", "no speech", Recording(np.zeros(3 * SAMPLE_RATE, np.float32), ())))
    made.extend((f"noise_{i}", "no speech", everyone.nothing(4)) for i in range(3))
    for common in ("two", "four", "gray", "eight", "right"):
        words = ("monday", common, "garden")
        spoken = speak(words, "en-us", 150, 50)
        samples = spoken.samples.astype(np.float32) / 32767
        spans = tuple(pairwise((*spoken.starts, len(samples))))
        made.append((f"sounds_like_{common}", "sound-alike", Recording(samples, words, spans)))
    made.append(("what_follows", "what follows", what_follows()))
    return made


def what_follows() -> Recording:
    """Sounds whose spelling the next word decides, half of them either way, and the words as they are to be written."""
    parts, words, spans, position = [], [], [], 0
    rng, names, things = random.Random(BANK_SEED), SPELLING.split(), EVERYDAY.split()[len(FUNCTION_WORDS.split()) :]
    for number, (common, after) in enumerate(product(DONE, 9 * (sorted(AFTER_DONE), things))):
        phrase = (rng.choice(names), common, rng.choice(after), rng.choice(names))
        spoken = speak(phrase, TRAINED_VOICES[number % len(TRAINED_VOICES)], 150, 50)
        parts += [spoken.samples.astype(np.float32) / 32767, np.zeros(SAMPLE_RATE // 2, np.float32)]
        words += spoken.words
        spans += pairwise([position + start for start in (*spoken.starts, len(spoken.samples))])
        position += len(parts[-2]) + len(parts[-1])
    recording = Recording(np.concatenate(parts), tuple(words), tuple(spans))
    return replace(recording, words=tuple(spell_by_what_follows(recording)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, kind, recording in clips():
        seconds = len(recording.samples) / SAMPLE_RATE
        # Long clips as Opus, which is a tenth of FLAC's size and harder to hear than it.
        file = f"{name}.ogg" if seconds > 10 else f"{name}.flac"
        options = {"format": "OGG", "subtype": "OPUS"} if seconds > 10 else {}
        sf.write(out / file, recording.samples, SAMPLE_RATE, **options)
        starts_ms = [start * 1000 // SAMPLE_RATE for start, _ in recording.spans]
        about = {"file": file, "kind": kind, "seconds": round(seconds, 3)}
        rows.append({**about, "words": " ".join(recording.words), "starts_ms": starts_ms})
    (out / "clips.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(f"{len(rows)} clips, {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    main()
