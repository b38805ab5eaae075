"""Starting the server: what it prints, and the one line it prints when it cannot start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

import main
from config import DEMO_ALIGNER, DEMO_MODEL, ConfigError, Settings
from model_table import DEMOS, Names
from tests.serving import ROOT, Server, clean_environment


def start(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT, env=clean_environment(**settings), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("voxtral-local: ")
    for part in parts:
        assert part in result.stderr


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_one_line(start("--demo", "--port", port), f"127.0.0.1:{port}", "PORT")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux only")
def test_a_connection_knows_when_its_client_has_vanished() -> None:
    with (
        main.listen(Settings(host="127.0.0.1", port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        timeout = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert timeout == main.GONE_SECONDS * 1000


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_an_address_of_another_machine_is_no_taken_port(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"{host}:0 \([A-Z].*Set HOST"):
        main.listen(Settings(host=host, port=0))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"VOXTRAL_MODEL_ID": "/no/such/folder"}, ["VOXTRAL_MODEL_ID", "no such folder"]),
        ({"VOXTRAL_MODEL_ID": "not a repository!"}, ["VOXTRAL_MODEL_ID", "neither a folder nor a repository"]),
        ({"VOXTRAL_MODEL_ID": str(ROOT / "docs")}, ["lacks", "tekken.json"]),
        ({"PORT": "eleven"}, ["PORT=eleven"]),
        (
            {"VOXTRAL_MODEL_ID": str(ROOT / "demo_model"), "VOXTRAL_REPLACEMENTS": "pyproject.toml"},
            ["line 1", "columns"],
        ),
        ({"MAX_AUDIO_SIZE_MB": "-1"}, ["MAX_AUDIO_SIZE_MB=-1"]),
    ],
)
def test_a_setting_that_cannot_work_is_said_in_one_line(settings: dict[str, str], parts: list[str]) -> None:
    assert_one_line(start(**settings), *parts)


def test_names_that_the_user_gives_stand_beside_those_of_the_demos_and_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_ALIASES", "mine=/my/model,voxtral-realtime=/my/realtime")
    settings = main.read_settings(main.parse_arguments(["--demo", "--port", "0"]))
    assert (settings.voxtral_model_id, settings.port) == (str(DEMO_MODEL), 0)
    names = Names(DEMOS[0], settings.model_aliases)
    assert (
        names.meant("voxtral-mini-realtime-latest") == names.meant("voxtral-demo-realtime") == "voxtral-demo-realtime"
    )
    assert (names.meant("mine"), names.meant("voxtral-realtime")) == ("/my/model", "/my/realtime")
    assert settings.audio_chunk_size_seconds == 15
    own = main.read_settings(main.parse_arguments([])).model_aliases
    assert own == {"mine": "/my/model", "voxtral-realtime": "/my/realtime"}


def test_a_start_that_fails_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the middleware cannot be built")

    async def served(server: uvicorn.Server) -> None:
        pass  # without an end it would serve for ever

    monkeypatch.setattr(main, "create_app", lambda settings, download: failing)
    monkeypatch.setattr(main.logs, "configure", lambda *settings: None)
    monkeypatch.setattr(uvicorn.Server, "main_loop", served)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(main, "listen", lambda settings: listening)
        with pytest.raises(SystemExit):
            main.main(["--demo"])


def test_an_aligner_that_is_none_is_named_before_the_start(tmp_path: Path) -> None:
    pretrained = tmp_path / "pretrained"
    shutil.copytree(DEMO_ALIGNER, pretrained)
    (pretrained / "config.json").write_text('{"architectures": ["Wav2Vec2ForPreTraining"]}')
    for name, problem in {
        "/no/such/folder": "no such folder", "not a repository!": "neither a folder nor a repository",
        str(DEMO_MODEL): "lacks vocab.json", str(pretrained): "is not a wav2vec2 model with CTC",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=f"^VOXTRAL_ALIGNER={name}.* {problem}"):
            main.check_models(Settings(voxtral_model_id=str(DEMO_MODEL), voxtral_aligner=name))
    main.check_models(Settings(voxtral_model_id=str(DEMO_MODEL), voxtral_aligner="someone/aligner@abc"))


def test_a_server_whose_model_cannot_load_stays_up_and_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(ROOT / "demo_model", broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with Server(wait_for_model=False, VOXTRAL_MODEL_ID=str(broken)) as server:
        health = server.wait_until(lambda health: health["model_state"] == "failed")
        assert health["status"] == "unhealthy"
        assert health["error"]
        response = server.client.post(
            "/v1/audio/transcriptions",
            files={"file": (ROOT / "tests/clips/short_0.flac").read_bytes()},
            data={"model": "whisper-1"},
        )
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_failed"
        assert response.headers["x-should-retry"] == "false"


def test_without_the_model_and_without_download_requests_are_told_so(tmp_path: Path) -> None:
    settings = {"VOXTRAL_CACHE_DIR": str(tmp_path), "VOXTRAL_ALIGNER": "someone/aligner@abc"}
    with Server("--no-download", wait_for_model=False, **settings) as server:
        assert server.health()["model_state"] == server.health()["aligner"]["state"] == "absent"
        assert server.health()["model_available"] is False
        response = server.client.post(
            "/v1/chat/completions",
            json={
                "model": "voxtral-mini",
                "messages": [{"role": "user", "content": "Transcribe"}],
                "audio": "UklGRg==",
            },
        )
        assert response.status_code in (400, 404)
        clip = (ROOT / "tests/clips/short_0.flac").read_bytes()
        response = server.client.post("/v1/audio/transcriptions", files={"file": clip}, data={"model": "whisper-1"})
        assert response.status_code == 404
        assert "/v1/models/pull" in response.json()["detail"]


def script(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository in a copy that has no .venv."""
    for part in (name, "scripts", "requirements.txt", "requirements-dev.txt"):
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    return subprocess.run(
        [shutil.which("bash"), str(folder / name)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_machine_without_a_fitting_python_is_told_which_to_install(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "cat", "cksum", "tr", "df", "awk"):
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    folder = tmp_path / "copy"
    folder.mkdir()
    assert_one_line(script("start_server.sh", folder, PATH=str(tools)), "Python 3.11, 3.12 or 3.13 is needed")


def test_a_full_disk_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "df").write_text("#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 9 8 1000 99%% /\\n'\n")
    (tools / "df").chmod(0o755)
    folder = tmp_path / "copy"
    folder.mkdir()
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    assert_one_line(script("start_server.sh", folder, PATH=path), "less than 3 GB are free")
