"""Odd bodies, and what every answer to them must be."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.serving import Server
from tests.speech import clip, encode

TRANSCRIPTIONS, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"
FORM, JSON = "multipart/form-data; boundary=frontier", "application/json"
FEW = settings(max_examples=25, suppress_health_check=list(HealthCheck))

SHORT = clip("silence").samples()[:6000]
SILENCE = encode(SHORT, "flac", "flac")


def check(response: httpx.Response, *statuses: int) -> None:
    """An answer is a good one, or a refusal in the envelope whose message says something."""
    status = response.status_code
    assert status < 500, f"{status}: {response.text}"
    assert not statuses or status in statuses, f"{status}: {response.text[:500]}"
    if status >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) > 15
        assert error["param"] or error["code"] or status in (404, 405, 415), error
        assert response.json()["detail"] == error["message"]


def failures(server: Server) -> list[str]:
    lines = server.client.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("voxtral_http_requests_total") and 'status="5' in line]


@pytest.fixture
def nothing_fails(server: Server) -> Iterator[None]:
    """Also not in answers to clients that had gone by then."""
    before = failures(server)
    yield
    server.wait_until(lambda health: health["requests"] == 0)
    assert failures(server) == before


def form(fields: list[tuple[str, bytes]], file: bytes = b"no audio") -> bytes:
    parts = [b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (name.encode(), value) for name, value in fields]
    parts.append(b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file)
    return b"".join(b"--frontier\r\n" + part + b"\r\n" for part in parts) + b"--frontier--\r\n"


def post(server: Server, body: bytes | Iterator[bytes], kind: str, url: str = TRANSCRIPTIONS) -> httpx.Response:
    return server.client.post(url, content=body, headers={"Content-Type": kind})


def mutated(data: bytes, most: int = 4) -> st.SearchStrategy[bytes]:
    """`data` with a few stretches of it overwritten, taken out, or doubled."""
    places = st.tuples(st.integers(0, len(data)), st.integers(0, 30), st.binary(max_size=8), st.booleans())

    def apply(changes: list[tuple[int, int, bytes, bool]]) -> bytes:
        result = data
        for at, length, other, doubled in changes:
            result = (
                result[:at] + (result[at : at + length] if doubled else other) + result[at + length * (not doubled) :]
            )
        return result

    return st.lists(places, min_size=1, max_size=most).map(apply)
