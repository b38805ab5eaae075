"""Prompts and text by the official tokenizer, mistral-common.

A prompt is encoded once around a short placeholder recording; the run of audio tokens in it is then given the length
that the real audio has. This is the token layout of mistral-common itself, without sending audio through base64.
"""

from __future__ import annotations

import base64
import codecs
import io
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import soundfile
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import AudioChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.transcription.request import TranscriptionRequest as MistralTranscriptionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from engine.core import Prompt, PromptInvalid
from transcript import Message


class VoxtralTokenizer:
    def __init__(self, folder: Path) -> None:
        self._mistral = MistralTokenizer.from_file(str(folder / "tekken.json"))
        self._tekken = self._mistral.instruct_tokenizer.tokenizer
        self._audio_id = self._mistral.instruct_tokenizer.audio_encoder.special_ids.audio
        self.end_of_text = self._tekken.eos_id
        self.transcription_prompt = lru_cache(maxsize=256)(self._transcription_prompt)

    def _transcription_prompt(self, language: str | None) -> Prompt:
        """`<s>[INST][BEGIN_AUDIO]` audio `[/INST]` (`lang:xx`) `[TRANSCRIBE]`."""
        request = MistralTranscriptionRequest(model="voxtral", audio=_placeholder(), language=language)
        return self._split(self._mistral.encode_transcription(request).tokens)

    def chat_prompt(self, messages: tuple[Message, ...]) -> Prompt:
        """A conversation in which one turn of the user holds the audio. Raises PromptInvalid."""
        request = ChatCompletionRequest(messages=[_mistral_message(message) for message in messages])
        try:
            return self._split(self._mistral.encode_chat_completion(request).tokens)
        except MistralCommonException as error:
            raise PromptInvalid(f"The messages cannot be given to the model: {error}") from None

    def _split(self, tokens: list[int]) -> Prompt:
        first = tokens.index(self._audio_id)
        count = tokens.count(self._audio_id)
        return Prompt(tuple(tokens[:first]), tuple(tokens[first + count :]))

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, which may be part of a character; none for control tokens."""
        return self._tekken.id_to_byte_piece(token, SpecialTokenPolicy.IGNORE)


class TextDecoder:
    """Tokens to text as they come, holding back the bytes of a character that is not whole yet."""

    def __init__(self, tokenizer: VoxtralTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@cache
def _placeholder() -> str:
    """A second of silence as base64 WAV."""
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16_000, np.float32), 16_000, format="WAV")
    return base64.b64encode(wav.getvalue()).decode()


def _mistral_message(message: Message) -> SystemMessage | UserMessage | AssistantMessage:
    text = "\n".join(message.parts)
    if message.role == "system":
        return SystemMessage(content=text)
    if message.role == "assistant":
        return AssistantMessage(content=text)
    chunks: list[TextChunk | AudioChunk] = [TextChunk(text=part) for part in message.parts]
    if message.audio_at is not None:
        chunks.insert(message.audio_at, AudioChunk(input_audio=_placeholder()))
    return UserMessage(content=chunks)
