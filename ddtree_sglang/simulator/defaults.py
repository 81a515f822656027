"""What is simulated unless something else is asked for."""

from __future__ import annotations

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
"""Requests at once."""
BUDGETS = (4, 8, 16)
"""Of fixed trees; the largest is the adaptive budget's most."""
