"""Keys for a web page or an app: whoever has an API key gets one made, which opens realtime sockets for a while.

Each comes with the configuration of the session that it opens. They live in memory and end with the server.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

from admission import TooManyRequests

MOST_SECRETS = 1000


@dataclass(frozen=True)
class _Secret:
    expires_at: int  # Unix time
    session: dict[str, Any]  # as SessionConfig


class ClientSecrets:
    """Kept by their SHA-256, so that looking for one tells nothing of the others."""

    def __init__(self) -> None:
        self._secrets: dict[bytes, _Secret] = {}

    def create(self, seconds: int, session: dict[str, Any]) -> tuple[str, int]:
        """A new key and when it expires. Raises TooManyRequests."""
        now = int(time.time())
        self._secrets = {digest: secret for digest, secret in self._secrets.items() if secret.expires_at > now}
        if len(self._secrets) >= MOST_SECRETS:
            raise TooManyRequests(
                f"{MOST_SECRETS} client secrets have not expired, the most that are kept. Let them expire sooner."
            )
        value = f"ek_{secrets.token_hex(16)}"
        self._secrets[_digest(value)] = _Secret(now + seconds, session)
        return value, now + seconds

    def session(self, key: str) -> dict[str, Any] | None:
        """What `key` was made for, or None where it was not made here or has expired."""
        secret = self._secrets.get(_digest(key))
        return secret.session if secret and secret.expires_at > time.time() else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
