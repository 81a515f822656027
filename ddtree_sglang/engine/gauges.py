"""Gauges beside SGLang's own, with its labels, and through Ray where SGLang's collector emits through Ray."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

_MADE: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""By collector and name: a registry takes each name once."""


def set_gauge(collector: Any, name: str, text: str, value: float, **own_labels: str) -> None:
    """Set the gauge `name`, whose help is `text`; a name always has the same `own_labels`."""
    made = _MADE.setdefault(collector, {})
    if name not in made:
        made[name] = _gauge_class(collector)(
            name=name,
            documentation=text,
            labelnames=[*collector.labels.keys(), *own_labels],
            multiprocess_mode="mostrecent",
        )
    made[name].labels(**collector.labels, **own_labels).set(value)


def _gauge_class(collector: Any) -> Any:
    """Imported late, as by SGLang, once the folder of its files is known."""
    from prometheus_client import Gauge

    return collector._gauge_cls or Gauge
