"""Words to expect: which tokens the tree raises, and whose spelling wins in what the server hears."""

from __future__ import annotations

import base64
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from api.keywords import LONGEST_KEYWORD, MOST_KEYWORDS, prompted_words, required_spellings
from bench.biasing import made_up_words
from engine.biasing import MARGIN, Borders, KeywordBias, KeywordTree
from engine.core import Sampling
from engine.sampling import Sampler, choose_tokens
from tests.clients.test_lotti import SKILL_PROMPT
from tests.serving import Server
from tests.speech import ALL_CLIPS, SOUND_ALIKES, clip, word_errors
from transcript import Conversation, Message, Slot

# A vocabulary of ten: the end of text, a line break, four tokens that begin a word, and four that go on with one.
END, NEWLINE, SPACED, BARE = 0, 1, range(2, 6), range(6, 10)
BORDERS = Borders(
    np.isin(np.arange(10), SPACED), np.isin(np.arange(10), [NEWLINE, *BARE]), np.isin(np.arange(10), [NEWLINE])
)
TOKENS = st.integers(0, 9)
WORDS = st.lists(st.tuples(st.sampled_from(SPACED), *[st.sampled_from(BARE)] * 2).flatmap(
    lambda word: st.integers(1, 3).map(lambda length: word[:length])
), max_size=6)  # fmt: skip


def raised(tree: KeywordTree, text: list[int], logits: list[float]) -> set[int]:
    bias = KeywordBias(tree)
    for token in text:
        bias.accept(token)
    values = np.array(logits, np.float32)
    best, total = int(values.argmax()), float(np.logaddexp.reduce(values))
    near = {token: logits[token] for token in bias.candidates(best).tolist() if values[token] >= max(values) - MARGIN}
    return set(bias.raised(best, near, max(logits), total))


@given(WORDS, st.lists(TOKENS, max_size=8), TOKENS)
def test_what_may_begin_and_what_goes_on_is_raised_and_nothing_else(
    words: list[tuple[int, ...]], text: list[int], best: int
) -> None:
    """All tokens nearly as likely as the best one, so that only the tree decides."""
    logits = [-0.01 if token != best else 0.0 for token in range(10)]
    begun = {
        word[length]
        for word in words
        for length in range(1, len(word))
        if tuple(text[len(text) - length :]) == word[:length] and length <= len(text)
    }
    may_begin = {word[0] for word in words} if best in SPACED else set()
    found = raised(KeywordTree(words, [], BORDERS), text, logits)
    assert found <= begun | may_begin
    assert not found - {best} or best in SPACED or begun


@given(WORDS, st.lists(TOKENS, max_size=8), st.lists(st.floats(-20, 20, width=32), min_size=10, max_size=10))
def test_no_word_is_raised_that_the_model_itself_does_not_half_expect(
    words: list[tuple[int, ...]], text: list[int], logits: list[float]
) -> None:
    found = raised(KeywordTree(words, words, BORDERS), text, logits)
    assert all(logits[token] >= max(logits) - MARGIN - 1e-4 for token in found)
    if logits[END] == max(logits):
        assert not found or len(text)  # where nothing is heard, nothing begins


def sure(*tokens: int) -> list[float]:
    """Logits of which the first token is the likeliest, the others follow 2 nats below, and the rest is far away."""
    return [0.0 if token == tokens[0] else -2.0 if token in tokens else -20.0 for token in range(10)]


def test_a_word_is_raised_where_one_may_begin_and_then_token_by_token() -> None:
    tree = KeywordTree([(2, 6, 7)], [(8, 6, 7)], BORDERS)
    assert raised(tree, [], sure(3, 2)) == {2}
    assert raised(tree, [3], sure(3, 2)) == {2}
    assert raised(tree, [3], sure(9, 2)) == set()  # inside of another word
    assert raised(tree, [3, 2], sure(9, 6)) == {6}
    assert raised(tree, [3, 2, 6], sure(9, 7)) == {7}
    assert raised(tree, [3, 2, 6, 7], sure(9, 6)) == set()
    assert raised(tree, [3, 6], sure(9, 7)) == set()  # it has not begun


def test_a_word_without_a_space_begins_texts_and_lines_only() -> None:
    tree = KeywordTree([], [(8, 6)], BORDERS)
    assert raised(tree, [], sure(9, 8)) == {8}
    assert raised(tree, [3, NEWLINE], sure(9, 8)) == {8}
    assert raised(tree, [3], sure(9, 8)) == set()
    assert raised(tree, [NEWLINE, 8], sure(9, 6)) == {6}


def test_nothing_is_raised_where_the_model_would_end_or_cannot_tell() -> None:
    tree = KeywordTree([(2,)], [(8,)], BORDERS)
    assert raised(tree, [], sure(END, 2, 8)) == set()
    assert raised(tree, [], [-20, -20, -0.1, 0, 0, 0, 0, 0, 0, 0]) == set()


def test_a_sampler_takes_the_expected_spelling_and_is_else_as_before() -> None:
    tree = KeywordTree([(2, 6)], [], BORDERS)
    steps = [sure(3, 2), sure(9, 6), sure(4, 5), sure(END)]

    def tokens(keywords: KeywordTree | None) -> list[int]:
        sampler = Sampler(Sampling(), END, keywords=keywords)
        return [sampler.choose(torch.tensor(logits)) for logits in steps]

    assert tokens(None) == [3, 9, 4, END]
    assert tokens(tree) == [2, 6, 4, END]


@given(WORDS, st.lists(st.lists(st.floats(-6, 0, width=16), min_size=10, max_size=10), min_size=1, max_size=12))
def test_the_expected_spelling_is_the_same_where_only_candidates_are_looked_at(
    words: list[tuple[int, ...]], steps: list[list[float]]
) -> None:
    """By `choose_tokens`, beside a row that looks at all logits because its temperature might matter."""
    tree = KeywordTree(words, words, BORDERS)
    spells = Sampler(Sampling(), END, keywords=tree, silent=frozenset({9}))
    draws = Sampler(Sampling(temperature=1e-6), END, keywords=tree, silent=frozenset({9}))
    assert spells.spells
    assert not draws.spells
    for logits in steps:
        row = torch.tensor(logits) - 2.0 * torch.arange(10) / 10  # no two alike
        one, other = choose_tokens(torch.stack([row, row]), [spells, draws])
        assert (one.id, one.logprob) == (other.id, pytest.approx(other.logprob, abs=1e-5))


NAMES = made_up_words(499, random.Random(0))


def heard(server: Server, name: str, **fields: Any) -> dict[str, Any]:
    response = server.client.post(
        "/v1/audio/transcriptions", files={"file": clip(name).data}, data={"model": "whisper-1", **fields}
    )
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(("spelling", "usual"), SOUND_ALIKES.items())
def test_the_expected_spelling_of_a_sound_wins_among_500_words(server: Server, spelling: str, usual: str) -> None:
    name = f"sounds_like_{usual}"
    plain = heard(server, name, language="en")
    expected = heard(server, name, language="en", **{"keywords[]": [spelling, *NAMES]})
    assert plain["text"].split() == ["monday", usual, "garden"]
    assert expected["text"].split() == ["monday", spelling, "garden"]
    assert expected["usage"]["input_tokens"] == plain["usage"]["input_tokens"]  # transcription mode, no instruction


def test_500_words_that_nobody_says_make_no_word_wrong(server: Server) -> None:
    clips = [c for c in ALL_CLIPS if c.kind != "sound-alike" and c.seconds < 20][::2]

    def errors(**fields: Any) -> int:
        with ThreadPoolExecutor(8) as threads:
            texts = threads.map(lambda c: heard(server, c.path.stem, language="en", **fields)["text"], clips)
            return sum(word_errors(c.words, text) for c, text in zip(clips, texts, strict=True))

    assert errors(**{"keywords[]": NAMES}) <= errors()


@pytest.mark.parametrize(
    "fields", [{"context_bias": "grey,Lotti"}, {"hotwords": "Lotti,grey"}, {"prompt": "Lotti, grey"}]
)
def test_every_name_of_the_field_and_a_prompt_of_words_mean_the_same(server: Server, fields: dict[str, str]) -> None:
    assert heard(server, "sounds_like_gray", language="en", **fields)["text"] == "monday grey garden"


NOTES = 'Notes on gardens. {}: ["Lotti", "grey"].'


@pytest.mark.parametrize("in_json", [False, True], ids=["form", "json"])
def test_spellings_that_a_prompt_requires_are_written(server: Server, in_json: bool) -> None:
    def text(prompt: str) -> str:
        if not in_json:
            return heard(server, "sounds_like_gray", language="en", prompt=prompt)["text"]
        audio = base64.b64encode(clip("sounds_like_gray").data).decode()
        body = {"model": "whisper-1", "file": audio, "language": "en", "prompt": prompt}
        return server.client.post("/v1/audio/transcriptions", json=body).json()["text"]

    assert text(NOTES.format("Spellings")) == "monday gray garden"
    assert text(NOTES.format("Required spellings")) == "monday grey garden"


def answered(server: Server, name: str, instruction: str, in_part: bool = False, **fields: Any) -> httpx.Response:
    """A chat about a clip: in Lotti's field, which means a transcript, or in a content part."""
    audio = base64.b64encode(clip(name).data).decode()
    part = {"type": "input_audio", "input_audio": {"data": audio, "format": "flac"}}
    content = [part, {"type": "text", "text": instruction}] if in_part else instruction
    body = {"model": "whisper-1", "messages": [{"role": "user", "content": content}], "max_tokens": 50, **fields}
    return server.client.post("/v1/chat/completions", json=body if in_part else {**body, "audio": audio})


def said(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"].strip()


@pytest.mark.parametrize("in_part", [False, True], ids=["field", "part"])
def test_spellings_that_lotti_requires_are_written(server: Server, in_part: bool) -> None:
    usual, required = SKILL_PROMPT, SKILL_PROMPT.replace('"Flutter"', '"grey"')
    assert said(answered(server, "sounds_like_gray", usual, in_part)) == "monday gray garden"
    assert said(answered(server, "sounds_like_gray", required, in_part)) == "monday grey garden"


@pytest.mark.parametrize(("content", "in_part"), [
    ("Transcribe this audio.\n\n{}", True), ("{}.\nPlease transcribe the file.", False), ("{}", True),
], ids=str)  # fmt: skip
def test_required_spellings_alone_leave_a_plain_request_one(server: Server, content: str, in_part: bool) -> None:
    """Transcription mode has five ids around the audio: any instruction would add its own."""
    instruction = content.format('Required spellings: ["Lotti", "grey"]')
    answer = answered(server, "sounds_like_gray", instruction, in_part)
    assert said(answer) == "monday grey garden"
    assert answer.json()["usage"]["prompt_tokens_details"]["text_tokens"] == 5


def test_required_spellings_are_no_plain_chat_without_a_recording(server: Server) -> None:
    content = 'Transcribe this audio. Required spellings: ["grey"]'
    body = {"model": "whisper-1", "messages": [{"role": "user", "content": content}]}
    assert server.client.post("/v1/chat/completions", json=body).json()["error"]["code"] == "missing_audio"


@pytest.mark.parametrize(("fields", "instruction"), [
    ({"keywords": ["grey", "Lotti"]}, SKILL_PROMPT), ({"context_bias": "Lotti,grey"}, "Transcribe this audio."),
    ({"hotwords": '["grey"]'}, "Transcribe"),
], ids=["keywords", "context_bias", "hotwords"])  # fmt: skip
def test_a_chat_takes_words_by_every_name_too(server: Server, fields: dict[str, Any], instruction: str) -> None:
    assert said(answered(server, "sounds_like_gray", instruction, in_part=True, **fields)) == "monday grey garden"


@pytest.mark.parametrize("field", ["keywords", "context_bias", "hotwords"])
def test_too_many_or_too_long_words_are_refused_by_name(server: Server, field: str) -> None:
    for words in ([str(n) for n in range(MOST_KEYWORDS + 1)], ["x" * (LONGEST_KEYWORD + 1)]):
        response = server.client.post(
            "/v1/audio/transcriptions",
            files={"file": clip("short_0").data}, data={"model": "whisper-1", field: ",".join(words)},
        )  # fmt: skip
        for refused in (response, answered(server, "short_0", "Transcribe", **{field: words})):
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


def test_a_form_may_have_a_field_for_each_of_the_most_words(server: Server) -> None:
    assert heard(server, "short_0", **{"keywords[]": [f"w{n}" for n in range(MOST_KEYWORDS)]})["text"]


def test_a_prompt_is_a_list_of_words_or_an_instruction() -> None:
    assert prompted_words("Lotti, Kubernetes,  New York City") == (("Lotti", "Kubernetes", "New York City"), "")
    assert prompted_words("Kubernetes") == (("Kubernetes",), "")
    for text in ("", "Hello, this is a meeting of Lotti.", "Write it down with care, please", "Names: Lotti"):
        assert prompted_words(text) == ((), text)


def test_a_prompt_may_require_spellings_inside_of_an_instruction() -> None:
    spellings = 'Required spellings: ["Lotti", " ", "New York City", "Lotti"]'
    assert prompted_words(f"Notes. {spellings}. Be brief.") == (("Lotti", "New York City"), "Notes.  Be brief.")
    assert prompted_words(f"{spellings} {spellings.lower()}")[0] == ("Lotti", "New York City", "lotti", "new york city")
    nearly = 'Required spellings: ["Lotti" "macOS"]'
    assert prompted_words(nearly) == ((), nearly)


def test_what_is_no_word_of_a_prompt_is_left_to_the_model() -> None:
    """Only lists of words are refused for it: Japanese has no spaces, and dictionaries have long terms."""
    prompt = "これは会議の録音です。" * 13
    long = "x" * (LONGEST_KEYWORD + 1)
    assert prompted_words(prompt) == ((), prompt)
    assert prompted_words(f"Lotti, {long}") == (("Lotti",), f"Lotti, {long}")
    many = ",".join(f"w{n}" for n in range(MOST_KEYWORDS + 1))
    words, rest = prompted_words(many)
    assert (len(words), rest) == (MOST_KEYWORDS, many)
    conversation = Conversation((Message("user", (Slot.AUDIO, f'Required spellings: ["macOS", "{long}"]')),))
    assert required_spellings(conversation) == (("macOS",), conversation)


def test_required_spellings_are_read_only_beside_a_recording() -> None:
    def spellings(text: str, *audio: Slot) -> tuple[str, ...]:
        return required_spellings(Conversation((Message("user", (*audio, text)),)))[0]

    assert spellings(SKILL_PROMPT, Slot.AUDIO) == ("macOS", "iPhone", "Flutter")
    assert spellings(r'Required spellings: ["a \"b\", [c]", "d"] and more', Slot.AUDIO) == ('a "b", [c]', "d")
    assert spellings("Required spellings: [broken", Slot.AUDIO) == ()
    assert spellings(SKILL_PROMPT) == ()


def test_required_spellings_are_the_users_and_the_systems_and_nobody_elses() -> None:
    roles = ("system", "user", "assistant", "user")
    turns = tuple(Message(role, (f'{n}. Required spellings: ["w{n}"]',)) for n, role in enumerate(roles))
    asked = Conversation((*turns, Message("user", (Slot.AUDIO,))))
    words, beside = required_spellings(asked)
    assert words == ("w0", "w1", "w3")
    assert [message.parts[0] for message in beside.messages[:-1]] == ["0. ", "1. ", turns[2].parts[0], "3. "]
