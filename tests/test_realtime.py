"""The realtime sockets of a real server: what can go wrong with one, who may open one, and many at once."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from socket import SHUT_RDWR
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from api.errors import describe
from api.realtime import MOST_MESSAGE_BYTES, close_code
from api.realtime_openai import MOST_BYTES
from engine.core import EngineStopped, JobFailed
from live import LiveError
from model_manager import ModelUnavailable
from tests.serving import Server
from tests.sockets import SPOKEN, Socket, pcm, pieces, socket
from tests.speech import Clip, assert_heard, clip

MISTRAL = "/v1/audio/transcriptions/realtime?model=voxtral-mini-latest"
APPEND, COMMIT = "input_audio_buffer.append", "input_audio_buffer.commit"
COMPLETED = "conversation.item.input_audio_transcription.completed"
BY_HAND = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": None}
REALTIME = "voxtral-realtime"


def by_hand(model: str = "whisper-1") -> dict[str, Any]:
    return {"audio": {"input": BY_HAND | {"transcription": {"model": model}}}}


def dictate(server: Server, spoken: Clip = SPOKEN, model: str = "whisper-1") -> str:
    """The whole clip, committed by hand."""
    with socket(server) as talk:
        talk.say("session.update", session=by_hand(model))
        for piece in pieces(spoken.samples()):
            talk.say(APPEND, audio=piece)
        talk.say(COMMIT)
        return talk.until(COMPLETED)[-1]["transcript"]


@pytest.mark.parametrize("wrong", [
    b"\x00\x01", "", "hum", "[]", "7", "null", '{"type": 7}', '{"type": "hum"}', "[" * 5000,
    json.dumps({"type": APPEND, "audio": "###"}), json.dumps({"type": COMMIT}),
    json.dumps({"type": APPEND, "audio": base64.b64encode(bytes(MOST_BYTES + 1)).decode()}),
], ids=lambda wrong: str(wrong)[:30])  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/realtime", MISTRAL])
def test_what_is_wrong_is_told_and_the_session_goes_on(server: Server, path: str, wrong: str | bytes) -> None:
    with socket(server, path) as talk:
        assert talk.hear()["type"] == "session.created"
        talk.connection.send(wrong)
        error = talk.hear()
        assert error["type"] == "error"
        assert error["error"]["message"]
        talk.say("session.update", session={})
        assert talk.hear()["type"] == "session.updated"


@pytest.mark.parametrize("cut", [COMMIT, "input_audio_buffer.clear"])
def test_audio_may_be_cut_within_a_sample(server: Server, cut: str) -> None:
    data = bytes(9600) + pcm(SPOKEN.samples())
    with socket(server) as talk:
        talk.say("session.update", session=by_hand())
        talk.say(APPEND, audio=base64.b64encode(data[:6401]).decode())
        talk.say(cut)
        talk.say(APPEND, audio=base64.b64encode(data[6401:]).decode())
        talk.say(COMMIT)
        texts = [talk.until(COMPLETED)[-1]["transcript"] for _ in range(2 if cut == COMMIT else 1)]
    assert_heard(SPOKEN.words, " ".join(texts))


def test_a_commit_of_what_was_cut_just_before_is_told_in_openais_words(server: Server) -> None:
    spoken = by_hand()["audio"]["input"] | {"turn_detection": {"type": "server_vad"}}
    with socket(server) as talk:
        talk.say("session.update", session={"audio": {"input": spoken}})
        talk.say(APPEND, audio=next(pieces(SPOKEN.samples(), 2)))
        talk.say("session.update", session=by_hand())  # ends what turn detection had begun
        talk.say(COMMIT)
        error = next(event for event in iter(talk.hear, None) if event["type"] == "error")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"


def test_turns_are_found_and_told_in_the_order_of_the_conversation(server: Server) -> None:
    spoken = clip("sparse_1")
    with socket(server) as talk:
        talk.say("session.update", session={"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}})
        for piece in pieces(np.append(spoken.samples(), np.zeros(16_000, np.float32))):
            talk.say(APPEND, audio=piece)
        events, heard = [], ""
        while len(heard.split()) < len(spoken.words.split()):
            events += talk.until(COMPLETED)
            heard = " ".join(event["transcript"] for event in events if event["type"] == COMPLETED)
    assert_heard(spoken.words, heard)
    items = dict.fromkeys(event["item_id"] for event in events if event["type"] == COMPLETED)
    assert len(items) > 2
    assert [event["item_id"] for event in events if event["type"] == "input_audio_buffer.committed"] == list(items)
    starts = [event["audio_start_ms"] for event in events if event["type"] == "input_audio_buffer.speech_started"]
    assert all(abs(start - said) < 500 for start, said in zip(starts[:1], spoken.starts_ms, strict=False))
    for item in items:
        mine = [event for event in events if event.get("item_id") == item]
        order = ["speech_started", "speech_stopped", "committed", "completed"]
        assert [name for name in (event["type"].rsplit(".", 1)[-1] for event in mine) if name in order] == order
        assert "".join(event.get("delta", "") for event in mine) == mine[-1]["transcript"]


@pytest.mark.parametrize("model", ["whisper-1", REALTIME])
def test_of_what_is_cleared_nothing_is_told_afterwards_and_what_is_said_next_is_heard(
    server: Server, model: str
) -> None:
    with socket(server) as talk:
        talk.say("session.update", session=by_hand(model))
        talk.say(APPEND, audio=next(pieces(clip("dense_0").samples(), 30)))
        talk.say("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        for piece in pieces(SPOKEN.samples()):
            talk.say(APPEND, audio=piece)
        talk.say(COMMIT)
        events = talk.until(COMPLETED)
        assert len({event["item_id"] for event in events if "item_id" in event}) == 1
        assert_heard(SPOKEN.words, events[-1]["transcript"])


@pytest.mark.parametrize("model", ["whisper-1", REALTIME])
def test_twenty_talk_at_once_and_one_that_is_killed_in_mid_word_harms_no_other(server: Server, model: str) -> None:
    """At the pace of speech: the one is gone while the others are speaking."""
    spoken = [clip(name) for name in ("voice_en-us", "voice_en-gb", "gain-20", "gain-30")] * 5
    all_are_there = Barrier(len(spoken) + 1, timeout=30)

    def speak(talk: Socket, samples: np.ndarray) -> None:
        talk.say("session.update", session=by_hand(model))
        all_are_there.wait()
        for piece in pieces(samples, 0.1):
            talk.say(APPEND, audio=piece)
            time.sleep(0.1)

    def dictate_all(each: Clip) -> str:
        with socket(server) as talk:
            speak(talk, each.samples())
            talk.say(COMMIT)
            return talk.until(COMPLETED)[-1]["transcript"]

    def kill() -> None:
        with socket(server) as talk:
            speak(talk, SPOKEN.samples()[: int(1.3 * 16_000)])
            talk.connection.socket.close()

    with ThreadPoolExecutor(len(spoken) + 1) as threads:
        killed = threads.submit(kill)
        texts = list(threads.map(dictate_all, spoken))
        killed.result()
    for each, text in zip(spoken, texts, strict=True):
        assert_heard(each.words, text)
    server.wait_until(lambda health: health["live_sessions"] == 0)


def test_who_does_not_read_stalls_nobody_else(server: Server) -> None:
    with socket(server) as talk:

        def babble() -> None:
            with suppress(ConnectionClosed, OSError):
                while True:
                    talk.say("session.update", session=by_hand())

        with ThreadPoolExecutor(1) as thread:
            thread.submit(babble)
            assert_heard(SPOKEN.words, dictate(server))
            talk.connection.socket.shutdown(SHUT_RDWR)


@pytest.mark.parametrize("model", ["whisper-1", REALTIME])
def test_a_session_in_another_dialect_ends_with_all_its_text(server: Server, model: str) -> None:
    """vLLM's, twice over one socket; its scripts are all the client that there is."""
    with socket(server, "/v1/realtime") as talk:
        assert talk.hear()["id"].startswith("sess_")
        talk.say("session.update", model=model)
        for _ in range(2):
            talk.say(COMMIT)
            for piece in pieces(SPOKEN.samples()):
                talk.say(APPEND, audio=piece)
            talk.say(COMMIT, final=True)
            *deltas, done = talk.until("transcription.done")
            assert "".join(event.get("delta", "") for event in deltas) == done["text"]
            assert_heard(SPOKEN.words, done["text"])
        talk.say(COMMIT)
        talk.say(COMMIT, final=True)
        assert talk.hear()["text"] == ""


@pytest.mark.parametrize(("path", "code"), [
    ("/v1/realtime?model=gpt-realtime", "model_not_found"), (MISTRAL.replace("mini-latest", "none"), 404),
])  # fmt: skip
def test_a_model_that_is_not_there_is_told_and_the_socket_closed(server: Server, path: str, code: str | int) -> None:
    with socket(server, path) as talk:
        assert talk.hear()["error"]["code"] == code
        with pytest.raises(ConnectionClosed) as caught:
            talk.hear()
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "model_not_found")


def test_over_a_message_that_is_far_too_large_the_session_ends_and_says_why(server: Server) -> None:
    with socket(server) as talk:
        assert talk.hear()["type"] == "session.created"
        talk.say(APPEND, audio="A" * MOST_MESSAGE_BYTES)
        assert talk.hear()["error"]["code"] == "message_too_large"
        with pytest.raises(ConnectionClosed) as caught:
            talk.hear()
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1009, "message_too_large")


@pytest.mark.parametrize(("error", "code"), [
    (LiveError("too_many_sessions", ""), 1013), (LiveError("backlog_full", ""), 4001), (LiveError("idle", ""), 4002),
    (LiveError("too_long", ""), 4003), (LiveError("reader_too_slow", ""), 4004), (EngineStopped("gone"), 1013),
    (JobFailed("no memory"), 1011), (ModelUnavailable("absent", ""), 1008), (ZeroDivisionError(), 1011),
], ids=repr)  # fmt: skip
def test_whatever_ends_a_session_has_its_close_code(error: Exception, code: int) -> None:
    assert close_code(describe(error)) == code
