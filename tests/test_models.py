"""The endpoints under /v1/models, against a hub on loopback and the real Hub client."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import NotFoundError, OpenAI

from config import DEMO_ALIGNER, DEMO_MODEL
from tests.hub import OTHER_COMMIT, Hub
from tests.serving import DEMOS, Server, run_cli
from tests.speech import assert_heard, clip

REPOSITORY = "someone/voxtral-copy"


@pytest.fixture(scope="module")
def hub_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Server]]:
    """A hub, and a server on the demo model that can fetch others from it, and fetches an aligner at its start. It has
    a store of chunks."""
    folder, cache, aligner, store = (tmp_path_factory.mktemp(name) for name in ("hub", "cache", "aligner", "store"))
    shutil.copytree(DEMO_ALIGNER, aligner, dirs_exist_ok=True)
    (aligner / "pytorch_model.bin").write_bytes(b"the same weights, pickled")
    with Hub(folder, REPOSITORY, aligner=aligner) as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        settings |= {"VOXTRAL_CACHE_DIR": str(cache), "VOXTRAL_ALIGNER": f"someone/aligner@{OTHER_COMMIT}"}
        settings |= {"CHUNK_STORE_MB": "50", "CHUNK_STORE_DIR": str(store)}
        with Server("--demo", **settings) as server:
            server.wait_until(lambda health: health["aligner"]["state"] == "on_disk")
            yield hub, server


@pytest.fixture
def hub(hub_and_server: tuple[Hub, Server]) -> Hub:
    """As it was at the beginning, and nothing fetched from it."""
    hub, server = hub_and_server
    server.client.delete(f"/v1/models/{REPOSITORY}")
    shutil.copytree(DEMO_MODEL, hub.folder, dirs_exist_ok=True)
    hub.reset()
    return hub


@pytest.fixture
def demo(hub: Hub, hub_and_server: tuple[Hub, Server]) -> Server:
    return hub_and_server[1]


def pull(server: Server, name: str = REPOSITORY) -> list[dict]:
    """The lines of progress as Lotti's dialog reads them."""
    body = {"model_name": name, "stream": True}
    with server.client.stream("POST", "/v1/models/pull", json=body) as response:
        assert response.status_code == 200
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def transcribe(server: Server, model: str, keep: bool = False, **fields: str) -> httpx.Response:
    """`keep`: its chunk may come from the store, and is kept there."""
    files, headers = {"file": clip("voice_en-us").data}, {} if keep else {"cache-control": "no-store"}
    return server.client.post("/v1/audio/transcriptions", files=files, data={"model": model, **fields}, headers=headers)


def test_an_aligner_is_fetched_at_the_start_and_loaded_when_times_are_asked_for(
    hub_and_server: tuple[Hub, Server],
) -> None:
    hub, server = hub_and_server
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"]
    transcribe(server, "whisper-1").raise_for_status()
    assert server.health()["aligner"]["state"] == "on_disk"
    words = transcribe(server, "whisper-1", **{"timestamp_granularities[]": "word"}).json()["words"]
    assert [word["word"] for word in words] == clip("voice_en-us").words.split()
    assert server.health()["aligner"] == {
        "model": "someone/aligner", "state": "loaded", "error": None, "download": None,
    }  # fmt: skip


def test_a_pulled_model_is_listed_and_transcribes_and_can_be_deleted(demo: Server) -> None:
    assert transcribe(demo, REPOSITORY).status_code == 404
    lines = pull(demo)
    assert lines[-1]["status"] == "success"
    assert lines[-1]["completed"] == lines[-1]["total"] > 10_000_000
    with OpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == [*DEMOS, REPOSITORY]
        assert_heard(clip("voice_en-us").words, transcribe(demo, REPOSITORY).json()["text"])
        assert demo.health()["models_loaded"] == ["voxtral-demo", REPOSITORY]
        assert client.models.delete(REPOSITORY).deleted
        assert [model.id for model in client.models.list()] == DEMOS
        with pytest.raises(NotFoundError):
            client.models.retrieve(REPOSITORY)


def test_kept_chunks_outlive_a_deleted_model_and_harm_nobody(demo: Server) -> None:
    def text(model: str, stored: int) -> str:
        answer = transcribe(demo, model, keep=True)
        figures = demo.client.get(f"/v1/transcriptions/{answer.headers['x-request-id']}").json()
        assert (figures["chunks_done"], figures["chunks_stored"]) == (1, stored)
        return answer.json()["text"]

    pull(demo)
    kept, others = (text(model, 0) for model in (REPOSITORY, "whisper-1"))
    assert (text(REPOSITORY, 1), text("whisper-1", 1)) == (kept, others)
    assert demo.client.delete(f"/v1/models/{REPOSITORY}").status_code == 200
    assert transcribe(demo, REPOSITORY, keep=True).status_code == 404  # and no text from the store
    assert text("whisper-1", 1) == others
    pull(demo)
    assert text(REPOSITORY, 0) == kept  # heard anew: other files might be another model
    assert text(REPOSITORY, 1) == kept


def test_progress_comes_twice_a_second_and_two_pulls_join_one_download(demo: Server, hub: Hub) -> None:
    hub.go_on.clear()
    arrivals: list[float] = []
    results: list[list[dict]] = []

    def watch() -> None:
        body = {"model_name": REPOSITORY, "stream": True}
        with demo.client.stream("POST", "/v1/models/pull", json=body) as response:
            lines = []
            for line in response.iter_lines():
                if line.startswith("data: "):
                    arrivals.append(time.monotonic())
                    lines.append(json.loads(line[6:]))
            results.append(lines)

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    # huggingface-hub reads 10 MB at a time, so the bytes of the last piece are counted when it is whole.
    while len(arrivals) < 8:
        time.sleep(0.05)
    hub.go_on.set()
    for watcher in watchers:
        watcher.join(60)
    assert [lines[-1]["status"] for lines in results] == ["success", "success"]
    assert hub.fetched.count("model.safetensors") == 1
    # Eight lines of two watchers: three pauses each.
    assert arrivals[7] - arrivals[0] < 3 * 0.5 + 1.0
    for lines in results:
        completed = [line["completed"] for line in lines]
        assert completed == sorted(completed)


def test_a_download_goes_on_where_the_connection_was_cut(demo: Server, hub: Hub) -> None:
    hub.cut_once = True
    assert pull(demo)[-1]["status"] == "success"
    assert hub.fetched.count("model.safetensors") == 2
    assert max(hub.ranges) > 10_000_000


def test_a_damaged_file_is_never_taken_for_a_model(demo: Server, hub: Hub) -> None:
    hub.damage = True
    last = pull(demo)[-1]
    assert last["status"] == "error"
    assert "model.safetensors arrived damaged" in last["error"]
    assert transcribe(demo, REPOSITORY).status_code == 404
    hub.damage = False
    assert pull(demo)[-1]["status"] == "success"
    assert transcribe(demo, REPOSITORY).status_code == 200


def test_a_pull_without_streaming_answers_at_the_end(demo: Server) -> None:
    response = demo.client.post("/v1/models/pull", json={"model_name": REPOSITORY, "stream": False})
    assert (response.status_code, response.json()) == (200, {"status": "success"})
    again = demo.client.post("/v1/models/pull", json={"model_name": REPOSITORY, "stream": False})
    assert again.json() == {"status": "success"}


def test_the_command_line_pulls_and_lists_models_and_tells_what_cannot_be_pulled(demo: Server) -> None:
    pulled = run_cli(demo.url, "pull", REPOSITORY)
    assert (pulled.returncode, pulled.stdout, pulled.stderr) == (0, "", "")
    rows = [row.split() for row in run_cli(demo.url, "models").stdout.splitlines()]
    assert [row[0] for row in rows] == [*DEMOS, REPOSITORY]
    assert rows[2][1:] == ["on", "disk"]
    refused = run_cli(demo.url, "pull", "someone/nothing")
    assert refused.returncode == 1
    assert refused.stderr.startswith("voxtral: The Hub has no model someone/nothing")


def test_a_pull_of_what_is_no_model_says_so(demo: Server, hub: Hub) -> None:
    def error(name: str) -> tuple[int, dict]:
        response = demo.client.post("/v1/models/pull", json={"model_name": name, "stream": False})
        return response.status_code, response.json()["error"]

    status, problem = error("someone/nothing")
    assert (status, problem["code"]) == (404, "model_not_found")
    status, problem = error("../../etc")
    assert (status, problem["param"]) == (400, "model_name")
    (hub.folder / "config.json").write_text('{"model_type": "whisper"}')
    hub.fetched.clear()
    status, problem = error(REPOSITORY)
    assert (status, problem["code"]) == (404, "model_not_found")
    assert "is not a Voxtral model" in problem["message"]
    assert hub.fetched == ["config.json"]


def test_a_model_can_be_unloaded_and_comes_back_with_the_next_request(demo: Server) -> None:
    assert demo.client.post("/v1/models/unload").json() == {"status": "unloaded", "id": "voxtral-demo"}
    assert demo.health()["model_state"] == "on_disk"
    assert demo.client.get("/ready").status_code == 200
    assert transcribe(demo, "whisper-1").status_code == 200
    assert demo.health()["model_loaded"]
    assert demo.client.post("/v1/models/load", json={"model": "whisper-1"}).json()["status"] == "already_loaded"


def test_a_model_is_described_as_it_is(server: Server) -> None:
    model = server.client.get("/v1/models/whisper-1").json()
    assert model["capabilities"]["function_calling"]
    assert model["audio_transcription_capabilities"]["context_bias"]
    body = {"model": "whisper-1", "messages": [{"role": "user", "content": "x " * 60_000}]}
    refused = server.client.post("/v1/chat/completions", json=body)
    assert f"the model takes {model['max_context_length']}." in refused.json()["detail"]


def test_a_second_model_takes_the_place_of_the_one_unused_longest_and_goes_when_idle_itself(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(DEMO_MODEL, other)
    settings = {"MODEL_MEMORY_GB": "0.03", "MODEL_ALIASES": f"other={other}", "MODEL_IDLE_TIMEOUT": "3"}
    with Server("--demo", **settings) as server:
        assert transcribe(server, "other").status_code == 200
        assert server.health()["models_loaded"] == ["other"]
        assert transcribe(server, "whisper-1").status_code == 200
        assert server.health()["models_loaded"] == ["voxtral-demo"]
        server.wait_until(lambda health: not health["models_loaded"], seconds=20)
        refused = server.client.delete("/v1/models/voxtral-demo")  # it lies in a folder of the user
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
        assert transcribe(server, "whisper-1").status_code == 200


def test_memory_comes_back_when_a_model_is_unloaded(tmp_path: Path) -> None:
    wide = widened_model(tmp_path / "wide")
    size = (wide / "model.safetensors").stat().st_size
    with Server(VOXTRAL_MODEL_ID=str(wide), VOXTRAL_DTYPE="bfloat16", VOXTRAL_QUANTIZATION="none") as server:
        # Few tokens: its layers are random, and their text would be heard again and again.
        asked = {"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}
        server.client.post("/v1/chat/completions", json=asked).raise_for_status()
        loaded = server.health()["memory_bytes"]
        server.client.post("/v1/models/unload").raise_for_status()
        unloaded = server.health()["memory_bytes"]
        assert loaded - unloaded > 0.8 * size


def widened_model(folder: Path) -> Path:
    """The demo model with a decoder of 100 MB, whose added layers are random."""
    import torch
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    shutil.copytree(DEMO_MODEL, folder)
    config = VoxtralConfig.from_pretrained(DEMO_MODEL)
    config.text_config.hidden_size, config.text_config.intermediate_size = 1024, 4096
    config.text_config.num_hidden_layers = 3
    model = VoxtralForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder
