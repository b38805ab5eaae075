from __future__ import annotations

import asyncio
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

import model_manager
from config import DEMO_MODEL, Settings
from engine.backends.voxtral import VoxtralBackend
from main import create_app
from model_manager import ModelManager, ModelUnavailable
from model_store import DownloadFailed, ModelStore, missing_files
from model_table import DEMOS, MODELS, model_spec
from tests.hub import COMMIT, Hub
from tests.scripted import ScriptedBackend
from tests.serving import Server
from tests.speech import assert_heard, clip

REPOSITORY = "someone/voxtral-small-copy"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "consolidated.safetensors").write_bytes(b"all weights a second time" * 1000)
    with Hub(folder, REPOSITORY) as hub:
        yield hub


def hub_settings(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "VOXTRAL_MODEL_ID": REPOSITORY,
        "VOXTRAL_MODEL_REVISION": COMMIT,
        "VOXTRAL_CACHE_DIR": str(tmp_path / "cache"),
    }


def test_a_missing_model_is_fetched_in_the_background_and_then_served(hub: Hub, tmp_path: Path) -> None:
    hub.go_on.clear()
    with Server(wait_for_model=False, **hub_settings(hub, tmp_path)) as server:
        health = server.wait_until(lambda h: h["download"] and h["download"]["completed"] > 4_000_000)
        assert health["model_available"] is False
        assert 0 < health["download"]["percent"] < 100
        total = sum(f.stat().st_size for f in hub.folder.iterdir() if f.name in files_needed())
        assert health["download"]["total"] == total
        response = server.client.post(
            "/v1/audio/transcriptions", files={"file": clip("short_0").data}, data={"model": "whisper-1"}
        )
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) <= 30
        hub.go_on.set()
        server.wait_until(lambda h: h["model_loaded"])
        response = server.client.post(
            "/v1/audio/transcriptions", files={"file": clip("voice_en-us").data}, data={"model": "whisper-1"}
        )
        assert_heard(clip("voice_en-us").words, response.json()["text"])
    assert sorted(hub.fetched) == sorted(files_needed())

    # Once fetched, it is served with no network at all.
    with Server(**{**hub_settings(hub, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}) as server:
        assert server.health()["model"] == REPOSITORY


def files_needed() -> set[str]:
    return {f.name for f in DEMO_MODEL.iterdir()} & {
        "config.json", "generation_config.json", "preprocessor_config.json", "tekken.json", "model.safetensors",
    }  # fmt: skip


def test_a_hub_without_the_repository_is_a_clear_failure(hub: Hub, tmp_path: Path) -> None:
    settings = {**hub_settings(hub, tmp_path), "VOXTRAL_MODEL_ID": "someone/nothing"}
    with Server(wait_for_model=False, **settings) as server:
        health = server.wait_until(lambda h: h["model_state"] == "failed")
        assert "The Hub has no model someone/nothing" in health["error"]
        assert "HF_TOKEN" in health["error"]
        response = server.client.post(
            "/v1/audio/transcriptions", files={"file": clip("short_0").data}, data={"model": "whisper-1"}
        )
        assert response.status_code == 404


@pytest.mark.anyio
async def test_the_model_loads_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = model_manager.load_backend
    monkeypatch.setattr(model_manager, "load_backend", lambda *args: loads.append(args) or load(*args))
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL)))
    model = manager.default
    assert model.state == "on_disk"
    workers = await asyncio.gather(*(manager.worker(model) for _ in range(20)))
    assert len(loads) == 1
    assert len(set(map(id, workers))) == 1
    assert model.state == "loaded"
    workers[0].close()
    assert (await manager.worker(model)) is not workers[0]
    assert len(loads) == 2
    await manager.close()


@pytest.mark.anyio
async def test_a_model_whose_thread_died_is_unloaded_before_it_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    class Backend(ScriptedBackend):
        def close(self) -> None:
            events.append("close")

    def load(*_: object) -> Backend:
        events.append("load")
        return Backend(lambda job: "")

    monkeypatch.setattr(model_manager, "load_backend", load)
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL)))
    (await manager.worker(manager.default)).close()
    await manager.worker(manager.default)
    assert events == ["load", "close", "load"]
    await manager.close()


@pytest.mark.anyio
async def test_a_model_larger_than_the_memory_for_models_is_a_failed_load() -> None:
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL), model_memory_gb=0.001))
    with pytest.raises(ModelUnavailable, match=r"MODEL_MEMORY_GB is 0\.001") as caught:
        await manager.worker(manager.default)
    assert (caught.value.reason, manager.default.state) == ("failed", "failed")
    assert "MODEL_MEMORY_GB" in manager.default.error


@pytest.mark.anyio
async def test_a_setting_that_the_machine_cannot_meet_is_a_failed_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(*_: object) -> int:
        raise ValueError("VOXTRAL_DEVICE=cuda, but this machine has none.")

    monkeypatch.setattr(model_manager, "memory_needed", no_gpu)
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL), model_memory_gb=8))
    with pytest.raises(ModelUnavailable, match="this machine has none") as caught:
        await manager.worker(manager.default)
    assert (caught.value.reason, manager.default.state) == ("failed", "failed")


@pytest.mark.anyio
async def test_a_load_that_failed_at_its_end_leaves_no_weights_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def fail(backend: VoxtralBackend, *args: object) -> None:
        loaded.append(weakref.ref(backend._model))
        raise RuntimeError("no memory for the cache")

    monkeypatch.setattr(VoxtralBackend, "_prepare_growing", fail)
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL)))
    with pytest.raises(ModelUnavailable, match="no memory for the cache"):
        await manager.worker(manager.default)
    assert [reference() for reference in loaded] == [None]


@pytest.mark.anyio
async def test_a_model_that_is_loading_or_not_on_disk_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(answer: httpx.Response, *expected: object) -> None:
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == expected

    app = create_app(Settings(voxtral_model_id=str(DEMO_MODEL), voxtral_cache_dir=tmp_path / "cache"))
    models, go_on = app._app.state.service.models, threading.Event()
    loading = models._models[MODELS[1].id]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://voxtral") as client:
        refused(await client.delete(f"/v1/models/{MODELS[1].id}"), 404, "model", "model_not_found")
        monkeypatch.setattr(ModelStore, "folder", lambda *_: DEMO_MODEL)
        monkeypatch.setattr(
            model_manager, "load_backend", lambda *_: go_on.wait(60) and ScriptedBackend(lambda job: "")
        )
        load = asyncio.create_task(models.worker(loading))
        await asyncio.sleep(0)
        refused(await client.delete(f"/v1/models/{MODELS[1].id}"), 400, "model", "invalid_value")
        go_on.set()
        await load
        assert loading in models.loaded
    await models.close()


async def unloaded(model: model_manager.Model) -> None:
    async with asyncio.timeout(30):
        while model.loaded:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_model_nobody_uses_gives_way_under_memory_pressure_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_manager, "HOUSEKEEPING_SECONDS", 0.01)
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL), memory_reserve_gb=1_000_000))
    keeping = asyncio.create_task(manager.keep_house())
    for _ in range(2):
        assert (await manager.worker(manager.default)).alive
        await unloaded(manager.default)
        assert manager.default.state == "on_disk"
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await manager.close()


@pytest.mark.anyio
async def test_housekeeping_survives_what_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_manager, "HOUSEKEEPING_SECONDS", 0.01)
    monkeypatch.setattr(model_manager, "AFTER_FAILURE_SECONDS", 0.01)
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL), model_idle_timeout=0.01))
    worker = await manager.worker(manager.default)
    failures = iter([ZeroDivisionError("nobody foresaw it")])
    free_memory = worker.backend.free_memory

    def fail_once() -> int:
        if failure := next(failures, None):
            raise failure
        return free_memory()

    monkeypatch.setattr(worker.backend, "free_memory", fail_once)
    keeping = asyncio.create_task(manager.keep_house())
    await unloaded(manager.default)
    assert "nobody foresaw it" in caplog.text
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert keeping.cancelled()
    await manager.close()


@pytest.mark.anyio
async def test_one_client_that_gives_up_does_not_stop_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = ModelManager(Settings(voxtral_model_id=str(DEMO_MODEL)))
    impatient = asyncio.create_task(manager.worker(manager.default))
    await asyncio.sleep(0.05)
    impatient.cancel()
    assert (await manager.worker(manager.default)).alive
    await manager.close()


def test_a_disk_that_is_too_full_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1_000_000_000))
    store = ModelStore(Settings(voxtral_model_id=REPOSITORY, voxtral_cache_dir=tmp_path))
    with pytest.raises(DownloadFailed, match=r"9\.4 GB are needed .* 1\.0 GB are free"):
        store._check_disk(9_400_000_000)


def test_known_models_have_a_pinned_revision_and_find_it_by_alias() -> None:
    assert all(len(spec.revision) == 40 for spec in MODELS)
    assert model_spec("voxtral-mini", None) == MODELS[0]
    assert model_spec(MODELS[0].id, "abc").revision == "abc"
    assert model_spec("someone/model", None).revision == "main"
    assert model_spec(str(DEMO_MODEL), None) == DEMOS[0]


def test_an_interrupted_download_is_not_a_model(tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "tekken.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    assert missing_files(tmp_path) == ["model-00002-of-00002.safetensors"]


@pytest.mark.anyio
async def test_an_absent_model_cannot_be_loaded(tmp_path: Path) -> None:
    manager = ModelManager(Settings(voxtral_model_id=REPOSITORY, voxtral_cache_dir=tmp_path))
    with pytest.raises(ModelUnavailable) as caught:
        await manager.worker(manager.default)
    assert caught.value.reason == "absent"


def test_whatever_ends_a_download_ends_the_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(Settings(voxtral_cache_dir=tmp_path))

    def fail(download: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(store, "_fetch", fail)
    download = store.start_download(MODELS[0])
    assert download.finished.wait(60)
    assert download.stage == "failed"
    assert "RuntimeError" in str(download.error)
