"""What is sent: files, what comes through a pipe, and samples, each readable forwards in blocks."""

from __future__ import annotations

import io
import os
import select
import struct
from collections.abc import Callable

from cli.client import Failure, Readable

SAMPLE_RATE = 16_000  # of raw samples in a pipe
UNKNOWN = 0xFFFFFFFF  # bytes, in the header of a WAV that is not written to its end yet
# What recordings begin with, at which offset. Anything else in a pipe is raw samples, so marks of two bytes, which
# samples may well have, are left out.
SIGNATURES = (
    (b"RIFF", 0), (b"RF64", 0), (b"fLaC", 0), (b"OggS", 0), (b"ID3", 0), (b"FORM", 0), (b"caff", 0), (b"ftyp", 4),
    (b"\x1aE\xdf\xa3", 0),
)  # fmt: skip
LONGEST_SIGNATURE = 8
WAVES = (b"RIFF", b"RF64")
POLL_SECONDS = 0.2  # after which a pipe in which nothing comes is found to have been ended


def wav_header(rate: int, size: int = UNKNOWN) -> bytes:
    """44 bytes that make mono 16-bit samples a WAV file; `size` is theirs in bytes."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", min(size + 36, UNKNOWN), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size,
    )  # fmt: skip


class Pipe:
    """What comes through a pipe: as it is if it begins like a recording, else as s16le samples, 16 kHz mono, behind the
    header of a WAV. Keeps nothing of it."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._head, self._ended = raw, b"", False
        while len(self._head) < LONGEST_SIGNATURE and (more := raw.read(LONGEST_SIGNATURE - len(self._head))):
            self._head += more
        if not self._head:
            raise Failure("nothing came through the pipe. Send WAV, or raw s16le samples at 16 kHz, mono.")
        if not any(self._head[at:].startswith(mark) for mark, at in SIGNATURES):
            self._head = wav_header(SAMPLE_RATE) + self._head
        # Of other recordings some can only be read once they are whole.
        self.is_wave = self._head.startswith(WAVES)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, what is there already rather than all of them; none at the end."""
        if self._head:
            first, self._head = self._head[:size], self._head[size:]
            return first
        while not self._ended:
            if select.select([self._raw], [], [], POLL_SECONDS)[0]:
                return self._raw.read(size) or b""
        return b""

    def end(self) -> None:
        """What comes from now on is left there. Called by another thread than reads."""
        self._ended = True


def stdin_pipe() -> Pipe:
    """Unbuffered, because the interpreter waits at its end for a thread that reads sys.stdin."""
    os.set_blocking(0, True)
    return Pipe(io.FileIO(0, closefd=False))


class Counted:
    """A readable that tells how many bytes were read; 0 at the end."""

    def __init__(self, file: Readable, told: Callable[[int], None]) -> None:
        self._file, self._told = file, told

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._told(len(data))
        return data
