"""Quantized weights on disk beside the model they came from, so that the next start has them at once.

That start maps the file, whose pages are then the weights: nothing is packed, half as much is read or less, and nothing
at all that the system still has in its page cache. The name of a file has a hash of all that its content depends on:
after another checkpoint, another version of this code, or a move to a CPU that wants other weights none is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
import transformers
from safetensors import SafetensorError, safe_open

from engine.linear import WEIGHT_LIMIT, PackedLinear
from engine.pages import map_at_once

log = logging.getLogger("voxtral.engine")

LEAST_BYTES = 1_000_000_000  # of weights worth keeping: fewer are packed in a second or two
PIECE_BYTES = 64_000_000  # on their way to the disk at once; after each the writer looks whether it is to go on
LOWEST_PRIORITY = 19
UNFINISHED, ABANDONED_SECONDS = ".unfinished", 3600
SAMPLES, SAMPLE_BYTES = 64, 1024  # of a checkpoint's file
# What the format calls the types that packed models have: https://huggingface.co/docs/safetensors
TYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
ENGINE = Path(__file__).parent
SOURCES = ("kept_weights.py", "weights.py", "linear.py", "kernels/*.[ch]")  # that say where each weight lies


class KeptWeights:
    """Those of the model in `folder` with `quantization`, what is not quantized being in `dtype`."""

    def __init__(self, folder: Path, quantization: str, dtype: torch.dtype) -> None:
        self._prefix = f"packed-{quantization}-{str(dtype).removeprefix('torch.')}-{WEIGHT_LIMIT}-"
        # Other programs read all files that end in .safetensors or .bin.
        self._file = folder / f"{self._prefix}{_hash(folder)}.packed"

    def restore(self, model: torch.nn.Module) -> bool:
        """Give `model` the weights in the file; False where there is none, or none that can be read."""
        if not self._file.exists():
            return False
        try:
            with safe_open(self._file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            for name, tensor in tensors.items():
                _place(model, name, tensor)
            map_at_once([*tensors.values()], huge=True)
        except (OSError, ValueError, SafetensorError, AttributeError) as error:
            log.warning("%s cannot be used and is made anew: %s", self._file, error)
            with suppress(OSError):
                self._file.unlink()
            return False
        return True

    def save(self, model: torch.nn.Module) -> None:
        """Have a thread write the weights that `model` has now, and give up when the model goes."""
        weights = dict(sorted(_weights(model), key=lambda item: (item[1].itemsize, item[1].nbytes), reverse=True))
        if sum(tensor.nbytes for tensor in weights.values()) < LEAST_BYTES:
            return
        writer = _Writer(self._file, weights, self._prefix)
        try:
            writer.start()
        except RuntimeError as error:  # no more threads
            log.info("packed weights are not kept: %s", error)
        weakref.finalize(model, writer.stop)


class _Writer(threading.Thread):
    """No daemon: the process ends when it has given up, or is through, and has left nothing half-written."""

    def __init__(self, file: Path, weights: dict[str, torch.Tensor], prefix: str) -> None:
        super().__init__(name="keep-weights")
        self._file, self._weights, self._prefix = file, weights, prefix
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Does not wait, because garbage may be collected anywhere."""
        self._stopping.set()

    def run(self) -> None:
        try:
            # Of this thread alone, under Linux: whoever is transcribed meanwhile comes first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
            if not self._file.exists():  # else another process was sooner
                self._remove_older()
                self._check_room()
                self._keep()
        except Exception as error:  # noqa: BLE001 - the border of the thread, without whose file all goes on
            log.warning("packed weights are not kept: %s", error)
        finally:
            self._weights.clear()

    def _remove_older(self) -> None:
        """What other checkpoints or versions left, and processes that were killed while they wrote."""
        for file in self._file.parent.glob(f"{self._prefix}*"):
            if file.suffix != UNFINISHED or time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                file.unlink()

    def _check_room(self) -> None:
        size = sum(tensor.nbytes for tensor in self._weights.values())
        if shutil.disk_usage(self._file.parent).free < 2 * size:
            raise OSError(f"they are {size / 1e9:.1f} GB, and {self._file.parent} has hardly more room than that")

    def _keep(self) -> None:
        unfinished = self._file.with_suffix(f".{secrets.token_hex(4)}{UNFINISHED}")
        try:
            with unfinished.open("xb") as file:
                self._write(file)
            if not self._stopping.is_set():
                unfinished.replace(self._file)
                log.info("packed weights are kept for the next start: %s", self._file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _write(self, file: BinaryIO) -> None:
        file.write(_header(self._weights))
        for tensor in self._weights.values():
            content = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
            for start in range(0, len(content), PIECE_BYTES):
                if self._stopping.is_set():
                    return
                file.write(content[start : start + PIECE_BYTES])
                file.flush()
                os.fdatasync(file.fileno())


def _hash(folder: Path) -> str:
    """Of the code, and of the checkpoint's files as far as that is known in no time: sizes, times and some samples."""
    checkpoint = [(file.name, *_looks(file)) for file in sorted(folder.glob("model*.safetensors"))]
    code = [source.read_bytes() for pattern in SOURCES for source in sorted(ENGINE.glob(pattern))]
    seen = (checkpoint, (folder / "config.json").read_bytes(), code, transformers.__version__)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _looks(file: Path) -> tuple[int, int, list[bytes]]:
    stat = file.stat()
    with file.open("rb") as content:
        places = [stat.st_size * i // SAMPLES for i in range(SAMPLES)]
        return stat.st_size, stat.st_mtime_ns, [_read(content, place) for place in places]


def _read(content: BinaryIO, place: int) -> bytes:
    content.seek(place)
    return content.read(SAMPLE_BYTES)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.data
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield from ((f"{path}.{name}", buffer) for name, buffer in module.named_buffers())


def _place(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    is_packed = isinstance(module, PackedLinear) and leaf != "bias"
    setattr(module, leaf, tensor if is_packed else torch.nn.Parameter(tensor, requires_grad=False))


def _header(weights: dict[str, torch.Tensor]) -> bytes:
    """With spaces at its end, so that weights begin with a page. They have no gaps between them: the greater of a type
    come before the smaller, which keeps all aligned whose sizes matter."""
    entries, end = {}, 0
    for name, tensor in weights.items():
        span = [end, end := end + tensor.nbytes]
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": span}
    text = json.dumps(entries).encode()
    text = text.ljust(-(-(len(text) + 8) // mmap.PAGESIZE) * mmap.PAGESIZE - 8)
    return len(text).to_bytes(8, "little") + text
