"""Client secrets: each for a while, and not too many."""

from __future__ import annotations

import pytest

import client_secrets
from admission import TooManyRequests
from client_secrets import MOST_SECRETS, ClientSecrets


def test_a_secret_is_worth_something_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, session = ClientSecrets(), {"include": None}
    value, expires_at = secrets.create(60, session)
    assert value.startswith("ek_")
    assert secrets.session(value) == session
    assert secrets.session(f"{value}0") is None
    monkeypatch.setattr(client_secrets.time, "time", lambda: expires_at + 0.1)
    assert secrets.session(value) is None


def test_there_are_not_more_than_are_kept_and_expired_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ClientSecrets()
    values = {secrets.create(60, {})[0] for _ in range(MOST_SECRETS)}
    assert len(values) == MOST_SECRETS
    with pytest.raises(TooManyRequests, match="expire"):
        secrets.create(60, {})
    now = client_secrets.time.time()
    monkeypatch.setattr(client_secrets.time, "time", lambda: now + 61)
    assert secrets.session(secrets.create(60, {})[0]) == {}
