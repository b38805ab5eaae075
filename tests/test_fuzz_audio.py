"""Bytes that are no recording, or a damaged one: refused or heard, and never the end of the server."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import FEW, FORM, SHORT, check, form, mutated, nothing_fails, post
from tests.serving import Server
from tests.speech import encode

__all__ = ["nothing_fails"]
pytestmark = pytest.mark.usefixtures("nothing_fails")

PREFIXES = [
    b"RIFF\xff\xff\xff\xffWAVEfmt ", b"RF64", b"fLaC", b"OggS", b"ID3\x04\0\0", b"\0\0\0\x18ftypM4A ",
    b"\x1aE\xdf\xa3", b"FORM\0\0\0\0AIFF", b"\xff\xfb\x90\x64", b"\xff\xf1P\x80", b"caff\0\x01", b"#!AMR\n",
    b"#!AMR-WB\n", b"",
    b"\0\0\x01\xba", b"0&\xb2u\x8ef\xcf\x11", b".snd", b"#EXTM3U\n", b"ffconcat version 1.0\n",
    b"G" + bytes(187) + b"G",
]  # fmt: skip


@FEW
@given(st.sampled_from(PREFIXES), st.binary(max_size=300), st.integers(0, 3))
def test_random_bytes_behind_any_header_are_refused_or_heard(
    server: Server, prefix: bytes, rest: bytes, repeated: int
) -> None:
    check(post(server, form([("model", b"whisper-1")], prefix + rest * 10**repeated), FORM), 200, 400, 413)


@FEW
@given(
    st.tuples(
        st.sampled_from([1, 3, 6, 7, 17, 85, 0xFFFE, 0]),  # format: PCM, float, A-law, mu-law, ADPCM, MP3, ...
        st.sampled_from([0, 1, 2, 7, 255, 65535]),  # channels
        st.sampled_from([0, 1000, 8000, 16000, 10**6, 2**31, 2**32 - 1]),  # rate
        st.sampled_from([0, 7, 2**32 - 1]),  # bytes a second
        st.sampled_from([0, 1, 2, 4, 9, 65535]),  # bytes a frame
        st.sampled_from([0, 1, 3, 8, 16, 24, 32, 64, 65535]),  # bits
    ),
    st.sampled_from([0, 7, 4000, 2**32 - 1]),
    st.integers(0, 20_000),
)
def test_any_wav_header_is_refused_or_heard(server: Server, head: tuple[int, ...], declared: int, length: int) -> None:
    samples = b"data" + struct.pack("<I", declared) + (bytes(range(250)) * 80)[:length]
    data = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", *head) + samples
    check(post(server, form([("model", b"whisper-1")], data), FORM), 200, 400, 413)


DAMAGED = [
    encode(SHORT, container, codec)[:6000]
    for container, codec in [("ogg", "libopus"), ("flac", "flac"), ("mp4", "aac"), ("webm", "libopus"), ("mp3", "mp3")]
]


@FEW
@given(st.sampled_from(DAMAGED).flatmap(mutated))
def test_a_damaged_recording_is_refused_or_heard(server: Server, data: bytes) -> None:
    check(post(server, form([("model", b"whisper-1")], data), FORM), 200, 400, 413)
