from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import audio_processor
from audio_processor import SAMPLE_RATE, AudioError, AudioFile, AudioLimits
from tests.speech import browser_recording, clip, encode, wav

SPEECH = clip("voice_en-us").samples()
HOUR = AudioLimits(seconds=3600)


def decode(data: bytes, limits: AudioLimits = HOUR) -> np.ndarray:
    audio = AudioFile(io.BytesIO(data), limits)
    try:
        return np.concatenate(list(audio.blocks()))
    finally:
        audio.close()


def similarity(heard: np.ndarray, original: np.ndarray = SPEECH) -> float:
    """Largest normalised cross-correlation: 1 for the same sound, whatever its delay (codecs add some)."""
    n = 1 << (len(heard) + len(original)).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, n) * np.conj(np.fft.rfft(original, n)))
    return float(product.max() / (np.linalg.norm(heard) * np.linalg.norm(original)))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
@pytest.mark.parametrize("container", ["WAV", "AIFF"])
def test_every_wav_and_aiff_sample_format_is_decoded(container: str, subtype: str) -> None:
    if (container, subtype) == ("AIFF", "PCM_U8"):
        subtype = "PCM_S8"
    heard = decode(wav(SPEECH, subtype=subtype, container=container))
    assert len(heard) == len(SPEECH)
    assert heard.dtype == np.float32
    assert similarity(heard) > 0.99
    assert np.abs(heard).max() == pytest.approx(np.abs(SPEECH).max(), rel=0.1)


@pytest.mark.parametrize(
    ("container", "codec", "least"),
    [
        ("flac", "flac", 0.999), ("mp3", "libmp3lame", 0.95), ("ogg", "libopus", 0.9),
        ("ipod", "aac", 0.95), ("mp4", "aac", 0.95), ("adts", "aac", 0.95), ("webm", "libopus", 0.9),
    ],
)  # fmt: skip
def test_every_compressed_format_is_decoded(container: str, codec: str, least: float) -> None:
    heard = decode(encode(SPEECH, container, codec))
    assert len(heard) == pytest.approx(len(SPEECH), abs=0.15 * SAMPLE_RATE)
    assert similarity(heard) > least


def test_ogg_vorbis_is_decoded() -> None:
    heard = decode(wav(SPEECH, container="OGG", subtype="VORBIS"))
    assert len(heard) == pytest.approx(len(SPEECH), abs=0.1 * SAMPLE_RATE)
    assert similarity(heard) > 0.95


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_becomes_16_khz(rate: int) -> None:
    t = np.arange(2 * rate) / rate
    heard = decode(wav((0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), rate=rate))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
    assert len(heard) == pytest.approx(len(expected), abs=2)
    middle = slice(1600, -1600)
    assert np.abs(heard[middle] - expected[: len(heard)][middle]).max() < 0.002


def test_what_lies_above_8_khz_does_not_fold_back() -> None:
    t = np.arange(2 * 48_000) / 48_000
    heard = decode(wav((0.5 * np.sin(2 * np.pi * 11_000 * t)).astype(np.float32), rate=48_000))
    assert np.abs(heard[1600:-1600]).max() < 0.001


@pytest.mark.parametrize("channels", [2, 3, 6, 16])
def test_channels_are_averaged(channels: int) -> None:
    samples = np.zeros((len(SPEECH), channels), np.float32)
    samples[:, 0] = SPEECH
    heard = decode(wav(samples, subtype="FLOAT"))
    assert np.allclose(heard, SPEECH / channels, atol=1e-6)


@given(
    gains=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6),
    alike=st.floats(-0.5, 1),
    seconds=st.integers(1, 3),
    silent=st.booleans(),
    seed=st.integers(0, 99),
)
def test_channels_that_do_not_cancel_are_averaged_to_the_last_bit(
    gains: list[float], alike: float, seconds: int, silent: bool, seed: int
) -> None:
    """From what is the same in all channels to what is the opposite in half of the power, and with silence between."""
    random = np.random.default_rng(seed)
    own = random.standard_normal((seconds * SAMPLE_RATE, len(gains)))
    signs = np.where(np.arange(len(gains)) % 2, np.sign(alike), 1)
    common = random.standard_normal((len(own), 1)) * signs
    samples = (0.1 * np.array(gains) * (abs(alike) * common + (1 - abs(alike)) * own)).astype(np.float32)
    if silent:
        samples[len(own) // 4 : len(own) // 2] = 0
    total = samples[:, 0].copy()
    for channel in samples.T[1:]:
        total += channel
    assert np.array_equal(decode(wav(samples, subtype="FLOAT")), total * np.float32(1 / len(gains)))


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "DOUBLE"), ("OGG", "VORBIS")]
)
@pytest.mark.parametrize(
    "others", [[-1], [-0.9], [-1, 0], [-1, 0, 0, 0, 0]], ids=["opposite", "uneven", "three", "surround"]
)
@pytest.mark.parametrize("offset", [0, 0.05])
def test_channels_in_opposite_phase_do_not_make_silence(
    container: str, subtype: str, others: list[float], offset: float
) -> None:
    samples = SPEECH[:, None] * np.array([1, *others]) + offset
    heard = decode(wav(samples, subtype=subtype, container=container))
    heard -= heard.mean()
    assert similarity(heard) > 0.95
    assert np.linalg.norm(heard) > 0.8 * np.linalg.norm(SPEECH)


def test_seconds_in_opposite_phase_are_all_of_the_same_channel() -> None:
    """Of two that are now and then louder than each other, as codecs make them: another sign would click."""
    swell = 1 + 0.05 * np.sin(np.arange(len(SPEECH)) / SAMPLE_RATE * 3)
    samples = np.stack([SPEECH * swell, -SPEECH / swell], axis=1)
    assert np.allclose(decode(wav(samples, subtype="FLOAT")), samples[:, 0], atol=1e-6)


def test_webm_without_a_duration_is_decoded_to_its_end() -> None:
    recording = browser_recording(SPEECH)
    audio = AudioFile(io.BytesIO(recording), HOUR)
    assert audio.declared_seconds is None
    assert similarity(np.concatenate(list(audio.blocks()))) > 0.9
    audio.close()


def test_not_a_number_in_float_audio_becomes_silence() -> None:
    samples = SPEECH.copy()
    samples[1000:1100] = np.nan
    samples[2000] = np.inf
    heard = decode(wav(samples, subtype="FLOAT"))
    assert np.isfinite(heard).all()
    assert not heard[1000:1100].any()


def test_blocks_are_small_however_long_the_file_is() -> None:
    audio = AudioFile(io.BytesIO(wav(np.zeros(120 * 44_100, np.float32), rate=44_100)), HOUR)
    sizes = [len(block) for block in audio.blocks()]
    audio.close()
    assert max(sizes) <= 1.5 * SAMPLE_RATE
    assert sum(sizes) == 120 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [1, 999, 768_001, 100_000_000])
def test_a_rate_that_no_recording_has_is_refused(rate: int) -> None:
    """A header that claims 100 MHz would have 400 MB held for a second; 1 Hz makes hours of 1 KB."""
    error = error_of(wav(np.zeros(1000, np.float32), rate=rate, subtype="PCM_U8"))
    assert error.code == "audio_unsupported"
    assert f"{rate} Hz" in str(error)


def test_blocks_are_smaller_where_there_are_many_channels_at_a_high_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    mono = audio_processor._mono
    monkeypatch.setattr(
        audio_processor, "_mono", lambda frames: held.append(sum(f.samples for f in frames)) or mono(frames)
    )
    assert len(decode(wav(np.zeros((768_000, 8), np.float32), rate=768_000, subtype="PCM_U8"))) == SAMPLE_RATE
    assert max(held) * 8 < 1.5 * audio_processor.MOST_HELD


def error_of(data: bytes, limits: AudioLimits = HOUR) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(data, limits)
    return caught.value


def silent_video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10, width=64, height=64)
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("audio_empty", b""),
        ("audio_too_short", wav(SPEECH[:1000])),
        ("audio_damaged", wav(SPEECH)[:44]),
        ("audio_damaged", encode(SPEECH, "ipod", "aac")[:3000]),
        ("audio_damaged", b"RIFF" + b"\0" * 200),
        ("audio_unsupported", b"Dear diary, this is text and no audio. " * 50),
        ("audio_unsupported", bytes(range(256)) * 100),
        ("audio_missing", silent_video()),
    ],
)
def test_each_kind_of_bad_audio_has_its_own_code(code: str, data: bytes) -> None:
    error = error_of(data)
    assert error.code == code
    assert str(error)[-1] == "."


def test_a_declared_length_over_the_limit_is_refused_without_decoding() -> None:
    audio = wav(np.zeros(20 * SAMPLE_RATE, np.float32))
    with pytest.raises(AudioError) as caught:
        AudioFile(io.BytesIO(audio), AudioLimits(seconds=10))
    assert caught.value.code == "audio_too_long"


def test_a_small_file_that_unpacks_to_more_than_is_allowed_is_refused_while_reading() -> None:
    bomb = browser_recording(np.zeros(120 * SAMPLE_RATE, np.float32))
    assert len(bomb) < 80_000
    read: list[int] = []
    audio = AudioFile(io.BytesIO(bomb), AudioLimits(seconds=100))
    with pytest.raises(AudioError) as caught:
        read.extend(len(block) for block in audio.blocks())
    audio.close()
    assert caught.value.code == "audio_too_long"
    assert sum(read) <= 100 * SAMPLE_RATE


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
)
def test_files_that_point_to_other_files_are_not_followed(playlist: bytes) -> None:
    assert error_of(playlist).code == "audio_unsupported"
