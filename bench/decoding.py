"""How fast each format is decoded and brought to 16 kHz mono, and how fast speech is then found, on one thread.

    python -m bench.decoding [--seconds 300] [--rounds 5]

Encodes noise, the worst that a decoder can get, as mono and stereo at 48 kHz. Speech is looked for in a minute of the
tests' clips, again and again: by the network alone, and with all that makes chunks of it. Processor time, so that what
runs beside it counts for less.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import av
import numpy as np

from audio_processor import SAMPLE_RATE, AudioFile, AudioLimits
from chunking import speech_chunks
from tests.speech import clip
from voice_activity import AUTO, Listener

FORMATS = (
    ("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ipod", "aac"), ("ogg", "libopus"),
    ("webm", "libopus"),
)  # fmt: skip


def encode(container: str, codec: str, layout: str, seconds: float) -> bytes:
    channels = 1 if layout == "mono" else 2
    noise = np.random.default_rng(0).standard_normal((channels, 48_000)).astype(np.float32) * 0.1
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout=layout)
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=48_000)
        for _ in range(int(seconds)):
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout=layout)
            frame.sample_rate = 48_000
            for converted in resampler.resample(frame):
                output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


def decode(data: bytes) -> None:
    audio = AudioFile(io.BytesIO(data), AudioLimits(seconds=86_400))
    for _ in audio.blocks():
        pass
    audio.close()


def judge(blocks: list[np.ndarray]) -> None:
    listener = Listener()
    for block in blocks:
        for _ in listener.hear(block):
            pass


def cut(blocks: list[np.ndarray]) -> None:
    for _ in speech_chunks(blocks, 60, AUTO):
        pass


def speech(seconds: int) -> list[np.ndarray]:
    """Blocks of a second, as `AudioFile.blocks` gives them."""
    minute = clip("minute").samples().astype(np.float32)
    samples = np.resize(minute, seconds * SAMPLE_RATE)
    return np.split(samples, range(SAMPLE_RATE, len(samples), SAMPLE_RATE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    work: dict[str, Callable[[], None]] = {
        f"{container:5} {codec:11} {layout}": partial(decode, encode(container, codec, layout, args.seconds))
        for container, codec in FORMATS
        for layout in ("mono", "stereo")
    }
    blocks = speech(args.seconds)
    work |= {"speech, network alone": partial(judge, blocks), "speech, in chunks": partial(cut, blocks)}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.rounds):
        for name, action in work.items():
            started = time.process_time()
            action()
            times[name].append(time.process_time() - started)
    for name, values in times.items():
        print(f"{name:25} {args.seconds / median(values):6.0f}x real time")


if __name__ == "__main__":
    main()
