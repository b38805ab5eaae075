"""What a server does with unusual settings: it does not look for speech, finds the times of words with an aligner, and
writes some words in one way."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving import Server
from tests.speech import SAMPLE_RATE, assert_heard, clip, wav
from tests.word_starts import start_errors

URL = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    replacements = tmp_path_factory.mktemp("settings") / "replacements.csv"
    replacements.write_text("papa kilo,PK-2\nwindow,Fenster\nfour kilo,4kg\n")
    settings = {"VOXTRAL_VAD": "off", "VOXTRAL_ALIGNER": "demo_aligner", "VOXTRAL_REPLACEMENTS": str(replacements)}
    with Server("--demo", **settings) as running:
        yield running


def post(server: Server, data: bytes, **fields: str | list[str]) -> httpx.Response:
    return server.client.post(URL, files={"file": data}, data={"model": "whisper-1", "language": "en", **fields})


def test_without_detection_the_whole_recording_is_heard(unusual: Server) -> None:
    def metric(name: str) -> float:
        lines = unusual.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    spoken = clip("voice_en-us")
    samples = np.concatenate([spoken.samples(), np.zeros(12 * SAMPLE_RATE, np.float32)])
    before = metric('voxtral_tokens_total{kind="audio"}')
    assert_heard(spoken.words, post(unusual, wav(samples), response_format="text").text)
    assert metric('voxtral_tokens_total{kind="audio"}') == before + 2 * 375
    assert metric("voxtral_silence_seconds_total") == 0


def test_without_detection_its_parameters_are_refused_and_auto_is_not(unusual: Server) -> None:
    data = clip("short_0").data
    error = post(unusual, data, **{"chunking_strategy[type]": "server_vad"}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_value", "chunking_strategy")
    assert post(unusual, data, chunking_strategy="auto").json()["text"]


def test_words_begin_to_the_frame_where_an_aligner_finds_them(unusual: Server) -> None:
    """Without voice activity detection, which would tell it where nobody speaks."""
    errors = start_errors(unusual, "unheard voice", "loudness", "long pauses")
    assert len(errors) > 120
    assert np.median(errors) <= 40
    assert np.quantile(errors, 0.95) <= 100
    assert unusual.health()["aligner"] == {"model": "demo_aligner", "state": "loaded", "error": None, "download": None}


def test_replaced_words_are_written_so_in_every_format_and_every_stream(unusual: Server) -> None:
    spoken, written = clip("voice_en-gb+f3"), "six PK-2 morning my Fenster open echo green"
    verbose = post(unusual, spoken.data, response_format="verbose_json").json()
    assert verbose["text"] == post(unusual, spoken.data).json()["text"] == written
    assert " ".join(segment["text"].strip() for segment in verbose["segments"]) == written
    for response_format in ("text", "srt", "vtt"):
        assert {"PK-2", "Fenster"} < set(post(unusual, spoken.data, response_format=response_format).text.split())
    *deltas, done = events(post(unusual, spoken.data, stream="true"))
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == written
    body = {"model": "whisper-1", "audio": base64.b64encode(spoken.data).decode(), "language": "en", "stream": True}
    body["messages"] = [{"role": "user", "content": "Transcribe this audio."}]
    chunks = events(unusual.client.post("/v1/chat/completions", json=body))
    assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]) == written


def test_what_two_chunks_hold_together_is_written_as_one_in_answers_streams_words_and_segments(unusual: Server) -> None:
    data = clip("minute").data
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["segment", "word"]}
    verbose = post(unusual, data, **fields).json()
    assert "september 4kg december" in verbose["text"]
    assert " ".join(segment["text"] for segment in verbose["segments"]) == verbose["text"]
    assert " ".join(word["word"] for word in verbose["words"]) == verbose["text"]
    (joined,) = (word for word in verbose["words"] if word["word"] == "4kg")
    assert joined["start"] < 23.5 < 24 < joined["end"], "a chunk ends between the two words"
    assert sum(segment["start"] <= joined["start"] < segment["end"] for segment in verbose["segments"]) == 1
    *deltas, done = events(post(unusual, data, stream="true"))
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == verbose["text"]
    assert "4kg" in post(unusual, data, response_format="srt").text.split()


def events(response: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(event) for event in data if event != "[DONE]"]
