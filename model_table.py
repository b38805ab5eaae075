"""The models that are known by name: where they come from, what they can do, and what else they are called.

One row for each model. Any folder and any Hub repository with the same architecture works too; a spec is made for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from config import DEMO_MODEL, DEMO_REALTIME

CONTEXT_LENGTH = 32_768  # tokens that every Voxtral is published with; a loaded model may have fewer
LANGUAGES = ("en", "es", "fr", "pt", "hi", "de", "nl", "it", "ar")
REALTIME_LANGUAGES = (*LANGUAGES, "ru", "zh", "ja", "ko")


@dataclass(frozen=True)
class ModelSpec:
    id: str
    repository: str
    revision: str
    created: int  # Unix time of its publication
    aliases: tuple[str, ...] = ()
    languages: tuple[str, ...] = LANGUAGES
    folder: Path | None = None  # on disk already, outside the Hugging Face cache
    kind: Literal["voxtral", "aligner"] = "voxtral"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)


# Clients that were written for other servers ask for these; whichever model is served answers to them.
CLIENT_ALIASES = (
    "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "gpt-live-transcribe",
    "gpt-realtime-whisper", "voxtral", "voxtral-local", "voxtral-mini-latest", "voxtral-small-latest",
    "voxtral-mini-2602",
)  # fmt: skip
MODELS = (
    ModelSpec(
        "mistralai/Voxtral-Mini-3B-2507", "mistralai/Voxtral-Mini-3B-2507", "3060fe34b35ba5d44202ce9ff3c097642914f8f3",
        1_751_414_400, ("voxtral-mini", "voxtral-mini-2507", "voxtral-mini-3b", "Voxtral-Mini-3B-2507"),
    ),
    ModelSpec(
        "mistralai/Voxtral-Small-24B-2507", "mistralai/Voxtral-Small-24B-2507",
        "da5b42409f279fdd92febee0511a6c32828569c1", 1_751_414_400,
        ("voxtral-small", "voxtral-small-2507", "voxtral-small-24b", "Voxtral-Small-24B-2507"),
    ),
    ModelSpec(
        "mistralai/Voxtral-Mini-4B-Realtime-2602", "mistralai/Voxtral-Mini-4B-Realtime-2602",
        "2769294da9567371363522aac9bbcfdd19447add", 1_770_163_200,
        ("voxtral-realtime", "voxtral-mini-realtime", "voxtral-mini-4b-realtime", "Voxtral-Mini-4B-Realtime-2602",
         "voxtral-mini-transcribe-realtime-2602", "voxtral-mini-realtime-latest", "voxtral-mini-realtime-2602"),
        languages=REALTIME_LANGUAGES,
    ),
)  # fmt: skip
# The demos answer to the names of what they stand for, so that a client can be tried before 9 GB are fetched.
DEMOS = (
    ModelSpec("voxtral-demo", "", "", 1_795_219_200, MODELS[0].names, languages=("en",), folder=DEMO_MODEL),
    ModelSpec("voxtral-demo-realtime", "", "", 1_795_219_200, MODELS[2].names, languages=("en",), folder=DEMO_REALTIME),
)


def model_spec(model_id: str, revision: str | None = None) -> ModelSpec:
    """The spec that a name means: a known model, a folder, or any other Hub repository."""
    folder = Path(os.path.expanduser(model_id))  # noqa: PTH111 - leaves the `~` of a user that there is not
    for demo in DEMOS:
        if folder.absolute() == demo.folder:
            return demo
    if folder.is_dir():
        return ModelSpec(folder.name, "", "", int(folder.stat().st_mtime), folder=folder)
    for spec in MODELS:
        if model_id in spec.names:
            return replace(spec, revision=revision or spec.revision)
    return ModelSpec(model_id, model_id, revision or "main", 0)


def aligner_spec(name: str) -> ModelSpec:
    """The CTC model that VOXTRAL_ALIGNER means: a folder, or a Hub repository and after `@` its commit."""
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - as above
    if folder.is_dir():
        return ModelSpec(folder.name, "", "", 0, folder=folder, kind="aligner")
    repository, _, revision = name.partition("@")
    return ModelSpec(repository, repository, revision or "main", 0, kind="aligner")


class Names:
    """Which model a client means: the default model's names win, then the operator's, then those of other servers."""

    def __init__(self, default: ModelSpec, aliases: Mapping[str, str]) -> None:
        self._default, self._aliases = default, aliases

    def of(self, spec: ModelSpec) -> Iterator[str]:
        """Every name that `spec` answers to, its own first."""
        yield spec.id
        given = (name for name, model in self._aliases.items() if self.meant(model) == spec.id)
        own = (name for name in spec.aliases if self.meant(name) == spec.id)
        clients = CLIENT_ALIASES if spec == self._default else ()
        yield from dict.fromkeys((*own, *given, *clients))

    def meant(self, name: str) -> str:
        """The id of the model that `name` stands for; `name` itself where it is no alias."""
        if name in self._default.names:
            return self._default.id
        if name in self._aliases:
            target = self._aliases[name]
            return self._default.id if target in self._default.names else model_spec(target).id
        if name in CLIENT_ALIASES:
            return self._default.id
        return next((spec.id for spec in MODELS if name in spec.names), name)
