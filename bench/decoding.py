"""How fast each format is decoded and brought to 16 kHz mono, on one thread.

    python -m bench.decoding [--seconds 300] [--rounds 5]

Encodes noise that sounds like speech in no way but costs a decoder as much, as mono and stereo at 48 kHz.
"""

from __future__ import annotations

import argparse
import io
import time
from statistics import median

import av
import numpy as np

from audio_processor import AudioFile, AudioLimits

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


def decoding_seconds(data: bytes) -> float:
    started = time.perf_counter()
    audio = AudioFile(io.BytesIO(data), AudioLimits(seconds=86_400))
    for _ in audio.blocks():
        pass
    audio.close()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    encoded = {
        (container, codec, layout): encode(container, codec, layout, args.seconds)
        for container, codec in FORMATS
        for layout in ("mono", "stereo")
    }
    times: dict[tuple[str, str, str], list[float]] = {kind: [] for kind in encoded}
    for _ in range(args.rounds):
        for kind, data in encoded.items():
            times[kind].append(decoding_seconds(data))
    for (container, codec, layout), values in times.items():
        print(f"{container:5} {codec:11} {layout:7} {args.seconds / median(values):6.0f}x real time")


if __name__ == "__main__":
    main()
