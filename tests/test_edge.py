"""What stands around every request: keys, origins, hosts, limits, metrics, readiness and the log."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.edge import SocketKey
from tests.serving import DEMOS, ROOT, Server, clean_environment
from tests.sockets import Socket, socket
from tests.speech import clip

URL = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that asks for keys, and knows its friends."""
    settings = {
        "API_KEYS": "first-key, second-key",
        "CORS_ORIGINS": "https://notes.example",
        "TRUSTED_HOSTS": "127.0.0.1,*.example.org",
        "REALTIME_MAX_SESSIONS": "1",
        "REALTIME_IDLE_SECONDS": "1",
    }
    with Server("--demo", **settings) as server:
        yield server


def test_with_keys_set_only_those_who_have_one_are_answered(guarded: Server) -> None:
    def models(key: str) -> list[str]:
        with OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
            return [model.id for model in client.models.list()]

    with pytest.raises(AuthenticationError) as caught:
        models("wrong")
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id
    assert guarded.client.get("/v1/models").status_code == 401
    assert guarded.client.get("/metrics").status_code == 401
    assert guarded.client.get("/v1/models", headers={"Authorization": "bearer first-key"}).status_code == 200
    for key in ("first-key", "second-key"):
        assert models(key) == DEMOS
    assert guarded.client.get("/health").status_code == 200
    assert guarded.client.get("/ready").status_code == 200


def test_web_pages_of_allowed_origins_may_call_and_others_may_not(guarded: Server) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    friend = guarded.client.options(URL, headers={"Origin": "https://notes.example", **ask})
    assert friend.status_code == 200
    assert friend.headers["access-control-allow-origin"] == "https://notes.example"
    seen = guarded.client.get("/health", headers={"Origin": "https://notes.example"})
    assert seen.headers["access-control-expose-headers"] == "x-request-id, x-voxtral-warnings"
    stranger = guarded.client.options(URL, headers={"Origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in stranger.headers


def test_only_trusted_host_names_are_answered(guarded: Server) -> None:
    assert guarded.client.get("/health", headers={"Host": "asr.example.org"}).status_code == 200
    assert guarded.client.get("/health", headers={"Host": "ASR.example.org:443"}).status_code == 200
    for host in ("evil.example", "example.org", "evilexample.org", ""):
        refused = guarded.client.get("/health", headers={"Host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "untrusted_host")
        assert refused.headers["x-request-id"]


def test_the_documentation_is_open_where_keys_are_asked_for_and_says_so(guarded: Server) -> None:
    asset = re.search(r'src="([^"]+)"', guarded.client.get("/docs").text)[1]
    assert guarded.client.get(asset).status_code == 200
    assert guarded.client.get("/openapi.json").json()["security"] == [{"key": []}]


KEY = {"Authorization": "Bearer first-key"}


def refused_socket(server: Server, path: str = "/v1/realtime", **options: Any) -> tuple[int, str]:
    """Status and code of what the handshake is answered with."""
    with pytest.raises(InvalidStatus) as caught, socket(server, path, **options):
        pass
    response = caught.value.response
    assert response.headers["x-request-id"]
    return response.status_code, json.loads(response.body)["error"]["code"]


def test_a_socket_takes_a_key_wherever_its_client_can_put_one(guarded: Server) -> None:
    made = guarded.client.post("/v1/realtime/client_secrets", headers=KEY).json()
    with socket(guarded, additional_headers=KEY) as talk:
        assert talk.hear()["type"] == "session.created"
        assert talk.connection.response.headers["x-request-id"].startswith("req_")
    with socket(guarded, "/v1/realtime?access_token=second-key") as talk:
        assert talk.hear()["type"] == "session.created"
    for key in ("first-key", made["value"]):
        with socket(guarded, subprotocols=["realtime", f"openai-insecure-api-key.{key}"]) as talk:
            assert talk.hear()["type"] == "session.created"
            assert talk.connection.subprotocol == "realtime"
    with socket(guarded, "/v1/audio/transcriptions/realtime", additional_headers=KEY) as talk:
        assert talk.hear()["type"] == "session.created"


def test_a_socket_without_one_of_the_keys_is_refused(guarded: Server) -> None:
    assert refused_socket(guarded) == (401, "invalid_api_key")
    assert refused_socket(guarded, "/v1/realtime?access_token=wrong") == (401, "invalid_api_key")
    for key in ("%E2%82%AC", "%FF", "%ED%A0%80", ""):
        assert refused_socket(guarded, f"/v1/realtime?access_token={key}") == (401, "invalid_api_key")
    beyond = {"Authorization": "Bearer \u00e2\u0082\u00ac"}
    assert refused_socket(guarded, additional_headers=beyond) == (401, "invalid_api_key")
    assert refused_socket(guarded, subprotocols=["openai-insecure-api-key.wrong"]) == (401, "invalid_api_key")
    value = guarded.client.post("/v1/realtime/client_secrets", headers=KEY).json()["value"]
    answer = guarded.client.get("/v1/models", headers={"Authorization": f"Bearer {value}"})
    assert answer.status_code == 401, "a client secret opens nothing but sockets"


def test_where_no_keys_are_asked_for_any_will_do(server: Server) -> None:
    for key in ("wrong", "%E2%82%AC"):
        with socket(server, f"/v1/realtime?access_token={key}") as talk:
            assert talk.hear()["type"] == "session.created"


def test_a_key_in_the_address_of_a_socket_is_not_there_when_it_is_logged() -> None:
    seen = {}

    async def app(scope: dict[str, Any], receive: None, send: None) -> None:
        seen.update(scope)

    query = b"intent=transcription&access_token=se%2Fcret"
    scope = {"type": "websocket", "query_string": query, "headers": [], "subprotocols": []}
    asyncio.run(SocketKey(app)(scope, None, None))
    assert scope["query_string"] == b"intent=transcription"
    assert seen["headers"] == [(b"authorization", b"Bearer se/cret")]


def test_only_pages_of_this_server_or_of_allowed_origins_may_open_a_socket(guarded: Server) -> None:
    for origin in (guarded.url, "https://notes.example"):
        with socket(guarded, additional_headers=KEY, origin=origin) as talk:
            assert talk.hear()["type"] == "session.created"
    for origin in ("https://evil.example", "null", f"{guarded.url}.evil.example"):
        refused = refused_socket(guarded, additional_headers=KEY, origin=origin)
        assert refused == (403, "origin_not_allowed")
    elsewhere = SimpleNamespace(url=guarded.url.replace("127.0.0.1", "localhost"))
    assert refused_socket(elsewhere, additional_headers=KEY) == (400, "untrusted_host")


def closed(talk: Socket) -> tuple[str, int]:
    """The codes of the error and of the close that follows it, which says why too."""
    error = next(event for event in iter(talk.hear, None) if event["type"] == "error")
    with pytest.raises(ConnectionClosed) as caught:
        talk.hear()
    assert caught.value.rcvd.reason == error["error"]["code"]
    return error["error"]["code"], caught.value.rcvd.code


def test_one_session_too_many_and_one_that_is_idle_are_told_and_closed(guarded: Server) -> None:
    append = {"audio": base64.b64encode(bytes(9600)).decode()}
    with socket(guarded, additional_headers=KEY) as first, socket(guarded, additional_headers=KEY) as second:
        first.say("input_audio_buffer.append", **append)
        guarded.wait_until(lambda health: health["live_sessions"] == 1)
        second.say("input_audio_buffer.append", **append)
        assert closed(second) == ("too_many_sessions", 1013)
        assert closed(first) == ("idle", 4002)
    with socket(guarded, additional_headers=KEY) as silent:
        assert closed(silent) == ("idle", 4002)
    guarded.wait_until(lambda health: health["live_sessions"] == 0)


def test_sockets_that_send_no_audio_have_a_number_too(guarded: Server) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            talk = stack.enter_context(socket(guarded, additional_headers=KEY))
            assert talk.hear()["type"] == "session.created"
        assert closed(stack.enter_context(socket(guarded, additional_headers=KEY))) == ("too_many_sessions", 1013)
    with socket(guarded, additional_headers=KEY) as talk:
        assert talk.hear()["type"] == "session.created"


def test_without_allowed_origins_no_web_page_may_read_an_answer(server: Server) -> None:
    response = server.client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_metrics_count_requests_tokens_and_seconds(server: Server) -> None:
    def metric(name: str) -> float:
        lines = server.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    answered = 'voxtral_http_requests_total{method="POST",route="/audio/transcriptions",status="200"}'
    names = ("voxtral_audio_seconds_total", 'voxtral_tokens_total{kind="audio"}', "voxtral_first_text_seconds_count",
             "voxtral_transcription_seconds_count", "voxtral_times_real_time_count", answered)  # fmt: skip
    before = {name: metric(name) for name in names}
    spoken = clip("voice_en-us")
    server.client.post(URL, files={"file": spoken.data}, data={"model": "whisper-1"}).raise_for_status()
    after = {name: metric(name) - before[name] for name in names}
    assert after["voxtral_audio_seconds_total"] == pytest.approx(len(spoken.samples()) / 16_000, abs=0.01)
    assert after['voxtral_tokens_total{kind="audio"}'] >= 375
    assert after["voxtral_first_text_seconds_count"] == after["voxtral_transcription_seconds_count"] == 1
    assert after["voxtral_times_real_time_count"] == after[answered] == 1
    assert metric('voxtral_model_memory_bytes{model="voxtral-demo"}') > 10_000_000
    assert metric("voxtral_requests_active") == 0


def test_head_is_answered_as_get_without_a_body(server: Server) -> None:
    for path in ("/health", "/v1/models"):
        answer = server.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "application/json"
    assert server.client.head(URL).status_code == 405


def test_methods_that_clients_make_up_are_one_line_of_the_metrics(server: Server) -> None:
    for method in ("BREW", "WHEN"):
        server.client.request(method, "/health")
    metrics = server.client.get("/metrics").text
    assert 'method="other",route="/health"' in metrics
    assert "BREW" not in metrics
    assert "WHEN" not in metrics


def test_metrics_count_how_long_chat_answers_take(server: Server) -> None:
    def count() -> list[str]:
        lines = server.client.get("/metrics").text.splitlines()
        return [line.split()[1] for line in lines if line.startswith("voxtral_answer") and "_seconds_count" in line]

    before = [float(value) for value in count()]
    chat = {"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 3, "n": 2}
    server.client.post("/v1/chat/completions", json=chat).raise_for_status()
    assert [float(value) for value in count()] == [value + 1 for value in before]
    assert len(before) == 2


def test_one_client_may_send_so_many_requests_a_minute_and_another_as_many(tmp_path: Path) -> None:
    settings = {"API_KEYS": "first-key,second-key", "REQUESTS_PER_MINUTE": "3"}
    with Server("--no-download", wait_for_model=False, VOXTRAL_CACHE_DIR=str(tmp_path), **settings) as server:
        for key in ("first-key", "second-key"):
            headers = {"Authorization": f"Bearer {key}"}
            responses = [server.client.get("/v1/models", headers=headers) for _ in range(4)]
            assert [response.status_code for response in responses] == [200, 200, 200, 429]
            refused = responses[-1]
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert "REQUESTS_PER_MINUTE" in refused.json()["detail"]
            assert 1 <= int(refused.headers["retry-after"]) <= 20
        for path in ("/health", "/ready", "/metrics"):
            assert server.client.get(path, headers=headers).status_code != 429
        assert server.client.get("/v1/transcriptions/unknown", headers=headers).status_code == 404


def test_without_keys_a_client_is_an_address(tmp_path: Path) -> None:
    settings = {"VOXTRAL_CACHE_DIR": str(tmp_path), "REQUESTS_PER_MINUTE": "1"}
    with Server("--no-download", wait_for_model=False, **settings) as server:
        codes = [server.client.get("/v1/models", headers={"Authorization": f"Bearer {i}"}).status_code for i in "ab"]
        assert codes == [200, 429]
        assert refused_socket(server) == (429, "rate_limit_exceeded")


def test_every_line_of_a_json_log_is_an_object_with_the_request_id(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "main.py", "--no-download", "--port", "0"], cwd=ROOT, text=True,
        env=clean_environment(LOG_FORMAT="json", VOXTRAL_CACHE_DIR=str(tmp_path)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    url = process.stdout.readline().split()[4]
    for _ in range(200):
        try:
            httpx.get(f"{url}/health", headers={"x-request-id": "mine-1"}).raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.1)
    process.terminate()
    _, log = process.communicate(timeout=20)
    lines = [json.loads(line) for line in log.splitlines() if line]
    assert any(line["request_id"] == "mine-1" and "/health" in line["message"] for line in lines)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_an_unready_server_says_so(tmp_path: Path) -> None:
    with Server("--no-download", wait_for_model=False, VOXTRAL_CACHE_DIR=str(tmp_path)) as server:
        response = server.client.get("/ready")
        assert response.status_code == 503
        assert response.json()["model_state"] == "absent"
