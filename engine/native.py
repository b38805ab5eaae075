"""Kernels of our own in C, compiled for the very CPU when a model first wants them, in 0.3 s each.

The compiler is clang, which the package `ziglang` brings: nobody has to install one. Kernels run in PyTorch's own
threads, so that no second pool wants the cores, and without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

KERNELS = Path(__file__).parent / "kernels"
THIS_CPU = "native"
_begun: dict[tuple[str, str], Future[ctypes.CDLL]] = {}  # by name and CPU


def supported() -> bool:
    """Whether kernels can be compiled and run on this machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


@cache
def library(name: str, cpu: str = THIS_CPU) -> ctypes.CDLL:
    """The kernels in `name`.c, for this CPU or one of LLVM's names. Raises RuntimeError with the compiler's or the
    system's reason."""
    begin(name, cpu)
    try:
        return _begun[name, cpu].result()
    except RuntimeError:  # another try may find the compiler, or room on the disk
        _begun.pop((name, cpu), None)
        raise


def begin(name: str, cpu: str = THIS_CPU) -> None:
    """Compile what will soon be wanted, while something else is done."""
    if (name, cpu) not in _begun:
        thread = ThreadPoolExecutor(1, "compiling")
        _begun[name, cpu] = thread.submit(_compiled, name, cpu)
        thread.shutdown(wait=False)  # it ends with what it was given


def _compiled(name: str, cpu: str) -> ctypes.CDLL:
    try:
        import ziglang
    except ImportError:
        raise RuntimeError("the compiler is missing: run `pip install -r requirements.txt`") from None
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / f"{name}.so"
        # Intel's CPUs would be given vectors of 32 bytes, for which the kernels have too few registers.
        options = ("-O3", f"-mcpu={cpu}", "-mprefer-vector-width=512", "-fno-strict-aliasing", "-shared", "-fPIC")
        # Without a standard library, which zig would build first, in 4 s, and without the headers of one, which a
        # machine may not have. Kernels call memcpy alone, which is in the process.
        options += ("-nostdlib", "-nostdlibinc", "-ffreestanding")
        warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
        compiled = subprocess.run(
            [Path(ziglang.__file__).parent / "zig", "cc", *options, *warnings, "-o", binary, KERNELS / f"{name}.c"],
            env={"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if compiled.returncode:
            raise RuntimeError(f"{name}.c could not be compiled for this CPU: {compiled.stderr.strip()}")
        try:
            return ctypes.CDLL(str(binary))
        except OSError as error:
            raise RuntimeError(f"{error}. Set TMPDIR to a folder from which programs may be run.") from None


@cache
def parallel() -> ctypes.c_void_p:
    """What starts a task in PyTorch's threads: GOMP_parallel of the OpenMP that it was linked with, whichever it is."""
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p)


def prepare(name: str) -> None:
    """Have compiled, while a model is loaded, what its first request would wait for. Raises RuntimeError."""
    library(name)
    parallel()


def run(name: str, function: str, job: ctypes.Structure, cpu: str = THIS_CPU) -> None:
    """Have PyTorch's threads do a job of `name`.c, and wait for it. What it points to must live until then."""
    threads = ctypes.c_uint32(torch.get_num_threads())
    getattr(library(name, cpu), function)(ctypes.byref(job), parallel(), threads)
