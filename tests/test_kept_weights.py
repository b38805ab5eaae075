"""Quantized weights on disk: the same as packed ones, made anew when anything is wrong, and never in anyone's way."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VoxtralForConditionalGeneration, VoxtralRealtimeForConditionalGeneration

from config import DEMO_MODEL, DEMO_REALTIME, Settings
from engine import kept_weights, weights
from engine.backends.base import LoadOptions
from engine.loading import Placement, load_model
from engine.native import supported
from model_manager import ModelManager
from model_store import ModelStore
from model_table import model_spec

pytestmark = pytest.mark.skipif(not supported(), reason="quantization needs an x86 CPU")
MODELS = {DEMO_MODEL: VoxtralForConditionalGeneration, DEMO_REALTIME: VoxtralRealtimeForConditionalGeneration}


@pytest.fixture(autouse=True)
def worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also weights of a few megabytes, in pieces of which there are many."""
    monkeypatch.setattr(kept_weights, "LEAST_BYTES", 0)
    monkeypatch.setattr(kept_weights, "PIECE_BYTES", 1_000_000)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose checkpoint was read."""
    folders, fill = [], weights._fill
    monkeypatch.setattr(weights, "_fill", lambda *args: folders.append(args[1]) or fill(*args))
    return folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "demo"))


def load(folder: Path, quantization: str = "int8", kind: type = VoxtralForConditionalGeneration) -> torch.nn.Module:
    placement = Placement.of(LoadOptions("cpu", "float32", 8, quantization, keep=True))
    return load_model(kind, folder, placement)


def wait_for_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == "keep-weights":
            thread.join()


def kept(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("packed-*"))


def keep(folder: Path, quantization: str = "int8") -> list[str]:
    """Load the model, wait until its packed weights are kept, if they are, and return the files of such weights."""
    model = load(folder, quantization)
    wait_for_writers()
    del model
    return kept(folder)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def train_further(file: Path) -> None:
    """Other weights of the same size, under the same time."""
    times = file.stat()
    weights = load_file(file)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("original", MODELS, ids=lambda folder: folder.name)
def test_a_second_load_finds_the_weights_of_the_first_and_reads_no_checkpoint(
    original: Path, quantization: str, tmp_path: Path, packings: list[Path]
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "demo"))
    first = load(folder, quantization, MODELS[original])
    wait_for_writers()
    second = load(folder, quantization, MODELS[original])
    assert packings == [folder]
    restored = state(second)
    assert restored.keys() == state(first).keys()
    for name, tensor in state(first).items():
        assert torch.equal(tensor, restored[name]), name
        assert tensor.dtype == restored[name].dtype, name
        assert not restored[name].requires_grad


def test_checkpoints_in_float16_are_kept_too(folder: Path, packings: list[Path]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors")
    assert keep(folder) == keep(folder)
    assert len(packings) == 1


def test_each_quantization_has_a_file_and_weights_in_floats_have_none(folder: Path) -> None:
    keep(folder, "int8")
    keep(folder, "int4")
    assert [name.split("-")[1] for name in keep(folder, "none")] == ["int4", "int8"]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
        lambda folder: train_further(folder / "model.safetensors"),
        lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text() + "\n"),
    ],
    ids=["time", "weights", "configuration"],
)
def test_another_checkpoint_is_packed_anew_and_its_weights_take_the_place_of_the_older(
    change: Callable[[Path], object], folder: Path, packings: list[Path]
) -> None:
    (before,) = keep(folder)
    change(folder)
    (after,) = keep(folder)
    assert (len(packings), before != after) == (2, True)


def test_a_damaged_file_is_made_anew(folder: Path, packings: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    file = folder / keep(folder)[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    keep(folder)
    assert "cannot be used and is made anew" in caplog.text
    assert (len(packings), file.read_bytes() == whole) == (2, True)


def test_an_empty_file_is_made_anew(folder: Path, packings: list[Path]) -> None:
    (name,) = keep(folder)
    save_file({}, folder / name)
    assert keep(folder) == [name]
    assert keep(folder) == [name]
    assert len(packings) == 2


def test_what_a_writer_left_that_was_killed_is_removed_and_what_another_writes_is_not(folder: Path) -> None:
    (name,) = keep(folder)
    left, written = (folder / name.replace(".packed", f".{each}.unfinished") for each in ("0123", "4567"))
    (folder / name).rename(left)
    os.utime(left, (1, 1))
    written.touch()
    assert keep(folder) == sorted([name, written.name])


def test_two_processes_that_write_at_once_leave_one_whole_file(folder: Path, packings: list[Path]) -> None:
    models = [load(folder), load(folder)]
    wait_for_writers()
    del models
    (name,) = kept(folder)
    written = (folder / name).stat().st_mtime_ns
    assert keep(folder) == [name]
    assert ((folder / name).stat().st_mtime_ns, len(packings)) == (written, 2)


def test_a_model_that_goes_while_its_weights_are_written_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, gone = threading.Event(), threading.Event()

    def slow_disk(_: int) -> None:
        writing.set()
        gone.wait(30)

    monkeypatch.setattr(os, "fdatasync", slow_disk)
    model = load(folder)
    assert writing.wait(30)
    (name,) = kept(folder)
    assert name.endswith(".unfinished")
    del model
    gone.set()
    wait_for_writers()
    assert kept(folder) == []


def test_a_disk_without_room_keeps_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert keep(folder) == []
    assert "has hardly more room than that" in caplog.text


def test_a_disk_that_fails_keeps_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def fail(_: int) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    assert keep(folder) == []
    assert "packed weights are not kept: Input/output error" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(("setting", "files"), [("on", 1), ("off", 0)])
async def test_the_server_keeps_them_unless_it_is_told_not_to(setting: str, files: int, folder: Path) -> None:
    manager = ModelManager(Settings(voxtral_model_id=str(folder), voxtral_device="cpu", voxtral_keep_quantized=setting))
    await manager.worker(manager.default)
    wait_for_writers()
    await manager.close()
    assert len(kept(folder)) == files


def test_weights_that_are_packed_in_no_time_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_weights, "LEAST_BYTES", 1_000_000_000)
    assert keep(folder) == []


def test_whoever_deletes_a_model_deletes_its_packed_weights(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--voxtral"
    snapshot = Path(shutil.copytree(DEMO_MODEL, repository / "snapshots" / ("0" * 40)))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs").mkdir()
    keep(snapshot)
    size = sum(file.stat().st_size for file in snapshot.iterdir())
    store = ModelStore(Settings(voxtral_cache_dir=tmp_path))
    spec = model_spec("someone/voxtral")
    assert store.folder(spec) == snapshot
    assert store.delete(spec) == size
    assert not repository.exists()
