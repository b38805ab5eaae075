"""Settings: the only reader of the environment.

Each field below is one environment variable; its description is what README and .env.example say about it (a test
compares them). Values come from the process environment first, then from the file `.env`, then from the default.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

ROOT = Path(__file__).resolve().parent
DEMO_MODEL = ROOT / "demo_model"
DEMO_REALTIME = ROOT / "demo_realtime"
DEMO_ALIGNER = ROOT / "demo_aligner"
# A name of two labels at least, so that neither `*` nor `*.org` lets a server fetch from anywhere.
HOST_NAME = re.compile(r"(\*\.)?([a-z0-9-]+\.)+[a-z0-9-]+(:\d{1,5})?", re.IGNORECASE)
# One that clients may address; an IPv6 address stands in brackets, as in the Host header.
TRUSTED_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]", re.IGNORECASE)
DEFAULT_MODEL = "mistralai/Voxtral-Mini-3B-2507"


class ConfigError(Exception):
    """A setting that cannot be used; the message says which one, why, and what to write instead."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on. 0.0.0.0 lets other machines in.")
    port: int = Field(11344, ge=0, le=65535, description="Port to listen on. 0 takes any free one.")
    api_keys: tuple[str, ...] = Field(
        (), description="Keys, with commas between, one of which a client must send. Empty: none is asked for."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins of web pages that may call the API, with commas between. `*`: any."
    )
    trusted_hosts: tuple[str, ...] = Field(
        ("*",), description="Host names that clients may address, with commas between; `*.example.org` works. `*`: any."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")
    log_format: Literal["text", "json"] = Field("text", description="json: one JSON object for each line of the log.")
    voxtral_model_id: str = Field(
        DEFAULT_MODEL, min_length=1, description="Model to serve: a Hugging Face repository or a folder."
    )
    voxtral_model_revision: str | None = Field(
        None, description="Commit of the repository. Empty: the one pinned for known models, else `main`."
    )
    voxtral_device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="Where the model runs. auto: CUDA, else MPS, else CPU."
    )
    voxtral_dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the weights. auto: bfloat16 where the device computes in it, else float32."
    )
    voxtral_quantization: Literal["auto", "none", "int8", "int4"] = Field(
        "auto",
        description="Bits of the weights, on x86 CPUs. auto: int8 there, else none. "
        "int4: less memory and quicker, less accurate.",
    )
    voxtral_keep_quantized: Literal["on", "off"] = Field(
        "on",
        description="on: quantized weights of a gigabyte or more are kept beside the model, whose next start is then "
        "quick. off: each start makes them anew.",
    )
    voxtral_cache_dir: Path | None = Field(
        None, description="Where models are kept. Empty: the Hugging Face cache of this user."
    )
    hf_token: str | None = Field(None, description="Hugging Face token. Voxtral needs none; private models do.")
    model_aliases: dict[str, str] = Field({}, description="More names for models: `name=model`, with commas between.")
    model_idle_timeout: float = Field(
        0, ge=0, description="Seconds without use after which a model is unloaded; the next request loads it. 0: never."
    )
    model_memory_gb: float = Field(
        0,
        ge=0,
        description="Memory for the weights of all loaded models, in 10^9 bytes; what VOXTRAL_ALIGNER names is not "
        "counted. 0: no limit.",
    )
    memory_reserve_gb: float = Field(
        0.25, ge=0, description="Free memory, in 10^9 bytes, below which a model that nobody uses is unloaded."
    )
    max_batch_size: int = Field(
        0, ge=0, le=512, description="Chunks of audio that are decoded together. 0: 8; on a GPU 64, or as many as fit."
    )
    max_concurrent_requests: int = Field(
        64, ge=1, le=10_000, description="Requests at work or waiting at once; one more is answered 429."
    )
    requests_per_minute: int = Field(
        0, ge=0, description="Requests a minute from one key, or from one address without keys; more is a 429. 0: any."
    )
    max_audio_size_mb: int = Field(500, ge=1, description="Largest upload in megabytes (10^6 bytes); more is a 413.")
    remote_audio_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that recordings named by an https address are fetched from, with commas between; "
        "`*.example.org` works, and `host:8443`. Empty: none.",
    )
    remote_audio_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Seconds within which a recording must have been fetched from such a host."
    )
    max_audio_duration_seconds: int = Field(4 * 3600, ge=1, description="Longest audio in seconds; more is a 413.")
    audio_chunk_size_seconds: int = Field(
        60, ge=5, le=600, description="Longest piece of audio, in seconds, that the model hears at once."
    )
    voxtral_vad: Literal["on", "off"] = Field(
        "on", description="on: the model hears only where somebody speaks. off: it hears all of a recording."
    )
    voxtral_aligner: str = Field(
        "",
        description="CTC model that finds when words were spoken: a Hugging Face repository, `repository@commit`, or a "
        "folder. Empty: Voxtral's own attention does.",
    )
    voxtral_replacements: Path | None = Field(
        None, description="CSV file of words that are always written in one way: `heard,written` on each line."
    )
    tokens_per_second: float = Field(
        20.0,
        gt=0,
        le=100,
        description="Tokens a chunk may produce for each second of its audio, beside 64 for any chunk.",
    )
    max_answer_tokens: int = Field(
        4096, ge=1, le=32_768, description="Tokens of a chat answer where the request sets no limit."
    )
    chunk_store_mb: int = Field(
        256,
        ge=0,
        description="Megabytes (10^6 bytes) on disk for the text of finished chunks, so that a recording that is sent "
        "again goes on where it was. 0: nothing is kept or read, and what was kept before stays in "
        "`chunks.sqlite3` of CHUNK_STORE_DIR until you delete that file.",
    )
    chunk_store_days: int = Field(7, ge=1, le=3650, description="Days after which such a text is dropped.")
    chunk_store_dir: Path | None = Field(
        None, description="Where they are kept. Empty: `voxtral-local` in the cache folder of this user."
    )
    subtitle_line_length: int = Field(42, ge=10, le=200, description="Characters of a line of srt and vtt at most.")
    subtitle_lines: int = Field(2, ge=1, le=10, description="Lines of a subtitle at most.")
    subtitle_min_seconds: float = Field(
        1.0, ge=0, le=10, description="Seconds that a subtitle stands at least, where the next one lets it."
    )
    subtitle_max_seconds: float = Field(7.0, ge=1, le=60, description="Seconds that a subtitle stands at most.")
    realtime_max_sessions: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Live sessions at once; one more is refused. So is one of a realtime model that finds no memory, "
        "and a socket beyond four for each.",
    )
    realtime_backlog_soft_seconds: float = Field(
        5.0,
        gt=0,
        description="Seconds of audio that may wait for the model before a live session hears more of it at once, "
        "which costs less.",
    )
    realtime_backlog_seconds: float = Field(
        30.0,
        ge=2,  # two steps of a realtime model always wait, and a second where it was behind
        description="Seconds of audio that may wait for the model; more is refused, or a faster sender waits.",
    )
    realtime_idle_seconds: int = Field(300, ge=1, description="Seconds without audio after which a live session ends.")
    realtime_session_seconds: int = Field(4 * 3600, ge=1, description="Seconds after which a live session ends.")
    heartbeat_seconds: float = Field(
        10.0, gt=0, le=300, description="Seconds of silence on a stream after which a comment line is sent."
    )

    @field_validator(
        "voxtral_model_revision", "voxtral_cache_dir", "voxtral_replacements", "chunk_store_dir", "hf_token",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _empty_is_absent(cls, value: object) -> object:
        return value or None

    @field_validator(
        "log_level", "log_format", "voxtral_device", "voxtral_dtype", "voxtral_quantization", "voxtral_keep_quantized",
        "voxtral_vad", mode="before",
    )  # fmt: skip
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("api_keys", "cors_origins", "trusted_hosts", "remote_audio_hosts", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value

    @field_validator("remote_audio_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(HOST_NAME.fullmatch(name) for name in value):
            raise ValueError("write host names, such as audio.example.org or *.example.org")
        return tuple(name.lower() for name in value)

    @field_validator("trusted_hosts")
    @classmethod
    def _trusted_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(TRUSTED_HOST.fullmatch(name) for name in value):
            raise ValueError("write host names without ports, such as asr.example.org or *.example.org, or * for any")
        return tuple(name.lower() for name in value)

    @field_validator("voxtral_cache_dir", "voxtral_replacements", "chunk_store_dir")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        try:
            return value and value.expanduser()
        except RuntimeError as error:
            raise ValueError(f"{error}: write the folder in full") from None

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(name.strip() and model.strip() for name, _, model in pairs):
            raise ValueError("write name=model, with commas between")
        return {name.strip(): model.strip() for name, _, model in pairs}

    @property
    def max_audio_bytes(self) -> int:
        return self.max_audio_size_mb * 1_000_000

    @property
    def chunk_store_file(self) -> Path:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")  # freedesktop.org's name for it
        return (self.chunk_store_dir or caches.expanduser() / "voxtral-local") / "chunks.sqlite3"

    def token_cap(self, seconds: float) -> int:
        """Most tokens that `seconds` of audio can need: several times the rate of fast speech."""
        return 64 + round(self.tokens_per_second * seconds)


def load_settings(
    env_file: Path = ROOT / ".env", defaults: Mapping[str, object] | None = None, **overrides: object
) -> Settings:
    """Settings from `defaults`, `env_file`, the environment and the command line (`overrides`), strongest last.

    Raises ConfigError with one line that names the variable or the line of the file.
    """
    values = {**_read_env_file(env_file), **os.environ}
    given = dict(defaults or {}) | {
        name: values[name.upper()] for name in Settings.model_fields if name.upper() in values
    }
    try:
        return Settings.model_validate({**given, **overrides})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).upper()
        raise ConfigError(
            f"{name}={problem['input']}: {problem['msg']}. Set it in .env or in the environment."
        ) from None


def _read_env_file(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Write it as UTF-8 text, one NAME=value a line.") from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key and binding.value is None):
            line = binding.original.string.strip()
            raise ConfigError(
                f"{path}, line {binding.original.line}: '{line}' is not NAME=value. Correct or delete it."
            )
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}
