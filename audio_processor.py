"""Bytes to audio: any container and codec that FFmpeg reads, to mono float32 at 16 kHz, in blocks.

The content decides, never a name or a MIME type. Memory is proportional to a block, not to the file, and the limits
hold while reading. This module knows no HTTP; `AudioError` carries a code that the API gives a status to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

SAMPLE_RATE = 16_000  # Hz, what Voxtral's encoder was trained on
SHORTEST_SECONDS = 0.1
BLOCK_SAMPLES = SAMPLE_RATE  # one second

# FFmpeg's demuxers that hold one recording. Playlists and scripts (hls, concat, dash, ...) are left out, because they
# make the decoder open other files and addresses.
DEMUXERS = "wav,w64,aiff,flac,mp3,ogg,mov,mp4,m4a,3gp,matroska,webm,aac,amr,asf,au,caf,avi,mpeg,mpegts"
SUPPORTED = "WAV, FLAC, MP3, OGG, Opus, M4A/AAC, MP4, WebM, AIFF"
# What the supported files begin with, at which offset: tells a damaged file from one that never was audio.
SIGNATURES = (
    (b"RIFF", 0), (b"RF64", 0), (b"fLaC", 0), (b"OggS", 0), (b"ID3", 0), (b"FORM", 0), (b"ftyp", 4),
    (b"\x1aE\xdf\xa3", 0), (b"\xff\xfb", 0), (b"\xff\xf3", 0), (b"\xff\xf2", 0), (b"\xff\xf1", 0),
    (b"\xff\xf9", 0), (b"caff", 0), (b"#!AMR", 0),
)  # fmt: skip
# FFmpeg's sample formats: numpy type, the value that means silence, and full scale.
SAMPLE_FORMATS = {
    "u8": (np.dtype(np.uint8), 128, 2**7), "s16": (np.dtype(np.int16), 0, 2**15), "s32": (np.dtype(np.int32), 0, 2**31),
    "s64": (np.dtype(np.int64), 0, 2**63), "flt": (np.dtype(np.float32), 0, 1), "dbl": (np.dtype(np.float64), 0, 1),
}  # fmt: skip

logging.getLogger("libav").setLevel(logging.CRITICAL)  # its warnings about odd files are ours to phrase


class AudioError(Exception):
    """Audio that cannot be transcribed. `code` is stable and for programs, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def empty_audio() -> AudioError:
    return AudioError("audio_empty", "The audio file is empty. Send the bytes of a recording.")


def too_short(seconds: float) -> AudioError:
    return AudioError(
        "audio_too_short",
        f"Audio file is too short ({seconds:.2f} s). Minimum audio length is {SHORTEST_SECONDS} seconds.",
    )


def too_long(limit_seconds: float) -> AudioError:
    return AudioError(
        "audio_too_long",
        f"The audio is longer than {limit_seconds:g} seconds, the most that this server accepts. Send it in parts, or "
        "raise MAX_AUDIO_DURATION_SECONDS.",
    )


def damaged(detail: str) -> AudioError:
    return AudioError(
        "audio_damaged", f"Audio file might be corrupted: {detail}. Try to play it, or convert it to WAV."
    )


@dataclass(frozen=True)
class AudioLimits:
    seconds: float


class AudioFile:
    """An opened recording. `blocks()` decodes it once, from the start; `close()` closes the file too."""

    def __init__(self, file: BinaryIO, limits: AudioLimits) -> None:
        """Open `file` (seekable, any position) and look for an audio stream.

        Raises AudioError: audio_empty, audio_unsupported, audio_damaged, audio_missing, audio_too_long.
        """
        self._file, self._limits = file, limits
        try:
            self._container = _open_container(file)
            self._stream = _audio_stream(self._container)
            self._refuse_declared_length()
        except BaseException:
            file.close()
            raise

    @property
    def declared_seconds(self) -> float | None:
        """What the container says of its length; browsers' WebM says nothing, and a damaged file may lie."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def _refuse_declared_length(self) -> None:
        seconds = self.declared_seconds
        if seconds and seconds > self._limits.seconds:
            raise too_long(self._limits.seconds)

    def blocks(self) -> Iterator[np.ndarray]:
        """Mono float32 blocks (n,) at 16 kHz, about a second each, until the end.

        Raises AudioError: audio_damaged, audio_too_short, audio_too_long.
        """
        total, limit = 0, int(self._limits.seconds * SAMPLE_RATE)
        for block in _resampled(self._mono_frames()):
            total += len(block)
            if total > limit:
                raise too_long(self._limits.seconds)
            yield block
        if total == 0:
            raise damaged("no audio could be decoded")
        if total < SHORTEST_SECONDS * SAMPLE_RATE:
            raise too_short(total / SAMPLE_RATE)

    def _mono_frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """(rate, mono float32 samples) for each decoded frame, in order."""
        try:
            for frame in self._container.decode(self._stream):
                yield frame.sample_rate, _mono(frame)
        except av.FFmpegError as error:
            raise damaged(f"decoding stopped with '{error.strerror}'") from None

    def close(self) -> None:
        self._container.close()
        self._file.close()


def _open_container(file: BinaryIO) -> InputContainer:
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if not head:
        raise empty_audio()
    try:
        container = av.open(file, mode="r", options={"format_whitelist": DEMUXERS}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        if any(head[at : at + len(mark)] == mark for mark, at in SIGNATURES):
            raise damaged(f"its header cannot be read ({error})") from None
        raise AudioError(
            "audio_unsupported", f"Invalid file format: this is not audio that can be decoded. Supported: {SUPPORTED}."
        ) from None
    return container


def _audio_stream(container: InputContainer) -> AudioStream:
    if not container.streams.audio:
        container.close()
        raise AudioError("audio_missing", "The file has no audio stream (a video without sound?). Send one that has.")
    stream = container.streams.audio[0]
    stream.thread_type = "NONE"  # requests run beside each other; threads inside a decoder would only compete
    return stream


def _mono(frame: AudioFrame) -> np.ndarray:
    """Mean of the channels of a frame, float32 (n,) in -1..1.

    Reads the planes in place: PyAV's own conversions take longer than decoding does.
    """
    dtype, zero, full_scale = SAMPLE_FORMATS[frame.format.name.removesuffix("p")]
    channels = frame.layout.nb_channels
    if frame.format.is_planar:
        planes = [np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes[:channels]]
    else:
        planes = list(np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels).T)
    total = planes[0].astype(np.float32)
    for plane in planes[1:]:
        total += plane
    if zero or full_scale * channels != 1:
        total = (total / channels - zero) * np.float32(1 / full_scale)
    return total


def _resampled(frames: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """Join frames into blocks of about a second and bring them to 16 kHz. A rate that changes midway is followed."""
    rate, resampler, waiting, held = 0, None, [], 0
    for frame_rate, samples in frames:
        if frame_rate != rate:
            yield from _flush(resampler, waiting)
            rate, waiting, held = frame_rate, [], 0
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None
        waiting.append(samples)
        held += len(samples)
        if held >= rate:
            yield from _convert(resampler, waiting, last=False)
            waiting, held = [], 0
    yield from _flush(resampler, waiting)


def _flush(resampler: soxr.ResampleStream | None, waiting: list[np.ndarray]) -> Iterator[np.ndarray]:
    if waiting or resampler:
        yield from _convert(resampler, waiting, last=True)


def _convert(resampler: soxr.ResampleStream | None, waiting: list[np.ndarray], last: bool) -> Iterator[np.ndarray]:
    block = np.concatenate(waiting) if waiting else np.zeros(0, np.float32)
    block = np.nan_to_num(block, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)  # float WAV can hold all of these
    if resampler:
        block = resampler.resample_chunk(block, last=last)
    if len(block):
        yield block
