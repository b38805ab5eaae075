"""What every request passes on its way in and out: its id, the count of its answer, its key and its client's rate.

A WebSocket is asked for as a request is, and refused as one; what passes it afterwards is api/realtime.py's.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import uuid
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import logs
from admission import RequestRate
from api.errors import ApiError, answer
from client_secrets import ClientSecrets
from metrics import Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BEARER = re.compile(r"^bearer +", re.IGNORECASE)
PORT = re.compile(r":\d*$")
REQUESTS = ("http", "websocket")
ANSWERS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
SWITCHING_PROTOCOLS = 101
KEY_PROTOCOL = "openai-insecure-api-key."
KEY_PARAMETER = "access_token"  # RFC 6750, section 2.3
SANE_ID = re.compile(r"[\w.:-]{1,128}")
# Open without a key: probes of load balancers, and the documentation, which holds nothing secret.
OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
DOCS_ASSETS = "/docs-assets"


class HeadAsGet:
    """Answers HEAD as GET; uvicorn sends the headers alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope | {"method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


class RequestId:
    """`x-request-id` on every answer: the client's own if it sent a sane one, else a new one; SDKs show it in errors.
    Counts the answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in REQUESTS:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        logs.request_id.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] in ANSWERS:
                MutableHeaders(scope=message)["x-request-id"] = request_id
                # The route's pattern and the usual methods: what clients can make up would be without number.
                route, asked = getattr(scope.get("route"), "path", "none"), scope.get("method", "GET")
                method = asked if asked in METHODS else "other"
                self._metrics.requests.labels(method, route, message.get("status", SWITCHING_PROTOCOLS)).inc()
            await send(message)

        await self._app(scope, receive, send_with_id)


class TrustedHosts:
    """Answers 400 to a request for a name that is none of the server's, as a page whose own name was made to lead here
    sends it. `*.example.org` is every name below example.org, and `*` any."""

    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = PORT.sub("", Headers(scope=scope).get("host", "").lower()) if "headers" in scope else None
        if host is None or any(host == name or (name[0] == "*" and host.endswith(name[1:])) for name in self._names):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            400, f"This server does not answer to the name '{host}'. Add it to TRUSTED_HOSTS.", code="untrusted_host"
        )
        await answer(error)(scope, receive, send)


class SocketKey:
    """Makes a bearer token of a WebSocket's key wherever its client put it: a browser, which can send no header, as the
    name of a protocol, or in the address, which loses it here, before it is logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            query = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
            scope["query_string"] = urlencode([pair for pair in query if pair[0] != KEY_PARAMETER]).encode()
            named = [name.removeprefix(KEY_PROTOCOL) for name in scope["subprotocols"] if KEY_PROTOCOL in name]
            keys = named + [value for name, value in query if name == KEY_PARAMETER]
            if keys and "authorization" not in Headers(scope=scope):
                # An address may hold what no header can.
                key = keys[0].encode("latin-1", "backslashreplace").decode("latin-1")
                MutableHeaders(scope=scope)["authorization"] = f"Bearer {key}"
        await self._app(scope, receive, send)


class CheckOrigin:
    """Answers 403 to a WebSocket of a web page that is neither this server's nor of an allowed origin: browsers ask no
    server whether a page may open one. `*` allows any."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or self._welcome(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        origin = Headers(scope=scope)["origin"]
        error = ApiError(
            403, f"Pages of '{origin}' may not open a socket here. Add it to CORS_ORIGINS.", code="origin_not_allowed"
        )
        await answer(error)(scope, receive, send)

    def _welcome(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        own = origin is not None and origin.partition("://")[2] == headers.get("host")
        return origin is None or own or "*" in self._allowed or origin in self._allowed


class RequireKey:
    """Answers 401 before the body is read, unless the request has one of the keys as its bearer token; a WebSocket may
    have a client secret, too.

    Keys are compared by their SHA-256 in constant time, so that neither their length nor a prefix leaks.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], secrets: ClientSecrets) -> None:
        self._app, self._secrets = app, secrets
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in REQUESTS or _is_open(scope) or self._known(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "This server asks for an API key. Send one of those in its API_KEYS as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await answer(error)(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = sent_key(Headers(scope=scope))
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, whichever fits
        return any(matches) or (scope["type"] == "websocket" and self._secrets.session(given) is not None)


class LimitRate:
    """Answers 429 to a client that sends more than `per_minute`. A client is a key, or an address where none is asked
    for. What watches the server is not counted."""

    def __init__(self, app: ASGIApp, per_minute: int, by_key: bool) -> None:
        self._app, self._by_key = app, by_key
        self._per_minute, self._rate = per_minute, RequestRate(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in REQUESTS or _is_open(scope) or _watches(scope):
            await self._app(scope, receive, send)
            return
        wait = self._rate.enter(self._client(scope))
        if wait == 0:
            await self._app(scope, receive, send)
            return
        error = ApiError(
            429,
            f"More than {self._per_minute} requests a minute, the most that this server takes from one client. Try "
            f"again in {math.ceil(wait)} s, or raise REQUESTS_PER_MINUTE.",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(math.ceil(wait))},
        )
        await answer(error)(scope, receive, send)

    def _client(self, scope: Scope) -> str:
        if self._by_key:
            return key_digest(Headers(scope=scope))
        return scope["client"][0] if scope["client"] else ""


def sent_key(headers: Headers) -> str:
    return BEARER.sub("", headers.get("authorization", "")).strip()


def key_digest(headers: Headers) -> str:
    """SHA-256 of the API key that a client has sent, in hexadecimal."""
    return _digest(sent_key(headers)).hex()


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN_PATHS or scope["path"].startswith(f"{DOCS_ASSETS}/")


def _watches(scope: Scope) -> bool:
    """Whether a request only asks how others do; one that is asked every second would leave no rate for them."""
    asks = scope.get("method") == "GET" and "/transcriptions/" in scope["path"]
    return scope["path"] == "/metrics" or asks


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
