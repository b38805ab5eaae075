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

from timeline import TOLD_GAP, Timeline, cut_off, declared_end
from transcript import Gap

SAMPLE_RATE = 16_000  # Hz, what Voxtral's encoder was trained on
SHORTEST_SECONDS = 0.1
RATES = range(1_000, 768_001)  # Hz; a header can claim any, and what is held for a second goes by it
MOST_HELD = 1 << 22  # values, of all channels together
# Power of the mean of channels, as a share of what it is where they have nothing in common, under which they are in
# opposite phase. Two that are alike leave noise of up to 0.1 where they were compressed behind the crossed wires.
CANCELLED = 0.2
JUDGED = 7  # one sample of so many tells, at a seventh of the time

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


def unusual_rate(rate: int) -> AudioError:
    return AudioError(
        "audio_unsupported",
        f"The audio has a sample rate of {rate} Hz; {RATES[0]} to {RATES[-1]} Hz are read. Convert it to 16000 Hz.",
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
        self.decoded = 0  # samples that `blocks` has given so far
        try:
            self._container = _open_container(file)
            self._stream = _audio_stream(self._container)
            self._timeline = Timeline(self._container, self._stream)
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

    @property
    def declared_ms(self) -> int | None:
        return round(self.declared_seconds * 1000) if self.declared_seconds else None

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Where the file lacks audio, as far as `blocks` has come; behind its end, if it should have been longer."""
        return tuple(self._timeline.gaps)

    def _refuse_declared_length(self) -> None:
        seconds = self.declared_seconds
        if seconds and seconds > self._limits.seconds:
            raise too_long(self._limits.seconds)

    def blocks(self) -> Iterator[np.ndarray]:
        """Mono float32 blocks (n,) at 16 kHz, about a second each, until the end.

        Raises AudioError: audio_damaged, audio_unsupported, audio_too_short, audio_too_long.
        """
        limit = int(self._limits.seconds * SAMPLE_RATE)
        for block in _resampled(self._mono_seconds()):
            self.decoded += len(block)
            if self.decoded > limit:
                raise too_long(self._limits.seconds)
            yield block
        if self.decoded == 0:
            raise damaged("no audio could be decoded")
        if self.decoded < SHORTEST_SECONDS * SAMPLE_RATE:
            raise too_short(self.decoded / SAMPLE_RATE)
        end, declared = self.decoded / SAMPLE_RATE, declared_end(self._container, self._stream)
        if declared and self._container.format.name == "wav":
            declared += cut_off(self._file, self._stream)
        if declared and declared - end >= TOLD_GAP:
            self._timeline.add_gap(end, declared)

    def _mono_seconds(self) -> Iterator[tuple[int, np.ndarray]]:
        """(rate, mono float32 samples) of about a second each, in order. What changes midway begins a new one, and what
        the file leaves out is silence."""
        frames: list[AudioFrame] = []
        kind, held = None, 0
        try:
            for frame in self._container.decode(self._stream):
                of_frame = (frame.sample_rate, frame.format.name, frame.layout.nb_channels)
                if frame.sample_rate not in RATES:
                    raise unusual_rate(frame.sample_rate)
                full = min(frame.sample_rate, MOST_HELD // frame.layout.nb_channels)
                gap = self._timeline.gap_before(frame)
                if gap > self._limits.seconds:
                    raise too_long(self._limits.seconds)
                if frames and (of_frame != kind or held >= full or gap):
                    yield frames[0].sample_rate, _mono(frames)
                    frames, held = [], 0
                yield from _silence(frame.sample_rate, gap)
                kind = of_frame
                frames.append(frame)
                held += frame.samples
        except av.FFmpegError as error:
            raise damaged(f"decoding stopped with '{error.strerror}'") from None
        if frames:
            yield frames[0].sample_rate, _mono(frames)

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


def _silence(rate: int, seconds: float) -> Iterator[tuple[int, np.ndarray]]:
    samples = round(seconds * rate)
    for at in range(0, samples, rate):
        yield rate, np.zeros(min(rate, samples - at), np.float32)


def _mono(frames: list[AudioFrame]) -> np.ndarray:
    """One channel of frames of one format, float32 (n,) in -1..1.

    Reads the planes in place, and of many frames at once: PyAV's own conversions, and a few steps of numpy for each
    frame of 20 ms, take as long as decoding does.
    """
    first = frames[0]
    dtype, zero, full_scale = SAMPLE_FORMATS[first.format.name.removesuffix("p")]
    channels = first.layout.nb_channels
    planes = [(frame.planes, frame.samples) for frame in frames]
    if first.format.is_planar:
        parts = [np.concatenate([np.frombuffer(p[c], dtype, n) for p, n in planes]) for c in range(channels)]
    else:
        interleaved = np.concatenate([np.frombuffer(p[0], dtype, n * channels) for p, n in planes])
        parts = list(interleaved.reshape(-1, channels).T)
    return _mixed([_scaled(part, zero, full_scale) for part in parts])


def _scaled(part: np.ndarray, zero: int, full_scale: int) -> np.ndarray:
    values = np.ascontiguousarray(part, np.float32)
    if zero:
        values -= zero
    if full_scale != 1:
        values *= np.float32(1 / full_scale)
    return values


@np.errstate(over="ignore", invalid="ignore")  # float audio may hold what is no number
def _mixed(channels: list[np.ndarray]) -> np.ndarray:
    """The mean of channels (n,). Where they cancel each other, as those of a cable with crossed wires, the first of
    those that are about as loud as any: codecs change how loud each is, and a second from another one would click."""
    if len(channels) == 1:
        return channels[0]
    mean = np.add(*channels[:2])
    for channel in channels[2:]:
        mean += channel
    mean *= np.float32(1 / len(channels))
    powers = [channel[::JUDGED].var() for channel in channels]
    if mean[::JUDGED].var() < CANCELLED * sum(powers) / len(channels) ** 2:
        return next(channel for channel, power in zip(channels, powers, strict=True) if power >= max(powers) / 2)
    return mean


def _resampled(seconds: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """Bring blocks of any rate to 16 kHz. A rate that changes midway is followed."""
    rate, resampler = 0, None
    for block_rate, samples in seconds:
        if block_rate != rate:
            yield from _flush(resampler)
            rate = block_rate
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None
        yield from _convert(resampler, samples, last=False)
    yield from _flush(resampler)


def _flush(resampler: soxr.ResampleStream | None) -> Iterator[np.ndarray]:
    if resampler:
        yield from _convert(resampler, np.zeros(0, np.float32), last=True)


def _convert(resampler: soxr.ResampleStream | None, block: np.ndarray, last: bool) -> Iterator[np.ndarray]:
    if not np.isfinite(block).all():  # float WAV can hold all of these
        block = np.nan_to_num(block, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
    if resampler:
        block = resampler.resample_chunk(block, last=last)
    if len(block):
        yield block
