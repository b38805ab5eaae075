"""Where `listen` has its samples from: a microphone, a file played as if it were one, or a pipe."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Protocol

import av
import numpy as np

from cli.client import Failure
from cli.recordings import SAMPLE_RATE, Pipe

BLOCK_SECONDS = 0.1
MOST_BLOCKS = 6000  # of a microphone that may wait, ten minutes
SILENT_SECONDS = 10.0  # without a block, after which a microphone is taken for gone


class Source(Protocol):
    """Samples as they are spoken. `live`: they do not wait for whoever listens."""

    rate: int  # Hz
    live: bool

    def blocks(self) -> Iterator[np.ndarray]:
        """int16 (n,) until the end or `stop`, which another thread may call. Raises Failure."""
        ...

    def stop(self) -> None: ...


class Played:
    """A recording in any format, by its path or from a pipe; `paced`: no faster than it was spoken."""

    rate = SAMPLE_RATE

    def __init__(self, file: str | Pipe, paced: bool) -> None:
        self.live = paced
        self._file, self._stopped = file, threading.Event()

    def blocks(self) -> Iterator[np.ndarray]:
        started, played = time.monotonic(), 0
        try:
            for block in self._decoded():
                played += len(block)
                ahead = started + played / self.rate - time.monotonic()
                if self.live and self._stopped.wait(max(ahead, 0)):
                    return
                yield block
        except av.FFmpegError as error:
            if not self._stopped.is_set():
                raise Failure(f"the recording cannot be played: {error.strerror}.") from None
        if not played and not self._stopped.is_set():
            raise Failure("the recording has no sound.")

    def _decoded(self) -> Iterator[np.ndarray]:
        # A path by FFmpeg's `file:`, so that a colon in it names no other protocol.
        with av.open(f"file:{self._file}" if isinstance(self._file, str) else self._file) as container:
            if not container.streams.audio:
                return
            resampler = av.AudioResampler(format="s16", layout="mono", rate=self.rate)
            for frame in container.decode(container.streams.audio[0]):
                for converted in resampler.resample(frame):
                    yield converted.to_ndarray()[0]
            for converted in resampler.resample(None):
                yield converted.to_ndarray()[0]

    def stop(self) -> None:
        self._stopped.set()
        if isinstance(self._file, Pipe):
            self._file.end()


class Microphone:
    """Samples from sounddevice, at 16 kHz where the device can, else at its own rate. Raises Failure at once where
    there is no microphone, or nothing to reach it with."""

    live = True

    def __init__(self, device: str | None, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._stopped = self._lost = self._full = False
        self._blocks: queue.Queue[np.ndarray] = queue.Queue(MOST_BLOCKS)
        library = _sounddevice()
        chosen = int(device) if device and device.isdecimal() else device
        try:
            self.rate = _rate(library, chosen)
            self._stream = library.InputStream(
                samplerate=self.rate, device=chosen, channels=1, dtype="int16",
                blocksize=int(self.rate * BLOCK_SECONDS), callback=self._heard,
            )  # fmt: skip
            self._stream.start()
        except (library.PortAudioError, ValueError) as error:
            raise Failure(
                f"no microphone ({error}). `python -m sounddevice` lists what there is; --device chooses one."
            ) from None

    def _heard(self, samples: np.ndarray, frames: int, times: Any, status: Any) -> None:
        """Called by PortAudio in a thread of its own, which must never wait. samples (n, 1)."""
        self._lost = self._lost or bool(status.input_overflow)
        try:
            self._blocks.put_nowait(samples[:, 0].copy())
        except queue.Full:
            self._full = True

    def blocks(self) -> Iterator[np.ndarray]:
        with closing(self._stream):
            while not (self._stopped or self._full):
                yield self._next()
            self._stream.stop()
            while not self._blocks.empty():
                yield self._next()
        if self._full:
            raise Failure("the server is ten minutes behind; the microphone was switched off.")

    def _next(self) -> np.ndarray:
        if self._lost:
            self._lost = False
            self._warn("this machine is too busy, some of the sound was lost")
        try:
            return self._blocks.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            raise Failure("the microphone gives nothing any more. Is it still connected?") from None

    def stop(self) -> None:
        self._stopped = True


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise Failure(
            "a microphone needs the package sounddevice. Run .venv/bin/pip install -r requirements-cli.txt"
        ) from None
    except OSError:
        raise Failure(
            "a microphone needs the library PortAudio. Run apt install libportaudio2, or brew install portaudio."
        ) from None
    return sounddevice


def _rate(library: Any, device: int | str | None) -> int:
    try:
        library.check_input_settings(device=device, channels=1, dtype="int16", samplerate=SAMPLE_RATE)
        return SAMPLE_RATE
    except library.PortAudioError:
        return int(library.query_devices(device, "input")["default_samplerate"])
