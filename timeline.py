"""Where the frames of a file stand in time, by the times that its container gives them.

A decoder gives frame after frame, whatever lies between: an audio track that begins after the picture, a pause that was
not recorded, a part that is damaged. This module says how long that is, so that words keep their times.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from transcript import Gap

LEAST_GAP = 0.1  # seconds; times are rounded, and codecs begin with some ms that are not played
TOLD_GAP = 1.0  # seconds; encoders leave out shorter ones where nobody speaks
LONGEST_JUMP = 10.0  # seconds; FFmpeg's own limit, beyond which times of a broadcast belong to another clock
BROADCASTS = ("mpeg", "mpegts")
# Without a header that says how long they are. FFmpeg guesses, by the bit rate or the last time that it finds.
UNKNOWN_SIZE = 0x7FFF0000  # bytes; from there on a WAV header was written before anybody knew
UNDECLARED = ("aac", "amr", "ogg", *BROADCASTS)


class Timeline:
    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self.gaps: list[Gap] = []  # that may have had words, in their order
        self._position = 0.0  # seconds, behind the last frame
        self._has_clocks = container.format.name in BROADCASTS
        length = declared_end(container, stream)
        start = (container.start_time or 0) / av.time_base
        # A start later than the whole length, or without one, is a stream's that somebody has joined midway.
        self._origin = 0.0 if length and start < length else start

    def gap_before(self, frame: AudioFrame) -> float:
        """Seconds without audio between the frame before and `frame`, which becomes the last one."""
        gap = self._gap(frame.time)
        if gap >= TOLD_GAP and self._position:
            self.add_gap(self._position, self._position + gap)
        self._position += gap + frame.samples / frame.sample_rate
        return gap

    def add_gap(self, start: float, end: float) -> None:
        self.gaps.append(Gap(round(start * 1000), round(end * 1000)))

    def _gap(self, time: float | None) -> float:
        if time is None:
            return 0.0
        late = time - self._origin - self._position
        if late < -LONGEST_JUMP or (late > LONGEST_JUMP and self._has_clocks):
            self._origin += late
            return 0.0
        return late if late > LEAST_GAP else 0.0


def declared_end(container: InputContainer, stream: AudioStream) -> float | None:
    """Seconds until the audio ends, if a header says so of the audio itself."""
    name = container.format.name
    # Without the tag of an encoder, which makes its first frame later, the length of an MP3 is guessed by its bit rate.
    if name in UNDECLARED or (name == "mp3" and not stream.start_time):
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1
    return container.duration / av.time_base if container.duration and alone else None


def cut_off(wav: BinaryIO, stream: AudioStream) -> float:
    """Seconds that a WAV file lacks of what its header says, where FFmpeg goes by the size of the file."""
    wav.seek(0)
    head = wav.read(8)
    declared = int.from_bytes(head[4:], "little") + 8
    lacking = declared - wav.seek(0, os.SEEK_END)
    bit_rate = stream.codec_context.bit_rate
    is_known = head.startswith(b"RIFF") and declared < UNKNOWN_SIZE
    return lacking * 8 / bit_rate if is_known and bit_rate and lacking > 0 else 0.0
