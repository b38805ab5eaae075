"""Finished chunks on disk: what is found again, what is dropped, and that no broken file ever stops anybody."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from aligner import Aligner
from chunking import Chunk
from config import DEMO_MODEL, Settings
from decoding import Asked
from engine.core import Job, Prompt, Sampling
from metrics import Metrics
from model_manager import ModelManager
from model_store import fingerprint
from progress import Caller
from store import CONTENT, ChunkStore, Shelf, StoredChunk
from tests.serving import Server
from transcriber import Transcriber, Transcription, TranscriptionRequest
from transcript import Segment, SegmentDone, TextDelta, TextToken, Usage
from voice_activity import Span

TOKENS = (TextToken(7, "grü".encode()[:3], -0.1234567890123456), TextToken(300, b"\xbc\xc3\x9fe", -1e-9))
SEGMENT = Segment(20, 1500, "grüße", TOKENS, 0.25, 0.0, Usage(5, 375, 3, 1500))
CONTENT_OF_CHUNK = StoredChunk("grüße", (SEGMENT,))
CHUNK = Chunk(0, 320, np.linspace(-1, 1, 1600, dtype=np.float32))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "folder" / "chunks.sqlite3"


def opened(file: Path, most_bytes: int = 10_000_000, most_seconds: float = 3600) -> ChunkStore:
    return ChunkStore(file, most_bytes, most_seconds)


@given(
    text=st.text(),
    tokens=st.lists(st.builds(TextToken, st.integers(0, 131_071), st.binary(), st.floats(-1e9, 0))),
    probability=st.floats(0, 1),
)
def test_what_is_kept_comes_back_to_the_last_bit(text: str, tokens: list[TextToken], probability: float) -> None:
    segment = replace(SEGMENT, text=text, tokens=tuple(tokens), no_speech_prob=probability)
    content = StoredChunk(text, (segment, SEGMENT))
    assert CONTENT.validate_json(CONTENT.dump_json(content)) == content


def test_a_chunk_is_found_by_its_key_in_another_process_too(file: Path) -> None:
    opened(file).save(b"key", CONTENT_OF_CHUNK)
    assert opened(file).find(b"key") == CONTENT_OF_CHUNK
    assert opened(file).find(b"other") is None


def test_others_of_this_machine_cannot_read_what_was_said(file: Path) -> None:
    opened(file).save(b"key", CONTENT_OF_CHUNK)
    assert file.stat().st_mode & 0o077 == file.parent.stat().st_mode & 0o077 == 0


def test_old_chunks_are_neither_found_nor_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(store.time, "time", lambda: now)
    kept = opened(file, most_seconds=60)
    kept.save(b"old", CONTENT_OF_CHUNK)
    now = 1061.0
    assert kept.find(b"old") is None
    kept.save(b"new", CONTENT_OF_CHUNK)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT key FROM chunks").fetchall() == [(b"new",)]
    connection.close()


def keep_young_and_old(settings: Settings) -> None:
    """A text of yesterday, and one of last year."""
    for word, days in (("young", 1), ("secret", 400)):
        with pytest.MonkeyPatch.context() as patch:
            then = time.time() - days * 86_400
            patch.setattr(store.time, "time", lambda then=then: then)
            opened(settings.chunk_store_file).save(word.encode(), StoredChunk(word, ()))


@pytest.mark.anyio
async def test_old_chunks_are_dropped_at_the_start_and_each_hour_also_where_no_new_ones_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(voxtral_model_id=str(DEMO_MODEL), chunk_store_dir=tmp_path)
    transcriber = Transcriber(settings, ModelManager(settings), Metrics())
    rounds: list[list[str]] = []

    async def what_is_there(seconds: float) -> None:
        """Instead of an hour."""
        text = settings.chunk_store_file.read_bytes()
        rounds.append([word for word in ("secret", "young") if word.encode() in text])
        if len(rounds) == 2:
            raise TimeoutError
        keep_young_and_old(settings)

    monkeypatch.setattr("transcriber.asyncio.sleep", what_is_there)
    keep_young_and_old(settings)
    with pytest.raises(TimeoutError):
        await transcriber.keep_house()
    assert rounds == [["young"], ["young"]]


def test_a_server_drops_old_chunks_when_it_starts(tmp_path: Path) -> None:
    settings = Settings(chunk_store_dir=tmp_path)
    keep_young_and_old(settings)
    assert b"secret" in settings.chunk_store_file.read_bytes()
    with Server("--demo", wait_for_model=False, CHUNK_STORE_DIR=str(tmp_path), CHUNK_STORE_MB="50") as server:
        server.wait_until(lambda health: b"secret" not in settings.chunk_store_file.read_bytes())
        assert b"young" in settings.chunk_store_file.read_bytes()


def test_a_dropped_text_does_not_stay_in_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(store.time, "time", lambda: now)
    kept = opened(file, most_seconds=60)
    kept.save(b"old", StoredChunk("a secret", ()))
    assert b"a secret" in file.read_bytes()
    now = 1061.0
    kept.save(b"new", CONTENT_OF_CHUNK)
    assert b"a secret" not in file.read_bytes()


def test_the_oldest_make_room_and_the_file_stays_small(file: Path) -> None:
    kept = opened(file, most_bytes=200_000)
    content = StoredChunk("word " * 1000, ())
    for number in range(100):
        kept.save(bytes([number]), content)
    found = [number for number in range(100) if kept.find(bytes([number]))]
    assert found == [*range(found[0], 100)]
    assert 10 < len(found) < 40
    assert file.stat().st_size < 250_000


def test_several_threads_and_processes_may_use_it_at_once(file: Path) -> None:
    stores = [opened(file), opened(file)]
    stores[0].save(b"first", CONTENT_OF_CHUNK)

    def use(number: int) -> bool:
        kept = stores[number % 2]
        kept.save(bytes([number]), CONTENT_OF_CHUNK)
        return kept.find(b"first") == CONTENT_OF_CHUNK

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(40)))


def test_a_file_that_is_deleted_is_made_again(file: Path) -> None:
    kept = opened(file)
    kept.save(b"1", CONTENT_OF_CHUNK)
    file.unlink()
    assert kept.find(b"1") is None
    kept.save(b"2", CONTENT_OF_CHUNK)
    assert kept.find(b"2") == CONTENT_OF_CHUNK


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("garbage", [b"no database at all " * 100, b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_is_begun_anew_with_one_warning(
    file: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept = opened(file)
    kept.save(b"1", CONTENT_OF_CHUNK)
    file.write_bytes(garbage)
    assert kept.find(b"1") is None
    kept.save(b"1", CONTENT_OF_CHUNK)
    assert kept.find(b"1") == CONTENT_OF_CHUNK
    (warning,) = warnings(caplog)
    assert str(file) in warning


def test_a_damaged_file_that_cannot_be_deleted_is_left_alone(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError("no")

    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database at all " * 100)
    monkeypatch.setattr(Path, "unlink", refuse)
    kept = opened(file)
    assert kept.find(b"1") is None
    kept.save(b"1", CONTENT_OF_CHUNK)
    assert len(warnings(caplog)) == 1


def test_a_row_that_is_no_chunk_is_not_found(file: Path) -> None:
    kept = opened(file)
    kept.save(b"1", CONTENT_OF_CHUNK)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE chunks SET content = ?", (b'{"text": "half"',))
    connection.close()
    assert kept.find(b"1") is None


def a_folder_in_its_place(file: Path) -> None:
    file.mkdir(parents=True)


def a_file_where_its_folder_should_be(file: Path) -> None:
    file.parent.parent.mkdir()
    file.parent.write_bytes(b"")


@pytest.mark.parametrize("spoil", [a_folder_in_its_place, a_file_where_its_folder_should_be])
def test_a_place_that_cannot_be_used_is_left_alone_with_one_warning(
    file: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(file)
    monkeypatch.setattr(store, "REST_SECONDS", 0)
    kept = opened(file)
    for _ in range(3):
        kept.save(b"1", CONTENT_OF_CHUNK)
        assert kept.find(b"1") is None
    (warning,) = warnings(caplog)
    assert str(file) in warning


@pytest.fixture
def holder(file: Path) -> Iterator[sqlite3.Connection]:
    """Another process that is in the midst of writing."""
    opened(file).save(b"there", CONTENT_OF_CHUNK)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def test_a_chunk_that_comes_while_another_process_writes_is_lost_and_nothing_else(
    file: Path, holder: sqlite3.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.01)
    kept = opened(file)
    for lost in (b"1", b"2"):
        kept.save(lost, CONTENT_OF_CHUNK)
        assert kept.find(b"there") == CONTENT_OF_CHUNK
    (warning,) = warnings(caplog)
    assert "locked" in warning
    holder.execute("ROLLBACK")
    kept.save(b"3", CONTENT_OF_CHUNK)
    assert [kept.find(key) is not None for key in (b"there", b"1", b"2", b"3")] == [True, False, False, True]


class Line:
    """The lock of a store, which says when somebody wants it."""

    def __init__(self) -> None:
        self.lock, self.joined = threading.Lock(), threading.Semaphore(0)

    def __enter__(self) -> None:
        self.joined.release()
        self.lock.acquire()

    def __exit__(self, *details: object) -> None:
        self.lock.release()


def test_who_stood_in_line_for_a_file_that_is_held_does_not_begin_to_wait_for_it(
    file: Path, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.01)
    kept = opened(file)
    connect, waits = kept._connect, []
    monkeypatch.setattr(kept, "_connect", lambda: waits.append(None) or connect())
    kept._using = line = Line()
    with line.lock, ThreadPoolExecutor(5) as threads:
        for number in range(5):
            threads.submit(kept.save, bytes([number]), CONTENT_OF_CHUNK)
            line.joined.acquire()
        line.lock.release()
        threads.shutdown()
        line.lock.acquire()
    assert len(waits) == 1
    holder.execute("ROLLBACK")
    kept.save(b"5", CONTENT_OF_CHUNK)
    assert kept.find(b"5") == CONTENT_OF_CHUNK


def test_many_threads_that_save_at_once_lose_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not wait for each other in SQLite, which would give up."""
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.0)
    kept = opened(file)
    with ThreadPoolExecutor(32) as threads:
        for number in range(200):
            threads.submit(kept.save, bytes([number]), CONTENT_OF_CHUNK)
    assert all(kept.find(bytes([number])) for number in range(200))


def test_a_full_disk_loses_what_is_new_and_nothing_else(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SQLite sees it: no page may be added."""
    monkeypatch.setattr(store, "REST_SECONDS", 0)
    kept = opened(file)
    kept.save(b"1", CONTENT_OF_CHUNK)
    monkeypatch.setattr(store, "SCHEMA", store.SCHEMA + "PRAGMA max_page_count = 1;")
    kept.save(b"2", StoredChunk("word " * 10_000, ()))
    assert "full" in warnings(caplog)[0]
    assert kept.find(b"1") == CONTENT_OF_CHUNK
    assert kept.find(b"2") is None


def test_one_failure_spares_the_file_for_a_while(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a disk that hangs for a moment each time does not slow down every chunk."""
    now = 0.0
    monkeypatch.setattr(store.time, "monotonic", lambda: now)
    a_folder_in_its_place(file)
    kept = opened(file)
    kept.save(b"1", CONTENT_OF_CHUNK)
    file.rmdir()
    kept.save(b"1", CONTENT_OF_CHUNK)
    assert not file.exists()
    now = store.REST_SECONDS
    kept.save(b"1", CONTENT_OF_CHUNK)
    assert kept.find(b"1") == CONTENT_OF_CHUNK


async def keep(shelf: Shelf, content: StoredChunk) -> None:
    async def events() -> AsyncGenerator[TextDelta | SegmentDone]:
        for event in content.events(separate=False):
            yield event

    async for _ in shelf.keep(CHUNK, events()):
        pass


ABOUT = ("key of Ann", "voxtral-demo", "", "1 MB of weights, cpu", Sampling(), 20.0)


@pytest.mark.parametrize(
    ("about", "chunk"),
    [
        *(((*ABOUT[:i], other, *ABOUT[i + 1 :]), CHUNK) for i, other in enumerate(
            ("key of Bob", "another", "main", "1 MB of weights, cuda", Sampling(seed=1), 10.0)
        )),
        (ABOUT, replace(CHUNK, samples=CHUNK.samples + np.float32(1e-7))),
        (ABOUT, replace(CHUNK, start=321)),
        (ABOUT, replace(CHUNK, index=1)),
        (ABOUT, replace(CHUNK, regions=(Span(320, 1920, 320, 1900),))),
    ],
)  # fmt: skip
@pytest.mark.anyio
async def test_whatever_the_text_follows_from_is_part_of_the_key(
    file: Path, about: tuple[object, ...], chunk: Chunk
) -> None:
    metrics = Metrics()
    await keep(Shelf(opened(file), ABOUT, metrics), CONTENT_OF_CHUNK)
    found = await Shelf(opened(file), ABOUT, metrics).find(replace(CHUNK))
    assert found.content == CONTENT_OF_CHUNK
    assert await Shelf(opened(file), about, metrics).find(chunk) is None
    assert [metrics.stored_chunks.labels(result)._value.get() for result in ("hit", "miss")] == [1, 1]


@pytest.mark.anyio
async def test_a_text_that_is_not_whole_is_not_kept(file: Path) -> None:
    shelf = Shelf(opened(file), ABOUT, Metrics())
    await keep(shelf, StoredChunk("grüße", (SEGMENT, replace(SEGMENT, lapses=("loop",)))))
    assert await shelf.find(CHUNK) is None


@pytest.mark.anyio
async def test_a_text_of_two_hearings_is_not_kept(file: Path) -> None:
    """It goes on behind what had left; a request that does not stream shall have the second hearing alone."""
    shelf = Shelf(opened(file), ABOUT, Metrics())

    async def events() -> AsyncGenerator[TextDelta | SegmentDone]:
        yield TextDelta("grüße", TOKENS)
        yield SegmentDone(SEGMENT, mixed=True)

    assert [event async for event in shelf.keep(CHUNK, events())]
    assert await shelf.find(CHUNK) is None


@pytest.mark.anyio
async def test_a_kept_chunk_has_the_events_that_it_had_in_whatever_pieces_they_came(file: Path) -> None:
    shelf = Shelf(opened(file), ABOUT, Metrics())

    async def pieces() -> AsyncGenerator[TextDelta | SegmentDone]:
        yield TextDelta("grü", TOKENS[:1])
        yield TextDelta("ße", TOKENS[1:])
        yield SegmentDone(SEGMENT)

    passed = [event async for event in shelf.keep(CHUNK, pieces())]
    assert passed == [event async for event in pieces()]
    found = await shelf.find(CHUNK)
    assert [event async for event in found.events(False)] == [TextDelta("grüße", TOKENS), SegmentDone(SEGMENT)]


@pytest.mark.parametrize(("separate", "text"), [(False, "grüße"), (True, " grüße")])
def test_a_kept_text_leaves_at_once_and_then_its_segments(separate: bool, text: str) -> None:
    content = StoredChunk("grüße", (SEGMENT, SEGMENT))
    assert [*content.events(separate)] == [TextDelta(text, TOKENS * 2), SegmentDone(SEGMENT), SegmentDone(SEGMENT)]
    assert [*StoredChunk("", (SEGMENT,)).events(separate)] == [SegmentDone(SEGMENT)]


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    def found() -> str:
        return fingerprint(tmp_path)

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("nothing to do with it")
    before = found()
    (tmp_path / "README.md").write_text("changed")
    assert found() == before
    (tmp_path / "model.safetensors").write_bytes(b"trained")
    assert found() != before


def test_chunks_that_another_aligner_timed_are_not_found(tmp_path: Path) -> None:
    settings = Settings(voxtral_model_id=str(DEMO_MODEL), chunk_store_dir=tmp_path)
    models = ModelManager(settings)
    request, job = TranscriptionRequest("en", None, Sampling()), Job(Prompt(((1,),)), (), 9, Sampling())
    worker = SimpleNamespace(backend=SimpleNamespace(description="the same"))
    transcription = Transcription(
        Transcriber(settings, models, Metrics()), models.default, request, None, Caller("request"), None
    )

    def key(aligner: Aligner | None) -> bytes:
        shelf = transcription._open_shelf(Asked(worker, "test", job, settings.token_cap, "words", aligner))
        assert shelf
        return shelf._key(CHUNK)

    others = [None, ("someone/aligner", "main", "1"), ("someone/aligner", "main", "2"), ("someone/other", "main", "1")]
    aligners = [identity and Aligner(None, identity) for identity in others]
    assert len({key(aligner) for aligner in aligners}) == len(others)
    assert key(aligners[1]) == key(Aligner(None, others[1]))
