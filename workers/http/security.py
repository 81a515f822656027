"""The API key of the ingress: who may ask for answers. Health and metrics stay open, as load balancers need them."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping

OPEN_PATHS = ("/health", "/ready", "/metrics")
DEFAULT_VARIABLE = "DDTREE_API_KEY"


class ApiKey:
    """The key that clients send as `Authorization: Bearer KEY`; none configured means that everybody may ask."""

    def __init__(self, key: str | None) -> None:
        # A file or a secret often ends with a newline, which no client sends.
        self._key = (key or "").strip() or None

    @classmethod
    def from_env(cls, name: str | None, environment: Mapping[str, str] = os.environ) -> ApiKey:
        """Read the variable called `name`; a key is never in a configuration, where it would be logged.

        Raises:
            ValueError: a variable is named and holds no key: a service that was to be closed does not open instead.
        """
        key = cls(environment.get(name or DEFAULT_VARIABLE))
        if name is not None and not key.is_set:
            raise ValueError(
                f"api_key_env names {name}, which holds no key where the ingress runs; set it in the environment of "
                "that node or pod, or leave api_key_env out to let everybody ask."
            )
        return key

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
