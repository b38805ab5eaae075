"""What a file leaves out: its words keep their times, and what is missing is told."""

from __future__ import annotations

import base64
import io
import statistics

import av
import numpy as np
import pytest

from audio_processor import SAMPLE_RATE, AudioError, AudioFile, AudioLimits
from tests.serving import Server
from tests.speech import clip, encode
from transcript import Gap

TONE = np.full(4 * SAMPLE_RATE, 0.25, np.float32)
HOUR = AudioLimits(seconds=3600)


def decoded(data: bytes, limits: AudioLimits = HOUR) -> tuple[np.ndarray, tuple[Gap, ...]]:
    audio = AudioFile(io.BytesIO(data), limits)
    try:
        return np.concatenate(list(audio.blocks())), audio.gaps
    finally:
        audio.close()


def placed(container: str, codec: str, *starts: float, picture: bool = False) -> bytes:
    """A second of TONE at each of the `starts`, in seconds; with a picture that is there from the beginning."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        if picture:
            video = output.add_stream("mpeg4", rate=1, width=64, height=64)
            shown = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            output.mux(video.encode(shown))
            output.mux(video.encode(None))
        samples = TONE if stream.format.name == "fltp" else (TONE * 2**15).astype(np.int16)
        for start in starts:
            for at in range(0, SAMPLE_RATE, 1000):
                frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1000], stream.format.name, "mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE, round(start * SAMPLE_RATE) + at
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def heard(samples: np.ndarray) -> list[int]:
    """The seconds in which there is sound."""
    return [second for second in range(len(samples) // SAMPLE_RATE) if samples[int((second + 0.5) * SAMPLE_RATE)] > 0.1]


@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("mov", "pcm_s16le")])
def test_a_track_that_begins_later_than_the_picture_keeps_its_times(container: str, codec: str) -> None:
    samples, gaps = decoded(placed(container, codec, 3, picture=True))
    assert heard(samples) == [3]
    assert gaps == ()


def test_what_was_not_recorded_is_silence_and_is_told() -> None:
    samples, gaps = decoded(placed("matroska", "pcm_s16le", 5, 8))
    assert heard(samples) == [5, 8]
    assert gaps == (Gap(6000, 8000),)


def test_a_short_pause_is_silence_and_no_loss() -> None:
    samples, gaps = decoded(placed("matroska", "pcm_s16le", 0, 1.5))
    assert len(samples) == 2.5 * SAMPLE_RATE
    assert gaps == ()


def test_silence_that_is_filled_in_counts_against_the_limit() -> None:
    with pytest.raises(AudioError) as caught:
        decoded(placed("matroska", "pcm_s16le", 0, 3000), AudioLimits(seconds=2000))
    assert caught.value.code == "audio_too_long"


def test_a_broadcast_counts_from_its_first_frame_and_may_change_its_clock() -> None:
    parts = [(500, 503), (900,), (20,)]
    data = b"".join(placed("mpegts", "mp2", *starts) for starts in parts)
    samples, gaps = decoded(data, AudioLimits(seconds=10**6))  # FFmpeg takes the first and the last time for its length
    assert heard(samples)[:2] == [0, 3]
    assert len(samples) == pytest.approx(6 * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE)
    assert [round(gap.end_ms - gap.start_ms, -2) for gap in gaps] == [2000]


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("webm", "libopus"), ("wav", "pcm_s16le")])
def test_a_file_that_was_cut_lacks_what_its_header_promises(container: str, codec: str) -> None:
    whole = encode(TONE, container, codec)
    assert decoded(whole)[1] == ()
    samples, (gap,) = decoded(whole[: len(whole) // 2])
    assert gap.start_ms == pytest.approx(1000 * len(samples) / SAMPLE_RATE, abs=1)
    assert gap.end_ms == pytest.approx(4000, abs=50)


def test_a_wav_header_that_was_written_before_its_size_was_known_promises_nothing() -> None:
    data = bytearray(encode(TONE, "wav", "pcm_s16le"))
    for unknown in (0, 0x7FFFF024, 0xFFFFFFFF):
        data[4:8] = unknown.to_bytes(4, "little")
        assert decoded(bytes(data))[1] == ()


def test_words_behind_a_damaged_part_keep_their_times_and_a_warning_names_it(server: Server) -> None:
    whole = clip("dense_0")
    damaged = bytearray(whole.data)
    middle = len(damaged) // 2
    damaged[middle : middle + 3000] = bytes(3000)
    fields = {"model": "whisper-1", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
    answer = server.client.post("/v1/audio/transcriptions", files={"file": bytes(damaged)}, data=fields).json()
    (warning,) = answer["warnings"]
    assert warning["code"] == "audio_incomplete"
    assert (warning["start"], warning["end"]) == (pytest.approx(14, abs=0.1), pytest.approx(16, abs=0.1))
    recording = {"type": "input_audio", "input_audio": {"data": base64.b64encode(damaged).decode(), "format": "ogg"}}
    asked = [{"role": "user", "content": [recording, {"type": "text", "text": "What is this about?"}]}]
    body = {"model": "whisper-1", "messages": asked, "max_tokens": 2, "n": 2}
    assert server.client.post("/v1/chat/completions", json=body).json()["warnings"] == [warning]
    last = [1000 * word["start"] for word in answer["words"]][-8:]
    assert abs(statistics.median(np.subtract(last, whole.starts_ms[-8:]))) < 300
