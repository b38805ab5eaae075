"""Recordings by address: which addresses are fetched from, and what happens on the way."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError
from api.remote import RemoteAudio, is_public
from config import DEMO_MODEL, ConfigError, Settings, load_settings
from main import create_app
from tests.serving import Server
from tests.speech import assert_heard, clip

SPOKEN = clip("voice_en-us")
NOT_PUBLIC = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
    "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "::/128", "::1/128", "fe80::/10", "fc00::/7", "fec0::/10", "ff00::/8", "2001:db8::/32", "100::/64", "2002::/16",
    "2001::/32",
]  # fmt: skip


@given(st.one_of([st.ip_addresses(network=network) for network in NOT_PUBLIC]))
def test_no_address_of_a_special_network_is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert not is_public(str(address))


@given(st.ip_addresses(v=4) | st.sampled_from(["127.0.0.1", "10.1.2.3", "8.8.8.8"]).map(ipaddress.IPv4Address))
def test_an_ipv6_address_that_stands_for_an_ipv4_address_is_as_public_as_that(address: ipaddress.IPv4Address) -> None:
    assert is_public(f"::ffff:{address}") == is_public(f"64:ff9b::{address}") == is_public(str(address))


@given(st.ip_addresses(v=6))
def test_only_global_unicast_and_what_stands_for_ipv4_is_public(address: ipaddress.IPv6Address) -> None:
    assert not is_public(str(address)) or str(address)[0] in "23" or address.ipv4_mapped or "64:ff9b::" in str(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


# The fetcher, against a real HTTPS server on loopback, which the policy of these tests allows.


class Host:
    """`https://audio.example.org:PORT` with a certificate of its own authority."""

    name = "audio.example.org"

    def __init__(self) -> None:
        authority = trustme.CA()
        self.trusted = ssl.create_default_context()
        authority.configure_trust(self.trusted)
        self.asked: list[tuple[str, str]] = []
        self.over = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                host.asked.append((self.headers["Host"], self.path))
                getattr(host, self.path.strip("/"))(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # clients here leave whenever they have seen enough
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(self.name).configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_port

    def url(self, path: str, name: str = name) -> str:
        return f"https://{name}:{self.port}/{path}"

    def __enter__(self) -> Host:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, data: bytes = b"", **headers: str) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    def recording(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, 200, SPOKEN.data)

    def missing(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, 404)

    def moved(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, 302, Location=self.url("recording"))

    def cut(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, 200, SPOKEN.data[:1000], Content_Length=str(len(SPOKEN.data)))
        request.close_connection = True

    def endless(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, 200, Content_Length=str(10**12))
        while not self.over.is_set():
            request.wfile.write(bytes(1 << 20))

    def stuck(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, 200, SPOKEN.data[:1000], Content_Length=str(len(SPOKEN.data)))
        self.over.wait(60)

    def unbounded(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(SPOKEN.data)
        request.close_connection = True


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


class Resolver:
    """Says where a name is, and counts how often it was asked; a second answer would be another one."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = list(addresses), 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.addresses if self.asked == 1 else ["192.0.2.1"]


def fetcher(host: Host, *addresses: str, listed: str = "", policy: Any = None, **settings: Any) -> RemoteAudio:
    hosts = f"{listed or host.name}:{host.port}"
    made = Settings(remote_audio_hosts=(hosts,), **{"remote_audio_timeout_seconds": 30, **settings})
    allowed = policy or (lambda address: address in ("127.0.0.1", "127.0.0.2"))
    return RemoteAudio(made, Resolver(*addresses or ("127.0.0.1",)), allowed, host.trusted)


async def refusal(remote: RemoteAudio, url: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await remote.fetch(url, "file_url")
    assert caught.value.param == "file_url"
    return caught.value


@pytest.mark.anyio
async def test_a_recording_arrives_whole_from_the_address_that_was_checked(host: Host) -> None:
    host.asked.clear()
    remote = fetcher(host, listed="*.example.org")
    with await remote.fetch(host.url("recording"), "file_url") as file:
        file.seek(0)
        assert file.read() == SPOKEN.data
    assert host.asked == [(f"{host.name}:{host.port}", "/recording")]
    assert remote._resolve.asked == 1


@pytest.mark.anyio
async def test_the_next_address_is_tried_where_nobody_answers(host: Host) -> None:
    (await fetcher(host, "127.0.0.2", "127.0.0.1").fetch(host.url("recording"), "file_url")).close()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("missing", 400, "remote_audio_status"),
        ("moved", 400, "remote_audio_redirect"),
        ("cut", 400, "remote_audio_unreachable"),
        ("unbounded", 400, "remote_audio_unreachable"),
        ("endless", 413, "audio_too_large"),
    ],
)
@pytest.mark.anyio
async def test_what_does_not_arrive_whole_is_refused(host: Host, path: str, status: int, code: str) -> None:
    error = await refusal(fetcher(host, max_audio_size_mb=3), host.url(path))
    assert (error.status, error.code) == (status, code)
    assert path != "missing" or "404" in error.message
    assert (f"{host.name}:{host.port}", "/recording") not in host.asked[-1:]


@pytest.mark.anyio
async def test_a_host_that_never_ends_is_not_waited_for(host: Host) -> None:
    error = await refusal(fetcher(host, remote_audio_timeout_seconds=1), host.url("stuck"))
    assert (error.status, error.code) == (400, "remote_audio_timeout")


@pytest.mark.anyio
async def test_a_certificate_of_another_host_or_authority_is_not_taken(host: Host) -> None:
    other = "other.example.org"
    error = await refusal(fetcher(host, listed=other), host.url("recording", other))
    assert error.code == "remote_audio_unreachable"
    assert "certificate" in error.message
    remote = fetcher(host)
    remote._given_tls = None
    assert "certificate" in (await refusal(remote, host.url("recording"))).message


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "fd00::1", "169.254.169.254", "fe80::1%lo", "0.0.0.0"],
)
@pytest.mark.anyio
async def test_a_listed_name_of_an_inner_address_is_not_fetched_from(host: Host, address: str) -> None:
    host.asked.clear()
    for addresses in ([address], ["8.8.8.8", address]):
        error = await refusal(fetcher(host, *addresses, policy=is_public), host.url("recording"))
        assert (error.status, error.code) == (400, "remote_audio_refused")
    assert host.asked == []


@pytest.mark.anyio
async def test_a_name_that_nobody_knows_is_said_to_be_unknown() -> None:
    remote = RemoteAudio(Settings(remote_audio_hosts=("*.invalid.example",)))
    for name in ("nothing.invalid.example", "a" * 70 + ".invalid.example"):
        assert (await refusal(remote, f"https://{name}/a.wav")).status == 400


# The whole way: through the server process what must be refused, and in this process what must be heard.


def requests_with(server: Server | httpx.AsyncClient, url: str) -> dict[str, tuple[str, Any]]:
    """Every way to name an address: the field that is refused, and the request."""
    form = {"model": "whisper-1", "file_url": url}
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    parts = {name: (None, value) for name, value in form.items()}
    client = server.client if isinstance(server, Server) else server

    def chat(part: dict[str, Any]) -> Any:
        content = [part, {"type": "text", "text": "Transcribe this audio."}]
        body = {"model": "whisper-1", "messages": [{"role": "user", "content": content}]}
        return lambda: client.post("/v1/chat/completions", json=body)

    def audio(task: str, **body: Any) -> Any:
        return lambda: client.post(f"/v1/audio/{task}", **body)

    return {
        "urlencoded": ("file_url", audio("transcriptions", content=urlencode(form), headers=kind)),
        "multipart": ("file_url", audio("transcriptions", files=parts)),
        "json": ("file_url", audio("transcriptions", json=form)),
        "translation": ("file_url", audio("translations", json=form)),
        "vllm": ("messages.0.content", chat({"type": "audio_url", "audio_url": {"url": url}})),
        "vllm_simple": ("messages.0.content", chat({"audio_url": url})),
        "mistral": ("messages.0.content", chat({"type": "input_audio", "input_audio": url})),
    }


@pytest.fixture(scope="module")
def inner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose list names hosts that are no public ones."""
    settings = {"REMOTE_AUDIO_HOSTS": "127.0.0.1,10.0.0.1,169.254.169.254,0.0.0.0,*.example.org"}
    settings["VOXTRAL_CACHE_DIR"] = str(tmp_path_factory.mktemp("no_models"))
    with Server("--no-download", wait_for_model=False, **settings) as server:
        yield server


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/a.wav", "https://10.0.0.1/a.wav", "https://169.254.169.254/latest/meta-data/",
        "https://0.0.0.0/", "https://[::1]/a.wav", "https://2130706433/a.wav", "https://0x7f.1/", "https://localhost/",
        "http://a.example.org/a.wav", "ftp://a.example.org/a.wav", "file:///etc/passwd", "https://example.com/a.wav",
        "https://me:secret@a.example.org/a.wav", "https://a.example.org:8443/", "https://example.org.evil.com/",
        "https://127.0.0.1:22/",
    ],
)  # fmt: skip
def test_inner_and_unlisted_addresses_are_refused_however_they_are_named(inner: Server, url: str) -> None:
    for way, (param, send) in requests_with(inner, url).items():
        error = send().json()["error"]
        assert (error["param"], error["code"]) == (param, "remote_audio_refused"), way


def test_what_is_no_address_at_all_is_refused(inner: Server) -> None:
    for url in (
        "https://",
        "https://[::1/a",
        "https://a.example.org:port/",
        "a.wav",
        "https://\u00ad/",
        "//x",
        "https:",
    ):
        response = inner.client.post("/v1/audio/transcriptions", json={"model": "whisper-1", "file_url": url})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "file_url"), url


def test_nothing_is_fetched_unless_a_host_is_listed(server: Server) -> None:
    for param, send in requests_with(server, "https://example.org/a.wav").values():
        error = send().json()["error"]
        assert (error["param"], error["code"]) == (param, "unsupported_value")
        assert "REMOTE_AUDIO_HOSTS" in error["message"]


def test_a_recording_and_an_address_or_too_many_addresses_are_refused(inner: Server) -> None:
    url = "https://a.example.org/a.wav"
    both = {"model": "whisper-1", "file_url": url, "file": base64.b64encode(SPOKEN.data).decode()}
    response = inner.client.post("/v1/audio/transcriptions", json=both)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file_url")
    message = {"role": "user", "content": [{"type": "audio_url", "audio_url": url}] * 9}
    response = inner.client.post("/v1/chat/completions", json={"model": "whisper-1", "messages": [message]})
    assert "More than 8" in response.json()["detail"]


@pytest.mark.anyio
async def test_a_recording_at_an_address_is_transcribed_however_it_is_named(host: Host) -> None:
    app = create_app(Settings(voxtral_model_id=str(DEMO_MODEL), audio_chunk_size_seconds=15, chunk_store_mb=0))
    state = app._app.state
    state.service = dataclasses.replace(state.service, remote=fetcher(host))
    state.service.remote._resolve = Resolver("127.0.0.1")
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://voxtral", timeout=60
        ) as client:
            for way, (_, send) in requests_with(client, host.url("recording")).items():
                state.service.remote._resolve.asked = 0
                answer = (await send()).json()
                if way != "translation":
                    text = answer.get("text") or answer["choices"][0]["message"]["content"]
                    assert_heard(SPOKEN.words, text)
    finally:
        await state.service.models.close()


@pytest.mark.parametrize("hosts", ["*", "*.org", "localhost", "https://example.org", "a b.example"])
def test_a_list_that_lets_in_too_much_or_names_no_host_is_refused(
    hosts: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("REMOTE_AUDIO_HOSTS", hosts)
    with pytest.raises(ConfigError, match="REMOTE_AUDIO_HOSTS"):
        load_settings(tmp_path / ".env")
