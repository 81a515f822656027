"""The API key of the ingress. Health and metrics stay open, because load balancers and Prometheus need them."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping

OPEN_PATHS = ("/health", "/ready", "/metrics")
DEFAULT_VARIABLE = "DDTREE_API_KEY"


class ApiKey:
    """The key that clients send as `Authorization: Bearer KEY`; with None, every request is admitted."""

    def __init__(self, key: str | None) -> None:
        # A key from a file or a secret often ends with a newline, which no client sends.
        self._key = (key or "").strip() or None

    @classmethod
    def from_env(cls, name: str | None, environment: Mapping[str, str] = os.environ) -> ApiKey:
        """Read the variable `name`. A key never stands in a configuration, where it would be logged.

        Raises:
            ValueError: `name` is given and the variable holds no key, so the service would be open by mistake.
        """
        key = cls(environment.get(name or DEFAULT_VARIABLE))
        if name is not None and not key.is_set:
            raise ValueError(
                f"api_key_env names {name}, which holds no key where the ingress runs; set it in the environment of "
                "that node or pod, or leave api_key_env out to serve without a key."
            )
        return key

    @property
    def is_set(self) -> bool:
        """True if requests need a key."""
        return self._key is not None

    def admits(self, path: str, authorization: str | None) -> bool:
        """True if a request to `path` with this Authorization header may pass."""
        if self._key is None or path in OPEN_PATHS:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode())
