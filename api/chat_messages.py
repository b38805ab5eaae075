"""Messages of every dialect to a conversation, and the recordings in it as they were sent."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from api.chat_schema import ChatBody, ChatMessage
from api.errors import invalid, unsupported
from transcript import Conversation, Message, Slot, ToolCall

RAW = re.compile(r"pcm_s16le_(8000|16000|22050|24000|32000|44100|48000)")


@dataclass(frozen=True)
class Recording:
    """Base64, a data URL, or an address where that may be, and the field that held it."""

    data: object
    param: str
    may_be_address: bool = True
    raw_rate: int | None = None  # Hz of samples that are in no file: PCM, s16le, mono


def conversation_of(body: ChatBody) -> tuple[Conversation, list[Recording]]:
    """Raises ApiError for parts, roles and orders of turns that the model cannot be given."""
    recordings: list[Recording] = []
    turns = [_turn(message, index, recordings) for index, message in enumerate(body.messages)]
    if turns[-1].role not in ("user", "tool"):
        raise invalid("messages", "The last message must be the user's or a tool's.")
    if body.recording is not None:
        if recordings or turns[-1].role != "user":
            raise invalid("audio", "Send one recording in 'audio' after a message of the user, or content parts.")
        turns[-1] = Message("user", (Slot.AUDIO, *turns[-1].parts))
        recordings.append(Recording(body.recording, "audio", may_be_address=False))
    if not any(part is Slot.AUDIO or part.strip() for turn in turns for part in turn.parts):
        raise invalid("messages", "The messages are empty: there is neither text nor audio in them.")
    tool_choice = body.tool_choice or "auto"
    conversation = Conversation(
        tuple(turns),
        tuple(body.tools or ()) if tool_choice != "none" else (),
        tool_choice,
        body.parallel_tool_calls is not False,
        body.answer_format,
    )
    return conversation, recordings


def _turn(message: ChatMessage, index: int, recordings: list[Recording]) -> Message:
    parts: list[str | Slot] = []
    for part in _parts(message):
        audio, form = _audio_of(part)
        if audio is None:
            parts.append(_text_of(part, index))
            continue
        if message.role != "user":
            raise invalid(f"messages.{index}", "Only messages of the user can hold audio.")
        parts.append(Slot.AUDIO)
        recordings.append(Recording(audio, f"messages.{index}.content", raw_rate=_raw_rate(form)))
    calls = tuple(
        ToolCall(call.id, call.function.name, _json_text(call.function.arguments)) for call in message.tool_calls or ()
    )
    return Message(_role(message), tuple(parts), calls, message.tool_call_id)


def _role(message: ChatMessage) -> Literal["system", "user", "assistant", "tool"]:
    return "system" if message.role == "developer" else message.role


def _json_text(arguments: str | dict[str, Any]) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _parts(message: ChatMessage) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return message.content or []


def _audio_of(part: dict[str, Any]) -> tuple[object | None, object]:
    """The base64 or address in an audio part of any dialect, and its format; None for a part that is not audio."""
    for kind, key in (("input_audio", "data"), ("audio_url", "url"), ("file", "file_data")):
        if kind in part:
            value = part[kind]
            return (value.get(key) or "", value.get("format")) if isinstance(value, dict) else (value, None)
    return None, None


def _raw_rate(form: object) -> int | None:
    """Of `pcm_s16le_16000`, as EchoPanel writes it. The format of a file is known by its content."""
    found = RAW.fullmatch(form) if isinstance(form, str) else None
    return int(found[1]) if found else None


def _text_of(part: dict[str, Any], index: int) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise unsupported(f"messages.{index}.content", "Content parts may be of type text, input_audio or audio_url.")
    return part["text"]
