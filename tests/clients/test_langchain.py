"""LangChain's chat models for OpenAI and for Mistral: audio in, text, tools and objects out."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Literal

import openai
import pytest
from httpx import HTTPStatusError
from langchain_core.messages import HumanMessage
from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

from tests.serving import Server
from tests.speech import assert_heard, clip

SPOKEN = clip("voice_en-us")
# LangChain's own form of audio; each package turns it into its provider's.
AUDIO = {"type": "audio", "base64": base64.b64encode(SPOKEN.data).decode(), "mime_type": "audio/flac"}
HEARD = [HumanMessage([AUDIO])]
Chat = ChatOpenAI | ChatMistralAI
with_openai = pytest.mark.client("langchain-openai")
with_mistral = pytest.mark.client("langchain-mistralai")


class Paint(BaseModel):
    """Paint something."""

    model_config = ConfigDict(extra="forbid")  # the demo model would make up more of them
    colour: Literal["red", "blue"]


@pytest.fixture(scope="module")
def openai_chat(server: Server) -> Iterator[ChatOpenAI]:
    """Closed at the end of all tests, because every ChatOpenAI of one address shares one HTTP client."""
    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="whisper-1", max_completion_tokens=60)
    yield chat
    chat.root_client.close()


@pytest.fixture(scope="module")
def mistral_chat(server: Server) -> Iterator[ChatMistralAI]:
    options = {"max_tokens": 60, "temperature": 0}  # its default is 0.7
    chat = ChatMistralAI(endpoint=f"{server.url}/v1", api_key="none", model="voxtral-mini-latest", **options)
    yield chat
    chat.client.close()


@pytest.fixture(params=[pytest.param("openai", marks=with_openai), pytest.param("mistral", marks=with_mistral)])
def chat(request: pytest.FixtureRequest) -> Chat:
    return request.getfixturevalue(f"{request.param}_chat")


def test_a_chat_hears_audio_and_counts_tokens(chat: Chat) -> None:
    answer = chat.invoke(HEARD)
    assert_heard(SPOKEN.words, answer.text)
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["input_tokens"] > 375


def test_a_chat_streams_word_by_word(chat: Chat) -> None:
    chunks = [chunk.text for chunk in chat.stream(HEARD)]
    assert_heard(SPOKEN.words, "".join(chunks))
    assert len(chunks) > 5


def test_a_tool_that_must_be_called_is_called_with_fitting_arguments(chat: Chat) -> None:
    calls = chat.bind_tools([Paint], tool_choice="any", parallel_tool_calls=False).invoke(HEARD).tool_calls
    assert [call["name"] for call in calls] == ["Paint"]
    assert Paint(**calls[0]["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_the_class(chat: Chat, method: str) -> None:
    assert isinstance(chat.with_structured_output(Paint, method=method).invoke(HEARD), Paint)


@with_openai
def test_a_stream_counts_tokens_where_that_is_asked_for(openai_chat: ChatOpenAI) -> None:
    (usage,) = filter(None, (chunk.usage_metadata for chunk in openai_chat.stream(HEARD, stream_usage=True)))
    assert usage["input_token_details"]["audio"] == 375


@with_openai
@pytest.mark.anyio
async def test_asynchronous_chats_hear_and_stream(openai_chat: ChatOpenAI) -> None:
    assert_heard(SPOKEN.words, (await openai_chat.ainvoke(HEARD)).text)
    assert_heard(SPOKEN.words, "".join([chunk.text async for chunk in openai_chat.astream(HEARD)]))
    await openai_chat.root_async_client.close()


@with_openai
def test_a_wrong_field_is_named_in_the_error(openai_chat: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_chat.invoke(HEARD, temperature=7)
    assert caught.value.param == "temperature"


@with_mistral
def test_a_wrong_field_is_named_in_the_text_of_the_error(mistral_chat: ChatMistralAI) -> None:
    with pytest.raises(HTTPStatusError, match='"param":"temperature"'):
        mistral_chat.invoke(HEARD, temperature=7)
