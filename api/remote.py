"""Recordings by address: fetched over HTTPS from the hosts in REMOTE_AUDIO_HOSTS, and from nowhere else.

A server that fetches what its clients name can be made to reach into the network that it stands in. So a host must be
listed, every address that it resolves to must be a public one, and the connection goes to the very address that was
checked: a second look-up could lead elsewhere. Redirects are not followed, and proxies are not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

import httpx

from api.errors import ApiError, invalid, unsupported
from api.uploads import SPOOL_BYTES, too_large
from config import Settings

CONNECT_SECONDS = 10.0  # for one address of a host, so that the next one can be tried
IPV6_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# IPv6 addresses that stand for an IPv4 address, which is then the one to check; the last 32 bits hold it.
IPV4_INSIDE = (ipaddress.ip_network("::ffff:0:0/96"), ipaddress.ip_network("64:ff9b::/96"))
TUNNELS = (ipaddress.ip_network("2001::/32"), ipaddress.ip_network("2002::/16"))  # Teredo and 6to4 lead to any IPv4


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in IPV4_INSIDE):
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in IPV6_GLOBAL_UNICAST or any(ip in net for net in TUNNELS)):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, best first. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class RemoteAudio:
    def __init__(
        self,
        settings: Settings,
        resolve: Callable[[str, int], Awaitable[list[str]]] = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts, self._seconds = settings.remote_audio_hosts, settings.remote_audio_timeout_seconds
        self._limit_mb, self._limit = settings.max_audio_size_mb, settings.max_audio_bytes
        self._resolve, self._is_allowed, self._given_tls = resolve, is_allowed, tls

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or httpx.create_ssl_context()

    async def fetch(self, address: object, param: str) -> BinaryIO:
        """The recording at `address`, in a file that is in memory only while small.

        Raises ApiError: 413 for one that is too large, else 400, because the same request will fail again. Codes:
        unsupported_value, invalid_value, remote_audio_refused, _unreachable, _status, _redirect, _timeout.
        """
        url = self._checked(address, param)
        try:
            async with asyncio.timeout(self._seconds), self._answer(url, param) as response:
                return await self._read(response, param)
        except TimeoutError:
            raise _failed(
                param, "timeout", f"{url.host} has not sent the recording within {self._seconds:g} s. Send the file."
            ) from None
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise _failed(
                param, "unreachable", f"the recording did not arrive from {url.host} ({error}). Send the file."
            ) from None

    def _checked(self, address: object, param: str) -> httpx.URL:
        if not self._hosts:
            raise unsupported(
                param,
                f"{param} is an address; this server fetches nothing, unless REMOTE_AUDIO_HOSTS lists its host. Send "
                "the audio itself.",
            )
        try:
            url = httpx.URL(cast(str, address))
        except (httpx.InvalidURL, TypeError):
            raise invalid(param, f"{param} is not an address such as https://example.org/recording.mp3.") from None
        if url.scheme != "https" or url.userinfo:
            raise _failed(param, "refused", "only https:// addresses without a user's name are fetched.")
        host, port = url.raw_host.decode("ascii"), url.port or 443
        named = host if port == 443 else f"{host}:{port}"
        if not any(named == entry or (entry[0] == "*" and named.endswith(entry[1:])) for entry in self._hosts):
            raise _failed(param, "refused", f"'{named}' is not in REMOTE_AUDIO_HOSTS. Send the file, or list the host.")
        return url

    @asynccontextmanager
    async def _answer(self, url: httpx.URL, param: str) -> AsyncGenerator[httpx.Response]:
        """The answer, read no further than its headers.

        A client for each answer, because a pooled connection to an address could belong to another host.
        """
        addresses = await self._addresses(url, param)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=timeout) as client:
            response = await self._connected(client, url, addresses)
            try:
                _check_answer(response, url, param)
                yield response
            finally:
                await response.aclose()

    async def _addresses(self, url: httpx.URL, param: str) -> list[str]:
        try:
            addresses = await self._resolve(url.raw_host.decode("ascii"), url.port or 443)
        except (OSError, UnicodeError) as error:
            raise _failed(param, "unreachable", f"{url.host} cannot be resolved ({error}). Send the file.") from None
        if not all(self._is_allowed(address) for address in addresses):
            raise _failed(param, "refused", f"{url.host} resolves to an address that is not public. Send the file.")
        return addresses

    async def _connected(self, client: httpx.AsyncClient, url: httpx.URL, addresses: list[str]) -> httpx.Response:
        """From the first address that can be connected to. The certificate must be the host's all the same."""
        problem: httpx.TransportError = httpx.ConnectError("it has no address")
        for address in addresses:
            request = client.build_request(
                "GET",
                url.copy_with(host=address),
                headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "voxtral"},
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = error
        raise problem

    async def _read(self, response: httpx.Response, param: str) -> BinaryIO:
        file = cast(BinaryIO, SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115 - handed to the caller
        read = 0
        try:
            # Raw: content that is compressed for the way would grow past every limit while it is unpacked.
            async for piece in response.aiter_raw(SPOOL_BYTES):
                read += len(piece)
                if read > self._limit:
                    raise too_large(self._limit_mb, param)
                await asyncio.to_thread(file.write, piece)
        except BaseException:
            file.close()
            raise
        return file


def _check_answer(response: httpx.Response, url: httpx.URL, param: str) -> None:
    if response.is_redirect:
        raise _failed(
            param,
            "redirect",
            f"{url.host} answers with a redirect ({response.status_code}), which is not followed. Send the address "
            "that it leads to, if its host is listed too, or the file.",
        )
    if response.status_code != 200:
        raise _failed(
            param,
            "status",
            f"{url.host} answers with status {response.status_code}. Correct the address, or send the file.",
        )
    if not {"content-length", "transfer-encoding"} & set(response.headers):
        raise _failed(
            param, "unreachable", f"{url.host} does not say where the recording ends, so half of one would pass for it."
        )


def _failed(param: str, kind: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}", param=param, code=f"remote_audio_{kind}")
