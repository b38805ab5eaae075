"""Drives LiteLLM for test_litellm.py: `drive_litellm.py URL RECORDING` prints what each step gave as JSON.

Runs in a virtual environment that holds LiteLLM and nothing of this repository.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litellm

litellm.suppress_debug_info = True  # advice on standard output, where the results go
URL, RECORDING = sys.argv[1], Path(sys.argv[2])
SERVER = {"api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0}
AUDIO = {"data": base64.b64encode(RECORDING.read_bytes()).decode(), "format": "wav"}
MESSAGES = [{"role": "user", "content": [{"type": "input_audio", "input_audio": AUDIO}]}]
SCHEMA = {
    "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
    "additionalProperties": False,
}  # fmt: skip


def transcribe(model: str, **options: Any) -> dict[str, Any]:
    with RECORDING.open("rb") as file:
        return litellm.transcription(model=model, file=file, **SERVER, **options).model_dump()


def transcribe_async() -> dict[str, Any]:
    with RECORDING.open("rb") as file:
        return asyncio.run(litellm.atranscription(model="openai/whisper-1", file=file, **SERVER)).model_dump()


def chat(model: str = "openai/whisper-1", **options: Any) -> Any:
    return litellm.completion(model=model, messages=MESSAGES, **SERVER, **options)


def chat_stream() -> dict[str, Any]:
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    return {
        "deltas": [chunk.choices[0].delta.content or "" for chunk in chunks],
        "usage": chunks[-1].usage.model_dump(),
    }


def schema() -> str:
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
    return chat(response_format=form).choices[0].message.content


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """What LiteLLM's own error says."""
    try:
        call(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - which class it is, is the finding
        names = [kind.__name__ for kind in type(error).__mro__]
        return {"classes": names, "param": getattr(error, "param", None), "message": str(error)}
    return {"classes": []}


STEPS: dict[str, Callable[[], Any]] = {
    "openai": lambda: transcribe("openai/whisper-1"),
    "json": lambda: transcribe("openai/whisper-1", response_format="json", language="en"),
    "hosted_vllm": lambda: transcribe("hosted_vllm/whisper-1"),
    "mistral": lambda: transcribe("mistral/voxtral-mini-latest", context_bias=["orange", "hotel"]),
    "async": transcribe_async,
    "stream": lambda: transcribe("openai/whisper-1", stream=True),
    "chat": lambda: chat().model_dump(),
    "chat_hosted_vllm": lambda: chat("hosted_vllm/whisper-1").model_dump(),
    "chat_stream": chat_stream,
    "schema": schema,
    "models": lambda: litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=SERVER["api_base"], api_key="none"
    ),
    "refused": lambda: refusal(transcribe, "openai/whisper-1", temperature=7),
    "refused_mistral": lambda: refusal(transcribe, "mistral/voxtral-mini-latest", diarize=True),
    "refused_chat": lambda: refusal(chat, temperature=7),
}


def attempt(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - the test that looks at this step says what was thrown
        return {"thrown": f"{type(error).__name__}: {error}"}


with ThreadPoolExecutor() as threads:
    print(json.dumps(dict(zip(STEPS, threads.map(attempt, STEPS.values()), strict=True))))
