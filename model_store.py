"""Model files on disk: finding them, fetching them from the Hub, checking what arrived, deleting them.

Files lie in the Hugging Face cache, where other programs find them too. Everything here blocks; call it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HFCacheInfo, scan_cache_dir, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    CacheNotFound,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from mistral_common.exceptions import MistralCommonException
from safetensors import SafetensorError
from tqdm.auto import tqdm

from config import Settings
from engine.backends import ALIGNERS, MODEL_TYPES, backend_of, is_aligner
from model_table import ModelSpec

log = logging.getLogger("voxtral.models")

# One of these says how audio is prepared; the 4B's repository has the second.
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors.index.json", "model*.safetensors")
HASH_BLOCK_BYTES = 1 << 22
# What the libraries raise over a folder that is not quite a model, or that this machine cannot hold.
LOAD_ERRORS = (
    OSError, ValueError, RuntimeError, MemoryError, KeyError, TypeError, AttributeError, SafetensorError,
    MistralCommonException,
)  # fmt: skip
State = Literal["absent", "downloading", "failed", "on_disk", "loading", "loaded"]


@dataclass(frozen=True)
class Layout:
    """What one kind of models has on disk."""

    kind: str  # for people
    named: str  # what config.json must say
    fits: Callable[[Path], bool]  # whether it does
    needed: tuple[tuple[str, ...], ...]  # beside the weights; of each, one
    files: tuple[str, ...]  # patterns of all that is read
    pickled: tuple[str, ...] = ()  # weights as older repositories have them, read where there are no others


# The Hub repositories also hold `consolidated.safetensors`, all weights a second time in Mistral's own layout.
LAYOUTS = {
    "voxtral": Layout(
        "a Voxtral model",
        f"names one of the types {', '.join(MODEL_TYPES)}",
        lambda folder: backend_of(folder) is not None,
        (("config.json",), ("tekken.json",), PREPROCESSORS),
        ("config.json", "generation_config.json", *PREPROCESSORS, "tekken.json", *WEIGHTS),
    ),
    "aligner": Layout(
        "a wav2vec2 model with CTC",
        f"names one of the architectures {', '.join(ALIGNERS)}",
        is_aligner,
        (("config.json",), ("vocab.json",), ("preprocessor_config.json",)),
        ("config.json", "vocab.json", "preprocessor_config.json", *WEIGHTS),
        ("pytorch_model.bin",),
    ),
}


class DownloadFailed(Exception):
    """`reason`: unknown (the Hub has no such model, or hides it), no_space, or network (anything that may pass)."""

    def __init__(self, reason: Literal["unknown", "no_space", "network"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Download:
    """One fetch at work in its own thread. Any number may watch it; the fields are written by the thread alone."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.stage: Literal["asking", "downloading", "verifying", "done", "failed"] = "asking"
        self.completed = 0  # bytes
        self.total = 0  # bytes
        self.error: DownloadFailed | None = None
        self.finished = threading.Event()

    @property
    def percent(self) -> float:
        return round(100 * self.completed / self.total, 1) if self.total else 0.0


class ModelStore:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = settings.voxtral_cache_dir or Path(HF_HUB_CACHE)

    def folder(self, spec: ModelSpec) -> Path | None:
        """Where a model's files are, or None while they are not all on disk."""
        if spec.folder:
            return spec.folder
        try:
            found = Path(self._snapshot(spec, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None
        return None if missing_files(found, spec.kind) else found

    def cached(self) -> Iterator[str]:
        """Ids of all complete Voxtral models in the cache."""
        cache = self._scan()
        for repository in sorted(cache.repos if cache else (), key=lambda repository: repository.repo_id):
            folders = [revision.snapshot_path for revision in repository.revisions]
            if repository.repo_type == "model" and any(is_complete(folder) for folder in folders):
                yield repository.repo_id

    def delete(self, spec: ModelSpec) -> int | None:
        """Remove every revision of a model from the cache. Returns the bytes that this freed, None if none is there."""
        cache = self._scan()
        if cache is None:
            return None
        repositories = [r for r in cache.repos if (r.repo_type, r.repo_id) == ("model", spec.repository)]
        revisions = [revision.commit_hash for repository in repositories for revision in repository.revisions]
        if not revisions:
            return None
        strategy = cache.delete_revisions(*revisions)
        strategy.execute()
        return strategy.expected_freed_size

    def _scan(self) -> HFCacheInfo | None:
        """What is in the cache; None while there is none, because nothing was ever fetched."""
        try:
            return scan_cache_dir(self._cache)
        except (CacheNotFound, ValueError):
            return None

    def start_download(self, spec: ModelSpec) -> Download:
        """Fetch a model in a thread, with a progress bar in the terminal."""
        download = Download(spec)
        threading.Thread(target=self._run, args=(download,), name="download", daemon=True).start()
        return download

    def _run(self, download: Download) -> None:
        try:
            self._fetch(download)
            download.stage = "done"
            log.info("downloaded %s", download.spec.id)
        except DownloadFailed as error:
            download.error, download.stage = error, "failed"
        except Exception as error:  # noqa: BLE001 - the border of the thread: whoever waits must learn of any failure
            download.error, download.stage = _explain(download.spec, error), "failed"
        finally:
            download.finished.set()
        if download.error:
            log.error("cannot download %s: %s", download.spec.id, download.error)

    def _fetch(self, download: Download) -> None:
        self._check_architecture(download.spec)
        layout = LAYOUTS[download.spec.kind]
        read = (*layout.files, *layout.pickled)
        files = self._snapshot(download.spec, read, dry_run=True, tqdm_class=_silent_bar(lambda _: None))
        if any(file.filename.endswith(".safetensors") for file in files):
            files = [file for file in files if file.filename not in layout.pickled]
        missing = [file for file in files if file.will_download]
        needed = sum(file.file_size for file in missing)
        self._check_disk(needed)
        download.total = sum(file.file_size for file in files)
        download.completed = download.total - needed
        download.stage = "downloading"
        shown = {"unit": "B", "unit_scale": True, "desc": download.spec.id}
        with tqdm(total=download.total, initial=download.completed, **shown) as bar:
            bars, names = _silent_bar(partial(_arrived, download, bar)), tuple(file.filename for file in files)
            folder = Path(self._snapshot(download.spec, names, tqdm_class=bars))
        download.completed, download.stage = download.total, "verifying"
        for file in missing:
            verify(folder / file.filename)
        if lacking := missing_files(folder, download.spec.kind):
            raise DownloadFailed("unknown", f"{download.spec.id} lacks {', '.join(lacking)}, which {layout.kind} has.")

    def _check_architecture(self, spec: ModelSpec) -> None:
        """Look at config.json before gigabytes are fetched that nothing here could load."""
        folder = Path(self._snapshot(spec, ("config.json",), tqdm_class=_silent_bar(lambda _: None)))
        layout = LAYOUTS[spec.kind]
        if not layout.fits(folder):
            raise DownloadFailed("unknown", f"{spec.id} is not {layout.kind}, whose config.json {layout.named}.")

    def _check_disk(self, needed: int) -> None:
        place = next(folder for folder in (self._cache, *self._cache.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise DownloadFailed(
                "no_space",
                f"{needed / 1e9:.1f} GB are needed in {place} and {free / 1e9:.1f} GB are free. Make room, or set "
                "VOXTRAL_CACHE_DIR to another disk.",
            )

    def _snapshot(self, spec: ModelSpec, files: tuple[str, ...] = (), **options: Any) -> Any:
        """Of these files, or else of all that must be read."""
        return snapshot_download(
            spec.repository, revision=spec.revision, allow_patterns=[*(files or LAYOUTS[spec.kind].files)],
            token=self._settings.hf_token, cache_dir=self._settings.voxtral_cache_dir, **options,
        )  # fmt: skip


def missing_files(folder: Path, kind: str = "voxtral") -> list[str]:
    """What a model folder lacks; an interrupted download leaves it without some of its weights."""
    layout, index = LAYOUTS[kind], folder / "model.safetensors.index.json"
    weights = [("model.safetensors", *layout.pickled)]
    if index.exists():
        weights = [(name,) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    groups = (*layout.needed, *weights)
    return [names[0] for names in groups if not any((folder / name).exists() for name in names)]


def fingerprint(folder: Path, kind: str = "voxtral") -> str:
    """Changes when a model's files do: a hash of their names, sizes and times, because reading gigabytes takes long."""
    layout = LAYOUTS[kind]
    files = sorted(file for pattern in (*layout.files, *layout.pickled) for file in folder.glob(pattern))
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def is_complete(folder: Path) -> bool:
    return LAYOUTS["voxtral"].fits(folder) and not missing_files(folder)


def valid_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def verify(file: Path) -> None:
    """Compare a downloaded file with its hash; a damaged one is deleted, so that the next download fetches it again.

    The cache names a blob by its etag: the SHA-256 of a large file, git's SHA-1 of a small one. Where the cache has no
    links (Windows), the name tells nothing and the Hub client's check of the size has to do.
    """
    blob = file.resolve()
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    elif len(blob.name) == 40:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return
    with blob.open("rb") as content:
        while block := content.read(HASH_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        file.unlink()
        blob.unlink(missing_ok=True)
        raise DownloadFailed("network", f"{file.name} arrived damaged and was deleted. Pull the model again.")


def _explain(spec: ModelSpec, error: Exception) -> DownloadFailed:
    """The Hub client says why in the causes of what it raises, and at length."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError) for cause in causes):
        return DownloadFailed(
            "unknown",
            f"The Hub has no model {spec.repository} at revision {spec.revision} that it shows to this machine. "
            "Check the name; a private or gated model needs HF_TOKEN.",
        )
    reason = str(causes[-1]).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return DownloadFailed("network", f"{reason}. Check the network and the disk, and pull the model again.")


def _arrived(download: Download, bar: tqdm, size: int) -> None:
    bar.update(size)
    download.completed += size


def _silent_bar(arrived: Callable[[int], None]) -> type[tqdm]:
    """What huggingface-hub draws its bars with: draws none, and reports the bytes that have reached the disk.

    The Hub client counts bytes twice, in a bar for the network and in one for the disk, and files in a third.
    """

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = str(options.get("desc")).startswith("Reconstructing")
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts and n:
                arrived(int(n))
            return super().update(n)

    return SilentBar
