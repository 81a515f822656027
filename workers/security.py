"""The API key of the ingress: who may ask for answers. Health and metrics stay open, as load balancers need them."""

from __future__ import annotations

import hmac
import os

OPEN_PATHS = ("/health", "/ready", "/metrics")


class ApiKey:
    """The key that clients send as `Authorization: Bearer KEY`; none configured means that everybody may ask."""

    def __init__(self, key: str | None) -> None:
        self._key = key or None

    @classmethod
    def from_env(cls, name: str) -> ApiKey:
        """Read the variable called `name`; a key is never in a configuration, where it would be logged."""
        return cls(os.environ.get(name))

    @property
    def is_set(self) -> bool:
        """True if clients need a key."""
        return self._key is not None

    def admits(self, path: str, authorization: str | None) -> bool:
        """True if a request with this header may pass."""
        if self._key is None or path in OPEN_PATHS:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode())
