from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from answer import Answer, AnswerDelta, AnswerDone, AnswerEvent
from api.chat_wire import ChatCompletion
from api.transcription_wire import mistral_frames, openai_frames
from streaming import EventStream, comment, sse, until_disconnect, with_heartbeats
from transcript import Event, Finished, Gap, Segment, SegmentDone, TextDelta, TextToken, Transcript, Usage, Word, fold

pytestmark = pytest.mark.anyio
SEGMENT = Segment(0, 1500, "grüße", (), 0.0, 0.0, Usage(), words=(Word(100, 1500, "grüße"),))
RESULT = Transcript("grüße", "de", (SEGMENT,), Usage(5, 375, 3, 1500))


async def events() -> AsyncGenerator[Event]:
    yield TextDelta("grü", (TextToken(7, "grü".encode(), -0.5),))
    yield TextDelta("ße")
    yield SegmentDone(SEGMENT)
    yield Finished(RESULT)


async def answers() -> AsyncGenerator[AnswerEvent]:
    yield AnswerDelta(0, "grüße")
    yield AnswerDone(0, Answer("grüße", (), "stop", (), RESULT.usage))


def payloads(frames: list[bytes]) -> list[Any]:
    texts = [frame.decode("ascii").removeprefix("data: ").removesuffix("\n\n") for frame in frames]
    return [json.loads(text) if text != "[DONE]" else text for text in texts]


async def test_transcription_frames_are_openais_and_end_without_done_marker() -> None:
    frames = payloads([frame async for frame in openai_frames(events(), with_logprobs=False)])
    assert [frame["type"] for frame in frames] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(frame["delta"] for frame in frames[:2]) == frames[2]["text"] == "grüße"
    assert frames[2]["usage"]["type"] == "tokens"
    assert "logprobs" not in frames[0]


async def test_deltas_carry_the_logprobs_of_their_tokens_where_they_were_asked_for() -> None:
    frames = payloads([frame async for frame in openai_frames(events(), with_logprobs=True)])
    assert frames[0]["logprobs"] == [{"token": "grü", "logprob": -0.5, "bytes": list("grü".encode())}]


async def test_mistral_frames_name_their_event_and_hold_segments_and_language() -> None:
    frames = [frame.decode().split("\n") async for frame in mistral_frames(events(), "m")]
    parsed = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data, *_ in frames]
    assert all(name == payload["type"] for name, payload in parsed)
    deltas = ["transcription.text.delta"] * 2
    assert [name for name, _ in parsed] == [
        *deltas, "transcription.segment", "transcription.language", "transcription.done",
    ]  # fmt: skip
    assert parsed[2][1]["end"] == 1.5
    assert parsed[-1][1]["text"] == "grüße"


async def test_times_of_words_stand_in_openais_last_event_and_in_mistrals_segments() -> None:
    word = frozenset({"word"})
    *_, done = payloads([frame async for frame in openai_frames(events(), False, word)])
    assert done["words"] == [{"word": "grüße", "start": 0.1, "end": 1.5}]
    assert "segments" not in done
    frames = [frame.decode().split("data: ")[1] async for frame in mistral_frames(events(), "m", word)]
    *_, segment, _, done = map(json.loads, frames)
    timed = {"text": "grüße", "start": 0.1, "end": 1.5, "speaker_id": None}
    assert segment == {"type": "transcription.segment", **timed}
    assert done["segments"] == [{"type": "transcription_segment", **timed}]


async def test_words_stand_beside_segments_in_the_last_event_where_both_were_asked_for() -> None:
    both = frozenset({"segment", "word"})
    *_, done = payloads([frame async for frame in openai_frames(events(), False, both)])
    word = {"word": "grüße", "start": 0.1, "end": 1.5}
    assert ([segment["start"] for segment in done["segments"]], done["words"]) == ([0], [word])
    frames = [frame.decode().split("data: ")[1] async for frame in mistral_frames(events(), "m", both)]
    *_, segment, _, done = map(json.loads, frames)
    assert (segment["start"], segment["end"]) == (0, 1.5)
    assert ([part["start"] for part in done["segments"]], done["words"]) == ([0], [word])


async def test_chat_frames_share_an_id_and_end_with_usage_and_done_marker() -> None:
    frames = payloads([frame async for frame in ChatCompletion("m").frames(answers(), include_usage=True)])
    assert frames[-1] == "[DONE]"
    assert len({(frame["id"], frame["created"]) for frame in frames[:-1]}) == 1
    assert frames[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert frames[-3]["choices"][0]["finish_reason"] == "stop"
    assert frames[-2]["choices"] == []
    assert frames[-2]["usage"]["total_tokens"] == 383


async def test_a_chat_tells_what_may_not_be_whole_beside_its_finish_reason_and_else_nothing() -> None:
    async def doubtful() -> AsyncGenerator[AnswerEvent]:
        yield AnswerDelta(0, "grüße")
        yield AnswerDone(0, answer)

    plain = Answer("grüße", (), "stop", (), RESULT.usage)
    answer = replace(plain, segments=(replace(SEGMENT, lapses=("loop",)),), gaps=(Gap(0, 100),))
    frames = payloads([frame async for frame in ChatCompletion("m").frames(doubtful(), include_usage=True)])
    (told,) = [frame for frame in frames if "warnings" in frame]
    assert told["choices"][0]["finish_reason"] == "stop"
    assert {(warning["code"], warning["end"]) for warning in told["warnings"]} == {
        ("audio_incomplete", 0.1),
        ("loop", 1.5),
    }
    assert ChatCompletion("m").body([answer])["warnings"] == told["warnings"]
    assert "warnings" not in ChatCompletion("m").body([plain])


async def test_a_frame_is_one_line_of_ascii_whatever_the_text() -> None:
    frame = sse({"text": "line\nbreak ünïcode \u2028"})
    assert frame.isascii()
    assert frame.count(b"\n") == 2


async def test_heartbeats_come_only_while_nothing_else_does() -> None:
    async def slow() -> AsyncGenerator[bytes]:
        yield b"a"
        await asyncio.sleep(0.25)
        yield b"b"

    frames = [frame async for frame in with_heartbeats(slow(), 0.1, lambda: "still here")]
    assert frames[0] == b"a"
    assert frames[-1] == b"b"
    assert frames[1:-1]
    assert set(frames[1:-1]) == {comment("still here")} == {b": still here\n\n"}


class Wire:
    """An ASGI client that can go away."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.closed = 0

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def close(self) -> None:
        self.closed += 1

    async def run(self, frames: AsyncGenerator[bytes]) -> None:
        stream = EventStream(frames, 10, lambda error: sse({"error": {"message": str(error)}}), self.close)
        await stream({"type": "http"}, self.receive, self.send)


async def test_a_stream_that_ends_well_is_finished() -> None:
    wire = Wire()
    await wire.run(openai_frames(events(), with_logprobs=False))
    assert [message.get("more_body") for message in wire.sent] == [None, True, True, True, False]
    assert wire.closed == 1


async def test_an_error_midway_is_sent_in_band_and_leaves_the_response_unfinished() -> None:
    async def failing() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise RuntimeError("the model is gone")

    wire = Wire()
    await wire.run(failing())
    assert json.loads(wire.sent[-1]["body"].removeprefix(b"data: ")) == {"error": {"message": "the model is gone"}}
    assert all(message["more_body"] for message in wire.sent[1:])
    assert wire.closed == 1


async def test_a_client_that_goes_away_stops_the_work() -> None:
    stopped = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"data: 1\n\n"
                await asyncio.sleep(0.01)
        finally:
            stopped.set()

    wire = Wire()
    running = asyncio.create_task(wire.run(endless()))
    await asyncio.sleep(0.05)
    wire.gone.set()
    await asyncio.wait_for(running, 5)
    assert stopped.is_set()
    assert wire.closed == 1


async def test_work_without_a_stream_stops_too_when_the_client_goes() -> None:
    wire = Wire()
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    asyncio.get_running_loop().call_later(0.05, wire.gone.set)
    assert await until_disconnect(wire.receive, work()) is None
    assert stopped.is_set()


async def test_the_whole_answer_is_the_fold_of_the_stream() -> None:
    assert await fold(events()) == RESULT


async def test_a_stream_that_never_finishes_is_no_transcript() -> None:
    async def unfinished() -> AsyncGenerator[Event]:
        yield TextDelta("half")

    with pytest.raises(RuntimeError):
        await fold(unfinished())
