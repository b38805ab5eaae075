"""Voice activity through the server: where nobody speaks no model works, and clients may say what speech is."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving import Server
from tests.speech import SAMPLE_RATE, assert_heard, clip, clips_of, wav
from tests.test_voice_activity import sounds

URL = "/v1/audio/transcriptions"


def post(server: Server, data: bytes, **fields: Any) -> httpx.Response:
    return server.client.post(URL, files={"file": data}, data={"model": "whisper-1", "language": "en", **fields})


def verbose(server: Server, samples: np.ndarray, **fields: Any) -> dict[str, Any]:
    return post(server, wav(samples), response_format="verbose_json", **fields).json()


def metric(server: Server, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def pause(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def test_what_is_no_speech_gives_no_text_and_costs_no_model_time(server: Server) -> None:
    before = metric(server, 'voxtral_tokens_total{kind="audio"}')
    recordings = [wav(sound * np.float32(0.5)) for sound in sounds().values()]
    for data in [*recordings, *(silent.data for silent in clips_of("no speech"))]:
        answer = post(server, data).json()
        assert answer["text"] == ""
        assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (0, 0)
        assert answer["usage"]["prompt_audio_seconds"] >= 3
    assert metric(server, 'voxtral_tokens_total{kind="audio"}') == before


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt", "verbose_json"])
def test_a_silent_recording_is_an_empty_transcript_in_every_format(server: Server, response_format: str) -> None:
    answer = post(server, wav(pause(12)), response_format=response_format)
    assert answer.status_code == 200
    if response_format == "verbose_json":
        body = answer.json()
        assert (body["text"], body["segments"], body["duration"]) == ("", [], 12)
    else:
        assert answer.text.strip() == ("WEBVTT" if response_format == "vtt" else "")


def test_a_stream_of_silence_ends_with_an_empty_text(server: Server) -> None:
    lines = post(server, wav(pause(3)), stream="true").text.splitlines()
    (event,) = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert (event["type"], event["text"]) == ("transcript.text.done", "")


def test_times_are_true_and_silence_counts_as_audio_but_is_not_heard(server: Server) -> None:
    spoken = clip("voice_en-us")
    samples = np.concatenate([pause(20), spoken.samples(), pause(10), spoken.samples(), pause(30)])
    names = ("voxtral_audio_seconds_total", "voxtral_silence_seconds_total", 'voxtral_tokens_total{kind="audio"}')
    before = [metric(server, name) for name in names]
    answer = verbose(server, samples)
    assert_heard(f"{spoken.words} {spoken.words}", answer["text"])
    first, second = answer["segments"]
    assert 20 <= first["start"] < 21 < 23 < first["end"] <= 25
    assert 35 <= second["start"] < 36 < 38 < second["end"] <= 40
    assert answer["duration"] == 70
    seconds, silence, tokens = (metric(server, name) - value for name, value in zip(names, before, strict=True))
    assert (round(seconds), 59 <= silence <= 64) == (70, True)
    assert tokens == 2 * 375  # a window of 30 s for each


@pytest.mark.parametrize("peak", [0.02, 0.005])
def test_quiet_speech_is_heard_beside_silence(server: Server, peak: float) -> None:
    for name in ("voice_en-us", "voice_en-us+m8"):
        samples = clip(name).samples()
        quiet = np.concatenate([pause(6), samples * (peak / np.abs(samples).max()), pause(6)])
        assert_heard(clip(name).words, verbose(server, quiet)["text"])


@pytest.mark.parametrize(
    "spelling",
    [
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "1"},
        {"chunking_strategy": '{"type": "server_vad", "threshold": 1}'},
    ],
)
def test_a_threshold_that_nothing_reaches_leaves_nothing(server: Server, spelling: dict[str, str]) -> None:
    answer = post(server, clip("short_0").data, **spelling).json()
    assert (answer["text"], answer["usage"]["input_tokens"]) == ("", 0)


def test_parameters_in_json_are_obeyed_as_those_of_a_form(server: Server) -> None:
    """A threshold of 0 takes everything for speech: the whole silence is heard, in one piece."""
    vad = {"type": "server_vad", "threshold": 0, "prefix_padding_ms": 0, "silence_duration_ms": 500}
    files = {"file": ("silence.wav", wav(pause(2)))}
    fields = {f"chunking_strategy[{name}]": str(value) for name, value in vad.items()}
    asked = server.client.post(URL, files=files, data={"model": "whisper-1", **fields}).json()
    assert asked["usage"]["prompt_audio_seconds"] == 2
    assert asked["usage"]["input_tokens"] > 375
    encoded = base64.b64encode(wav(pause(2))).decode()
    body = {"model": "whisper-1", "file": encoded, "chunking_strategy": vad}
    assert server.client.post(URL, json=body).json()["usage"] == asked["usage"]
    vad["threshold"] = "much"
    error = server.client.post(URL, json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "chunking_strategy.threshold")


def test_the_length_of_silence_decides_how_many_segments_there_are(server: Server) -> None:
    """Ten seconds of a pause end a chunk, unless as long a silence is asked for."""
    spoken = clip("voice_en-us").samples()
    samples = np.concatenate([spoken[: 4 * SAMPLE_RATE], pause(6.5), spoken[: 4 * SAMPLE_RATE]])
    assert len(verbose(server, samples)["segments"]) == 2
    longer = {"chunking_strategy": '{"type": "server_vad", "silence_duration_ms": 8000}'}
    assert len(verbose(server, samples, **longer)["segments"]) == 1


def test_as_much_as_is_asked_for_is_heard_before_speech(server: Server) -> None:
    samples = np.concatenate([pause(5), clip("voice_en-us").samples()])

    def silence(**fields: str) -> float:
        before = metric(server, "voxtral_silence_seconds_total")
        post(server, wav(samples), **{"chunking_strategy[type]": "server_vad", **fields}).raise_for_status()
        return metric(server, "voxtral_silence_seconds_total") - before

    paddings = [{"chunking_strategy[prefix_padding_ms]": str(ms)} for ms in (0, 300, 2300)]
    none, usual, more = (silence(**padding) for padding in paddings)
    assert (none - usual, usual - more) == (pytest.approx(0.3, abs=0.01), pytest.approx(2, abs=0.01))
    assert silence() == pytest.approx(usual)


@pytest.mark.parametrize("spelling", [
    {"chunking_strategy[type]": "server_vad", "chunking_strategy[eagerness]": "high"},
    {"chunking_strategy": '{"type": "server_vad", "threshold": 0.5, "eagerness": null}'},
    {"chunking_strategy": '{"type": "auto", "eagerness": 1}'},
], ids=["form", "json", "auto"])  # fmt: skip
def test_a_parameter_that_nobody_knows_is_refused_by_name(server: Server, spelling: dict[str, str]) -> None:
    error = post(server, clip("short_0").data, **spelling).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_value", "chunking_strategy.eagerness")


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", "-1"), ("prefix_padding_ms", "-1"), ("silence_duration_ms", "99999999")]
)
def test_a_parameter_out_of_bounds_is_refused_by_name(server: Server, name: str, value: str) -> None:
    fields = {"chunking_strategy[type]": "server_vad", f"chunking_strategy[{name}]": value}
    error = post(server, clip("short_0").data, **fields).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", f"chunking_strategy.{name}")
