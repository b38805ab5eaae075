"""Long recordings that are sent again go on where they were, also after the server was killed; and how far they are."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from chunking import Chunk
from config import DEMO_MODEL, Settings
from engine.core import Sampling
from engine.worker import Worker
from metrics import Metrics
from model_manager import ModelManager
from progress import Caller, Progress
from store import StoredChunk
from tests.scripted import WORDS as SPOKEN
from tests.scripted import ScriptedBackend, held, spoken, words_in
from tests.serving import Server
from tests.speech import SAMPLE_RATE, assert_heard, clip, wav
from transcriber import Transcriber, Transcription, TranscriptionRequest
from transcript import Event

URL, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"
ANN, BOB = {"Authorization": "Bearer key-of-ann"}, {"Authorization": "Bearer key-of-bob"}
NAMES = ("gain0", "voice_en-us", "gain-10", "voice_en-us+m1", "voice_en-us+m8") * 2
WORDS = " ".join(clip(name).words for name in NAMES)
# One chunk after the other: chunks of a batch end together, and there would be no moment at which some are done.
SETTINGS = {
    "API_KEYS": "key-of-ann,key-of-bob", "CHUNK_STORE_MB": "50", "MAX_BATCH_SIZE": "1", "HEARTBEAT_SECONDS": "0.02",
}  # fmt: skip


def recording(names: tuple[str, ...]) -> bytes:
    """With a pause of 6 s behind each clip, which ends a chunk."""
    return wav(np.concatenate([np.pad(clip(name).samples(), (0, 96_000)) for name in names]))


LONG, SHORT = recording(NAMES), recording(NAMES[:2])


def post(server: Server, headers: dict[str, str], file: bytes = LONG, **fields: str) -> httpx.Response:
    data = {"model": "whisper-1", "language": "en", **fields}
    return server.client.post(URL, files={"file": file}, data=data, headers=headers)


def progress(server: Server, request_id: str, headers: dict[str, str]) -> dict[str, Any]:
    response = server.client.get(f"/v1/transcriptions/{request_id}", headers=headers)
    return response.json() if response.status_code == 200 else {"share": 0}


def until(server: Server, request_id: str, headers: dict[str, str], share: float) -> dict[str, Any]:
    """The figures of a request once so much of it is done."""
    give_up = time.monotonic() + 60
    while (figures := progress(server, request_id, headers))["share"] < share:
        assert time.monotonic() < give_up, f"not within a minute: {figures}"
        time.sleep(0.01)
    return figures


def lookups(server: Server) -> np.ndarray:
    """Chunks that were found, and those that were not."""
    lines = dict(line.rsplit(" ", 1) for line in server.client.get("/metrics", headers=ANN).text.splitlines())
    names = (f'voxtral_stored_chunks_total{{result="{result}"}}' for result in ("hit", "miss"))
    return np.array([int(float(lines.get(name, 0))) for name in names])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def at_the_kill(folder: Path) -> dict[str, Any]:
    """How far a transcription for Ann was when its server was killed."""
    with Server("--demo", CHUNK_STORE_DIR=str(folder), **SETTINGS) as server:
        failed: list[Exception] = []

        def ask() -> None:
            try:
                post(server, ANN | {"x-request-id": "killed"}, response_format="verbose_json")
            except httpx.TransportError as error:
                failed.append(error)

        client = threading.Thread(target=ask)
        client.start()
        figures = until(server, "killed", ANN, 0.7)
        server.process.kill()
        client.join()
        assert failed
    return figures


@pytest.fixture(scope="module")
def keeping(at_the_kill: dict[str, Any], folder: Path) -> Iterator[Server]:
    """The server that comes after it, with the same store."""
    with Server("--demo", CHUNK_STORE_DIR=str(folder), **SETTINGS) as server:
        yield server


def test_a_request_at_work_tells_how_far_it_is(at_the_kill: dict[str, Any]) -> None:
    assert at_the_kill["state"] == "running"
    assert 0 < at_the_kill["chunks_done"] < len(NAMES)
    assert at_the_kill["audio_seconds"] == pytest.approx(len(LONG) / 32_000, abs=0.01)
    assert at_the_kill["remaining_seconds"] > 0


def test_a_killed_server_goes_on_where_it_was_and_gives_what_an_undisturbed_one_gives(
    keeping: Server, at_the_kill: dict[str, Any]
) -> None:
    """Undisturbed is Bob's request: he has another key, so nothing of Ann's is used for him."""
    before = lookups(keeping)
    resumed = post(keeping, ANN, response_format="verbose_json").json()
    hits, misses = lookups(keeping) - before
    assert hits >= at_the_kill["chunks_done"]
    assert (hits + misses, misses > 0) == (len(NAMES), True)
    before = lookups(keeping)
    undisturbed = post(keeping, BOB, response_format="verbose_json").json()
    assert tuple(lookups(keeping) - before) == (0, len(NAMES))
    times = [[(segment["start"], segment["end"]) for segment in body["segments"]] for body in (resumed, undisturbed)]
    assert resumed["text"] == undisturbed["text"]
    assert times[0] == times[1]
    assert_heard(WORDS, resumed["text"])


def test_a_client_that_gave_up_and_sends_again_waits_for_the_rest_only(keeping: Server) -> None:
    impatient = threading.Event()

    def ask() -> None:
        with keeping.client.stream(
            "POST", URL, files={"file": LONG}, headers=ANN | {"x-request-id": "gave-up"},
            data={"model": "whisper-1", "stream": "true"},
        ) as response:  # fmt: skip
            for _ in response.iter_lines():
                if impatient.is_set():
                    return

    client = threading.Thread(target=ask)
    client.start()
    until(keeping, "gave-up", ANN, 0.3)
    impatient.set()
    client.join()
    keeping.wait_until(lambda health: health["requests"] == 0)
    left = progress(keeping, "gave-up", ANN)
    assert left["state"] == "cancelled"
    again = post(keeping, ANN | {"x-request-id": "again"}, language="")
    assert_heard(WORDS, again.json()["text"])
    ended = progress(keeping, "again", ANN)
    assert ended["chunks_done"] > ended["chunks_stored"] >= left["chunks_done"] > 0


class Cut:
    """A recording of such lengths in seconds, cut into chunks, which says when the model has all of them."""

    gaps = ()

    def __init__(self, *lengths: int) -> None:
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        words = [SPOKEN[start : start + length] for start, length in zip(starts, lengths, strict=False)]
        self._chunks = iter(Chunk(i, starts[i] * SAMPLE_RATE, spoken(words[i])) for i in range(len(lengths)))
        self.decoded_ms, self.all_given = starts[-1] * 1000, asyncio.Event()

    async def next(self) -> Chunk | None:
        chunk = next(self._chunks, None)
        if chunk is None:
            self.all_given.set()
        return chunk

    async def close(self) -> None: ...


class Waiting(ScriptedBackend):
    """Goes on with the last of three chunks only when it may."""

    def __init__(self) -> None:
        super().__init__(lambda job: " ".join(words_in(job.audio[0])))
        self.may_end = threading.Event()

    def decode(self, tokens: list[int]) -> torch.Tensor:
        if len(self.jobs) == 3 and len(tokens) == 1:
            self.may_end.wait()
        return super().decode(tokens)


@pytest.mark.anyio
@pytest.mark.parametrize("streamed", [True, False])
async def test_chunks_that_end_before_an_earlier_one_are_there_when_the_client_that_left_sends_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    settings = Settings(voxtral_model_id=str(DEMO_MODEL), chunk_store_dir=tmp_path)
    models, metrics, backend = ModelManager(settings), Metrics(), Waiting()
    transcriber, worker = Transcriber(settings, models, metrics), Worker(backend)
    request = TranscriptionRequest("en", None, Sampling(), streamed=streamed)
    save, saved, loop = transcriber.store.save, asyncio.Semaphore(0), asyncio.get_running_loop()

    def save_and_say_so(key: bytes, chunk: StoredChunk) -> None:
        save(key, chunk)
        loop.call_soon_threadsafe(saved.release)

    def sent(recording: Cut, progress: Progress) -> Transcription:
        return Transcription(transcriber, models.default, request, recording, Caller("any"), progress)

    def tokens() -> float:
        return metrics.tokens.labels("output")._value.get()

    async def read(transcription: Transcription) -> list[Event]:
        return [event async for event in transcription.heard()]

    monkeypatch.setattr(transcriber.store, "save", save_and_say_so)
    recording, progress = Cut(40, 3, 4), Progress(None)
    first, again = sent(recording, Progress(None)), sent(Cut(40, 3, 4), progress)
    try:
        with held(worker):
            await first.begin(worker)
            await recording.all_given.wait()
        client = asyncio.create_task(read(first))
        async with asyncio.timeout(30):
            for _ in range(2):
                await saved.acquire()
        client.cancel()
        await first.close()
        assert tokens() == 4 + 5  # with the ends of the texts
        backend.may_end.set()
        await again.begin(worker)
        *_, finished = await read(again)
    finally:
        backend.may_end.set()
        await asyncio.to_thread(worker.close)
    assert finished.transcript.text.split() == SPOKEN[:47]
    assert [len(words_in(job.audio[0])) for job in backend.jobs] == [40, 3, 4, 40]
    assert (progress.chunks_done, progress.chunks_stored, tokens()) == (3, 2, 41 + 4 + 5)


def test_an_answer_from_the_store_is_the_first_one_byte_for_byte(keeping: Server) -> None:
    fields = {"include[]": "logprobs", "timestamp_granularities[]": "segment", "prompt": "Letters."}
    first = post(keeping, ANN, SHORT, **fields)
    before = lookups(keeping)
    again = post(keeping, ANN | {"x-request-id": "replayed"}, SHORT, **fields)
    assert tuple(lookups(keeping) - before) == (2, 0)
    assert again.content == first.content
    assert again.json()["usage"]["output_tokens"] > 0
    ended = progress(keeping, "replayed", ANN)
    assert (ended["state"], ended["share"], ended["remaining_seconds"]) == ("finished", 1, 0)
    assert ended["chunks_stored"] == ended["chunks_done"] == 2


def test_a_kept_chunk_leaves_in_one_event_and_no_token_is_counted_twice(keeping: Server) -> None:
    def tokens() -> str:
        lines = keeping.client.get("/metrics", headers=ANN).text.splitlines()
        return next(line for line in lines if line.startswith('voxtral_tokens_total{kind="output"}'))

    before = tokens()
    lines = post(keeping, ANN, stream="true", **{"timestamp_granularities[]": "segment"}).text.splitlines()
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert len(deltas) == len(NAMES)
    assert "".join(delta["delta"] for delta in deltas) == done["text"]
    assert tokens() == before


def test_a_chat_that_transcribes_uses_the_store_too(keeping: Server) -> None:
    spoken = clip("voice_en-us")
    body = {"model": "whisper-1", "audio": base64.b64encode(spoken.data).decode(), "messages": []}
    body["messages"] = [{"role": "user", "content": "Transcribe the audio to natural text."}]
    answers = [keeping.client.post(CHAT, json=body, headers=ANN | {"x-request-id": "chat"}).json() for _ in range(2)]
    assert progress(keeping, "chat", ANN)["chunks_stored"] == 1
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"] == answers[1]["usage"]


@pytest.mark.parametrize(
    ("fields", "headers"), [({"temperature": "0.7"}, {}), ({}, {"Cache-Control": "no-store"})], ids=str
)
def test_what_is_drawn_or_not_to_be_kept_is_never_looked_for(
    keeping: Server, fields: dict[str, str], headers: dict[str, str]
) -> None:
    before = lookups(keeping)
    for _ in range(2):
        post(keeping, ANN | headers, SHORT, **fields).raise_for_status()
    assert tuple(lookups(keeping) - before) == (0, 0)


def test_a_store_that_is_deleted_while_the_server_runs_harms_nothing(keeping: Server, folder: Path) -> None:
    kept = post(keeping, ANN, SHORT).content
    for file in folder.iterdir():
        file.unlink()
    for found in (0, 2):
        before = lookups(keeping)
        assert post(keeping, ANN, SHORT).content == kept
        assert tuple(lookups(keeping) - before) == (found, 2 - found)


def test_heartbeats_tell_how_far_a_stream_is(keeping: Server) -> None:
    lines = post(keeping, BOB, SHORT, stream="true", prompt="Letters.").text.splitlines()
    told = [json.loads(line.removeprefix(": keepalive ")) for line in lines if line.startswith(":")]
    assert told
    assert [figures["audio_seconds_done"] for figures in told] == sorted(
        figures["audio_seconds_done"] for figures in told
    )
    assert told[-1]["state"] == "running"
    assert 0 < told[-1]["share"] < 1
    assert told[-1]["remaining_seconds"] > 0


def test_silence_before_the_first_word_is_done_as_it_is_found(keeping: Server) -> None:
    """Ten minutes, of which a search that takes longer than a heartbeat is left when the stream begins."""
    late = wav(np.pad(clip(NAMES[0]).samples(), (600 * SAMPLE_RATE, 0)))
    lines = post(keeping, BOB, late, stream="true").text.splitlines()
    beats = [json.loads(line.removeprefix(": keepalive ")) for line in lines if line.startswith(":")]
    searching = [figures for figures in beats if not figures["chunks_done"]]
    assert searching[-1]["state"] == "running"
    assert len({figures["share"] for figures in searching}) > 2
    assert any(figures["remaining_seconds"] for figures in searching)


@pytest.mark.parametrize("path", ["/v1/transcriptions", "/v1/audio/transcriptions", "/transcriptions"])
def test_progress_is_for_the_key_that_asked_and_for_known_requests(keeping: Server, path: str) -> None:
    post(keeping, ANN | {"x-request-id": "anns"}, SHORT).raise_for_status()
    assert keeping.client.get(f"{path}/anns", headers=ANN).json()["id"] == "anns"
    for request_id, headers in (("anns", BOB), ("nobodys", ANN)):
        response = keeping.client.get(f"{path}/{request_id}", headers=headers)
        assert response.status_code == 404
        assert (response.json()["error"]["code"], response.json()["error"]["param"]) == (
            "request_not_found", "request_id",
        )  # fmt: skip


def test_a_refused_request_is_known_as_failed(keeping: Server) -> None:
    data = wav(np.zeros(160, np.float32))
    headers = ANN | {"x-request-id": "refused"}
    refused = keeping.client.post(URL, files={"file": data}, data={"model": "whisper-1"}, headers=headers)
    assert refused.status_code == 400
    assert progress(keeping, "refused", ANN)["state"] == "failed"
