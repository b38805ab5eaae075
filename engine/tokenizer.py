"""Prompts and text by the official tokenizer, mistral-common.

A prompt is encoded once around short placeholder recordings; each run of audio tokens in it is then given the length
that the real audio has. This is the token layout of mistral-common itself, without sending audio through base64.
"""

from __future__ import annotations

import base64
import codecs
import io
from collections.abc import Callable, Mapping
from functools import cache, cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from llguidance import LLMatcher
from mistral_common.exceptions import MistralCommonException
from mistral_common.guidance.grammar_factory import GrammarFactory
from mistral_common.protocol.instruct.chunk import AudioChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall
from mistral_common.protocol.instruct.tool_calls import ToolCall as MistralToolCall
from mistral_common.protocol.transcription.request import TranscriptionRequest as MistralTranscriptionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, SpecialTokens
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from pydantic import ValidationError

from engine.biasing import Borders, KeywordTree
from engine.core import Prompt, PromptInvalid
from engine.grammar import compact
from transcript import Conversation, Message, Slot

# What OpenAI's json_object promises; mistral-common's own takes a list of anything too, which clients cannot read.
ANY_OBJECT = {
    "type": "json_schema",
    "json_schema": {"name": "object", "schema": {"type": "object"}, "strict": True},
}


NO_PARAMETERS = {"type": "object", "properties": {}}


class VoxtralTokenizer:
    follows_instructions = True

    def __init__(self, folder: Path) -> None:
        self._mistral = MistralTokenizer.from_file(str(folder / "tekken.json"))
        self._tekken = self._mistral.instruct_tokenizer.tokenizer
        self._audio_id = self._mistral.instruct_tokenizer.audio_encoder.special_ids.audio
        self.vocabulary_size: int = self._tekken.n_words
        self.end_of_text = self._tekken.eos_id
        self.tool_calls = self._tekken.get_special_token(SpecialTokens.tool_calls.value)
        self.tool_arguments = self._tekken.get_special_token(SpecialTokens.args.value)
        self.transcription_prompt = lru_cache(maxsize=256)(self._transcription_prompt)

    def _transcription_prompt(self, language: str | None) -> Prompt:
        """`<s>[INST][BEGIN_AUDIO]` audio `[/INST]` (`lang:xx`) `[TRANSCRIBE]`."""
        request = MistralTranscriptionRequest(model="voxtral", audio=_placeholder(), language=language)
        return self._split(self._mistral.encode_transcription(request).tokens)

    def chat_prompt(self, conversation: Conversation) -> tuple[Prompt, str | None]:
        """The prompt of a conversation, and the grammar that its answer must obey, if any. Raises PromptInvalid."""
        try:
            request = _chat_request(conversation)
            prompt = self._split(self._mistral.encode_chat_completion(request).tokens)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "messages"
            raise PromptInvalid(f"{where}: {problem['msg']}.", where.split(".")[0]) from None
        except (MistralCommonException, ValueError) as error:
            raise PromptInvalid(f"The conversation cannot be given to the model: {_first_line(error)}") from None
        return prompt, self._grammar(conversation, request)

    def _grammar(self, conversation: Conversation, request: ChatCompletionRequest) -> str | None:
        if not conversation.tools and conversation.response_format is None:
            return None
        param = "tools" if conversation.response_format is None else "response_format"
        strict = _is_strict(request)
        attempts = [request] if strict else [_held_to_schemas(request, reading) for reading in READINGS]
        problem = ""
        try:
            template = self._grammars.select_jinja_template()
            grammars = [self._grammars.get_grammar_for_chat_request(attempt, template) for attempt in attempts]
        except (MistralCommonException, ValueError) as error:
            raise PromptInvalid(f"{param} cannot be obeyed: {_first_line(error)}", param) from None
        for grammar in filter(None, grammars):
            grammar = compact(grammar, lenient=not strict)
            problem = LLMatcher.validate_grammar(grammar, self.for_grammars)
            if not problem:
                return grammar
        if problem:
            raise PromptInvalid(f"{param} cannot be obeyed: {problem.strip().splitlines()[0]}", param)
        return None

    @cached_property
    def _grammars(self) -> GrammarFactory:
        return GrammarFactory(self._mistral)

    @property
    def for_grammars(self) -> Any:
        """This vocabulary as llguidance wants it."""
        return self._grammars.llg_tokenizer

    def _split(self, tokens: list[int]) -> Prompt:
        texts: list[tuple[int, ...]] = [()]
        for is_audio, run in groupby(tokens, key=lambda token: token == self._audio_id):
            if is_audio:
                texts.append(())
            else:
                texts[-1] = tuple(run)
        return Prompt(tuple(texts))

    def keyword_tree(self, words: tuple[str, ...]) -> KeywordTree | None:
        """Words to expect as the sampler takes them. A word in small letters may also begin a sentence."""
        spellings = {form for word in words for form in (word, word.capitalize() if word.islower() else word)}
        if not spellings:
            return None
        spaced, bare = (
            [tuple(self._tekken.encode(lead + word, bos=False, eos=False)) for word in sorted(spellings)]
            for lead in (" ", "")
        )
        return KeywordTree(spaced, bare, self._borders)

    @cached_property
    def _borders(self) -> Borders:
        pieces = [self.token_bytes(token) for token in range(self.vocabulary_size)]
        spaced = np.array([piece.startswith(b" ") for piece in pieces])
        return Borders(
            spaced,
            bare=~spaced & np.array([bool(piece) for piece in pieces]),
            gap=np.array([piece[-1:].isspace() for piece in pieces]),
        )

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, which may be part of a character; none for control tokens."""
        return self._tekken.id_to_byte_piece(token, SpecialTokenPolicy.IGNORE)


class TextDecoder:
    """Tokens to text as they come, holding back the bytes of a character that is not whole yet."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_bytes: bytes) -> str:
        return self._utf8.decode(token_bytes)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@cache
def _placeholder() -> str:
    """A second of silence as base64 WAV."""
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16_000, np.float32), 16_000, format="WAV")
    return base64.b64encode(wav.getvalue()).decode()


def _chat_request(conversation: Conversation) -> ChatCompletionRequest:
    options: dict[str, Any] = {}
    if conversation.response_format is not None:
        is_object = conversation.response_format.get("type") == "json_object"
        options["response_format"] = ANY_OBJECT if is_object else conversation.response_format
    if conversation.tools:
        options |= {
            "tools": [_with_parameters(tool) for tool in conversation.tools],
            "tool_choice": conversation.tool_choice,
            "parallel_tool_calls": conversation.parallel_tool_calls,
        }
    return ChatCompletionRequest(messages=[_mistral_message(m) for m in conversation.messages], **options)


def _with_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as mistral-common wants it: OpenAI's may leave out the parameters of one that has none."""
    function = tool.get("function")
    if not isinstance(function, dict) or function.get("parameters") is not None:
        return tool
    return {**tool, "function": {**function, "parameters": NO_PARAMETERS}}


def _is_strict(request: ChatCompletionRequest) -> bool:
    """Whether the client itself asks that a schema be kept to the letter."""
    schema = request.response_format.json_schema
    return bool(schema and schema.strict) or any(tool.function.strict for tool in request.tools or ())


def _held_to_schemas(request: ChatCompletionRequest, reading: Callable[[Any], Any]) -> ChatCompletionRequest:
    """The request as if it were strict, which most clients leave out though they break over anything else: not strict,
    mistral-common lets through names of tools that do not exist and any JSON."""

    def held(function: Function) -> Function:
        return function.model_copy(update={"strict": True, "parameters": reading(function.parameters)})

    tools = [tool.model_copy(update={"function": held(tool.function)}) for tool in request.tools or ()]
    form = request.response_format
    if schema := form.json_schema:
        strict = schema.model_copy(update={"strict": True, "custom_schema": reading(schema.custom_schema)})
        form = form.model_copy(update={"json_schema": strict})
    return request.model_copy(update={"tools": tools or None, "response_format": form})


def _as_it_is(schema: Any) -> Any:
    return schema


def _without_patterns(schema: Any) -> Any:
    if isinstance(schema, dict):
        is_pattern = {key: key == "pattern" and isinstance(value, str) for key, value in schema.items()}
        return {key: _without_patterns(value) for key, value in schema.items() if not is_pattern[key]}
    return [_without_patterns(part) for part in schema] if isinstance(schema, list) else schema


def _bare(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array" if schema.get("type") == "array" else "object"}


# Ways to read a schema that need not be kept to the letter, of which the first that a grammar can hold is taken. Most
# often it is a pattern that none can: Zod's for addresses of e-mail looks ahead.
READINGS = (_as_it_is, _without_patterns, _bare)


def _mistral_message(message: Message) -> SystemMessage | UserMessage | AssistantMessage | ToolMessage:
    text = "\n".join(part for part in message.parts if isinstance(part, str))
    if message.role == "system":
        return SystemMessage(content=text)
    if message.role == "tool":
        return ToolMessage(content=text, tool_call_id=message.tool_call_id)
    if message.role == "assistant":
        calls = [
            MistralToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in message.tool_calls
        ]
        return AssistantMessage(content=text or None, tool_calls=calls or None)
    chunks = [
        AudioChunk(input_audio=_placeholder()) if part is Slot.AUDIO else TextChunk(text=part) for part in message.parts
    ]
    return UserMessage(content=chunks)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
