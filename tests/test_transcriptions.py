"""The transcription endpoint through its own HTTP: limits, bad input, long files, clients that leave."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.serving import DEMOS, Server
from tests.speech import assert_heard, browser_recording, clip, wav, word_errors

URL = "/v1/audio/transcriptions"


def post(server: Server, data: bytes, **fields: Any) -> httpx.Response:
    return server.client.post(URL, files={"file": data}, data={"model": "whisper-1", **fields})


def assert_error(response: httpx.Response, status: int, code: str, param: str | None) -> None:
    """OpenAI's envelope, whole, and a message that a person can act on."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert len(error["message"]) > 20
    assert response.json()["detail"] == error["message"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": "xml"}, "invalid_value", "response_format"),
        ({"response_format": "diarized_json"}, "unsupported_value", "response_format"),
        ({"response_format": "srt", "stream": "true"}, "unsupported_value", "response_format"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"temperature": "1.5"}, "invalid_value", "temperature"),
        ({"temperature": "nan"}, "invalid_value", "temperature"),
        ({"language": "klingon"}, "invalid_value", "language"),
        ({"stream": "perhaps"}, "invalid_value", "stream"),
        ({"diarize": "true"}, "unsupported_value", "diarize"),
        ({"timestamp_granularities[]": "letter"}, "invalid_value", "timestamp_granularities"),
        (
            {"timestamp_granularities[]": "word", "response_format": "text"},
            "unsupported_value",
            "timestamp_granularities",
        ),
        ({"include[]": "everything"}, "invalid_value", "include"),
        ({"include[]": "logprobs", "response_format": "srt"}, "unsupported_value", "include"),
        ({"top_logprobs": "2"}, "invalid_value", "top_logprobs"),
        ({"include[]": "logprobs", "top_logprobs": "6"}, "invalid_value", "top_logprobs"),
        ({"include[]": "logprobs", "top_logprobs": "-1"}, "invalid_value", "top_logprobs"),
        ({"include[]": "logprobs", "top_logprobs": "few"}, "invalid_value", "top_logprobs"),
        ({"languages[]": ["en", "de"]}, "unsupported_value", "languages"),
        ({"seed": "1.5"}, "invalid_value", "seed"),
        ({"known_speaker_names[]": "Ann"}, "unsupported_value", "known_speaker_names"),
        ({"chunking_strategy": "by_hand"}, "invalid_value", "chunking_strategy"),
        ({"chunking_strategy": "{broken"}, "invalid_value", "chunking_strategy"),
        (
            {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "1.5"},
            "invalid_value",
            "chunking_strategy.threshold",
        ),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_refused_by_name(
    server: Server, fields: dict[str, str], code: str, param: str
) -> None:
    assert_error(post(server, clip("short_0").data, **fields), 400, code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"language": "en-US"}, {"language": "English"}, {"language": "auto"}, {"language": ""}, {"stream": "null"},
        {"stream": "False"}, {"temperature": ""}, {"timestamp_granularities[]": "segment"}, {"diarize": "false"},
        {"chunking_strategy": "auto"}, {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.5"},
        {"chunking_strategy": '{"type": "server_vad", "silence_duration_ms": 200}'}, {"languages[]": "en"},
        {"keywords[]": ["red", "gray"]}, {"context_bias": "red,gray"}, {"keywords": '["red"]'},
        {"some_field_of_tomorrow": "1"}, {"response_format": "null"},
    ],
)  # fmt: skip
def test_the_ways_in_which_clients_write_fields_are_understood(server: Server, fields: dict[str, str]) -> None:
    response = post(server, clip("short_0").data, **fields)
    assert response.status_code == 200, response.text
    assert response.json()["text"]


def test_what_vllm_adds_is_obeyed(server: Server) -> None:
    """A cap on tokens, and how they are drawn: penalties that leave the model no word it has said before."""
    capped = post(server, clip("voice_en-us").data, max_completion_tokens="3").json()
    assert capped["usage"]["output_tokens"] == 3
    words = post(server, clip("dense_1").data).json()["text"].split()
    others = post(server, clip("dense_1").data, repetition_penalty="10", frequency_penalty="2").json()["text"].split()
    assert others != words
    assert_error(post(server, clip("dense_1").data, top_p="7"), 400, "invalid_value", "top_p")
    assert_error(
        post(server, clip("dense_1").data, max_completion_tokens="0"), 400, "invalid_value", "max_completion_tokens"
    )


@pytest.mark.parametrize("model", DEMOS)
def test_the_likeliest_tokens_stand_beside_each_where_they_are_asked_for(server: Server, model: str) -> None:
    """In whole answers and in the events of a stream, which have the same tokens."""
    fields = {"model": model, "include[]": "logprobs", "top_logprobs": "3", "keywords[]": "grey"}
    scores = post(server, clip("short_0").data, **fields).json()["logprobs"]
    lines = post(server, clip("short_0").data, stream="true", **fields).text.splitlines()
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [score for delta in deltas for score in delta["logprobs"]] == done["logprobs"] == scores
    for score in scores:
        top = score["top_logprobs"]
        assert [*top[0]] == ["token", "logprob", "bytes"]
        assert [other["logprob"] for other in top] == sorted((other["logprob"] for other in top), reverse=True)
        assert score["token"] in [other["token"] for other in top]
        assert len(top) == 3
    plain = post(server, clip("short_0").data, model=model, **{"include[]": "logprobs"}).json()
    assert [score["token"] for score in plain["logprobs"]] == [score["token"] for score in scores]
    assert not any("top_logprobs" in score for score in plain["logprobs"])


def test_the_same_path_works_without_v1(server: Server) -> None:
    data = {"model": "whisper-1"}
    response = server.client.post("/audio/transcriptions", files={"file": clip("short_0").data}, data=data)
    assert response.status_code == 200


def test_a_missing_file_model_or_readable_body_is_named(server: Server) -> None:
    assert_error(server.client.post(URL, data={"model": "whisper-1"}), 400, "missing_file", "file")
    assert_error(server.client.post(URL, json={"model": "whisper-1"}), 400, "missing_file", "file")
    assert_error(server.client.post(URL, files={"file": b"x"}), 400, "missing_model", "model")
    assert_error(
        server.client.post(URL, files={"file": b"x"}, data={"model": "gpt-2"}), 404, "model_not_found", "model"
    )
    response = server.client.post(URL, content=b"{", headers={"Content-Type": "application/json"})
    assert response.json()["error"]["code"] == "invalid_json"
    assert server.client.post(URL, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    broken = server.client.post(URL, content=b"x", headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert broken.status_code == 400


def test_several_recordings_in_one_request_are_refused(server: Server) -> None:
    clips = [("file", clip(name).data) for name in ("short_0", "short_1")]
    assert_error(server.client.post(URL, data={"model": "whisper-1"}, files=clips), 400, "invalid_value", "file")
    both = {"model": "whisper-1", "file": "AAAA", "audio": "AAAA"}
    assert_error(server.client.post(URL, json=both), 400, "invalid_value", "file")


def test_a_prompt_that_the_model_cannot_read_is_named(server: Server) -> None:
    answer = post(server, clip("short_0").data, prompt="xyz " * 40_000)
    assert_error(answer, 400, "context_length_exceeded", "prompt")


@pytest.mark.parametrize("audio", ["not base64!", "https://example.org/a.wav", 7, ["x"]])
def test_json_audio_that_is_not_base64_is_refused(server: Server, audio: object) -> None:
    response = server.client.post(URL, json={"model": "whisper-1", "audio": audio})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "audio"


def test_data_urls_and_wrapped_base64_are_accepted(server: Server) -> None:
    text = base64.encodebytes(clip("voice_en-us").data).decode()
    for audio in (text, "data:audio/flac;base64," + text.replace("\n", "")):
        response = server.client.post(URL, json={"model": "whisper-1", "file": audio, "language": "en"})
        assert_heard(clip("voice_en-us").words, response.json()["text"])


def test_bad_audio_is_refused_before_a_stream_begins(server: Server) -> None:
    response = post(server, b"no audio", stream="true")
    assert_error(response, 400, "audio_unsupported", "file")


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """A server that takes one request at a time, and little in it, and hears it in short chunks."""
    limits = {"MAX_AUDIO_SIZE_MB": "1", "MAX_AUDIO_DURATION_SECONDS": "40", "AUDIO_CHUNK_SIZE_SECONDS": "5"}
    limits["MAX_CONCURRENT_REQUESTS"] = "1"
    with Server("--demo", **limits) as running:
        yield running


def test_limits_on_bytes_and_seconds_hold(strict: Server) -> None:
    """For a file, for base64, and for a body that only grows; the last one must not be read to its end."""
    minute = wav(np.zeros(60 * 16_000, np.float32), subtype="PCM_U8")
    assert_error(post(strict, minute), 413, "audio_too_long", "file")
    large = wav(np.zeros(20 * 48_000, np.float32), rate=48_000)
    assert_error(post(strict, large), 413, "audio_too_large", "file")
    encoded = base64.b64encode(large).decode()
    response = strict.client.post(URL, json={"model": "whisper-1", "audio": encoded})
    assert_error(response, 413, "audio_too_large", "audio")

    connection = http.client.HTTPConnection(strict.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", URL)
    connection.putheader("Content-Length", "10000000000")
    connection.endheaders()  # and not a byte of the body
    assert connection.getresponse().status == 413
    connection.close()

    def endless() -> Any:
        for _ in range(40):
            yield b" " * 1_000_000

    connection = http.client.HTTPConnection(strict.url.removeprefix("http://"), timeout=30)
    kind = {"Content-Type": "application/json"}
    try:
        connection.request("POST", URL, endless(), kind, encode_chunked=True)
        status = connection.getresponse().status
    except ConnectionError:
        status = 413  # refused while the client still wrote, which cuts the connection
    assert status == 413
    connection.close()
    assert strict.wait_until(lambda health: health["requests"] == 0)


def long_recording(seconds: int = 300) -> tuple[bytes, str]:
    """So much of the committed speech with pauses between, as 16-bit WAV, and its words."""
    pieces, words = [], []
    names = [clip(name) for name in ("gain0", "voice_en-us", "gain-10", "voice_en-us+m1", "gain-20", "voice_en-us+m8")]
    while sum(map(len, pieces)) < seconds * 16_000:
        spoken = names[len(words) % len(names)]
        samples = spoken.samples()
        pieces += [samples / np.abs(samples).max() * 0.5, np.zeros(8_000, np.float32)]
        words.append(spoken.words)
    return wav(np.concatenate(pieces)), " ".join(words)


def test_five_minutes_stream_in_order_with_little_memory(server: Server) -> None:
    audio, words = long_recording()
    post(server, clip("minute").data)  # what the first request allocates is not what the file costs
    process = psutil.Process(server.process.pid)
    before = most = process.memory_info().rss
    text, first_delta_at, started = "", None, time.monotonic()
    with server.client.stream(
        "POST", URL, files={"file": audio}, data={"model": "whisper-1", "stream": "true", "language": "en"}
    ) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event["type"] == "transcript.text.delta":
                    first_delta_at = first_delta_at or time.monotonic() - started
                    text += event["delta"]
                most = max(most, process.memory_info().rss)
    total = time.monotonic() - started
    assert word_errors(words, text) <= 0.05 * len(words.split())
    assert event["type"] == "transcript.text.done"
    assert event["text"] == text
    assert event["usage"]["prompt_audio_seconds"] >= 300
    assert most - before < 200e6
    assert first_delta_at < total / 2  # an order of events, not a speed


def test_stereo_in_opposite_phase_is_heard(server: Server) -> None:
    """As of a cable whose wires are crossed, where the mean of the channels is silence."""
    spoken = clip("dense_0")
    samples = spoken.samples()
    crossed = np.stack([samples, -samples], axis=1)
    assert_heard(spoken.words, post(server, wav(crossed), response_format="text").text)
    assert_heard(spoken.words, post(server, wav(crossed, container="OGG", subtype="VORBIS")).json()["text"])


def test_segments_of_a_long_file_are_in_order_and_inside_it(server: Server) -> None:
    audio, _ = long_recording(seconds=90)
    verbose = post(server, audio, response_format="verbose_json").json()
    segments = verbose["segments"]
    assert len(segments) >= 5
    assert all(a["end"] <= b["start"] for a, b in pairwise(segments))
    assert segments[-1]["end"] <= verbose["duration"]
    assert " ".join(s["text"] for s in segments) == verbose["text"]


def test_a_client_that_leaves_frees_its_rows(server: Server) -> None:
    """Both a stream that is dropped midway and a plain request whose connection closes."""
    audio, _ = long_recording()
    for stream in ("true", "false"):
        host = server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        request = httpx.Request(
            "POST", server.url + URL, files={"file": audio}, data={"model": "whisper-1", "stream": stream}
        )
        body = request.read()
        connection.request("POST", URL, body, {"Content-Type": request.headers["Content-Type"]})
        server.wait_until(lambda health: health["chunks_running"] > 0)
        connection.close()
        server.wait_until(lambda h: h["chunks_running"] == h["chunks_waiting"] == h["requests"] == 0, seconds=10)


def test_health_answers_while_the_model_works(server: Server) -> None:
    audio, _ = long_recording()
    answered = 0
    with server.client.stream("POST", URL, files={"file": audio}, data={"model": "whisper-1", "stream": "true"}) as r:
        for _ in r.iter_lines():
            answered += server.health()["model_loaded"]
            if answered == 20:
                break
    assert answered == 20


def test_a_fault_in_the_middle_of_a_file_is_no_part_of_the_transcript(strict: Server) -> None:
    """With chunks of 5 s the first ones are fine when the file turns out to be longer than allowed."""
    spoken = np.concatenate([clip("dense_0").samples(), clip("dense_1").samples()])
    recording = browser_recording(spoken)
    assert_error(post(strict, recording), 413, "audio_too_long", "file")
    events = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        strict.client.stream(
            "POST", URL, files={"file": recording}, data={"model": "whisper-1", "stream": "true"}
        ) as response,
    ):
        events.extend(
            json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: ")
        )
    assert events[0]["type"] == "transcript.text.delta"
    assert events[-1]["error"]["code"] == "audio_too_long"
    assert not any("longer than" in event.get("delta", "") for event in events)
    assert strict.wait_until(lambda health: health["requests"] == 0)


def test_one_request_too_many_is_told_to_come_back(strict: Server) -> None:
    def assert_full() -> None:
        with httpx.Client(base_url=strict.url, timeout=30) as other:
            response = other.post(URL, files={"file": clip("short_0").data}, data={"model": "whisper-1"})
        assert_error(response, 429, "rate_limit_exceeded", None)
        assert 1 <= int(response.headers["retry-after"]) <= 30

    audio = clip("dense_0").data
    with strict.client.stream("POST", URL, files={"file": audio}, data={"model": "whisper-1", "stream": "true"}):
        assert_full()
    strict.wait_until(lambda health: health["requests"] == 0)
    uploading = http.client.HTTPConnection(strict.url.removeprefix("http://"), timeout=30)
    uploading.putrequest("POST", URL)
    uploading.putheader("Content-Type", "application/json")
    uploading.putheader("Content-Length", "100")
    uploading.endheaders(b"{")
    strict.wait_until(lambda health: health["requests"] == 1)
    assert_full()
    uploading.close()
    strict.wait_until(lambda health: health["requests"] == 0)


def test_unknown_paths_and_methods_have_the_envelope_too(server: Server) -> None:
    assert server.client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert server.client.get(URL).status_code == 405
    assert server.client.get("/openapi.json").status_code == 200


def test_the_clients_own_request_id_comes_back(server: Server) -> None:
    assert server.client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert server.client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req_")
