"""Custom logit processors that cannot be made are refused: stock unpickles them in the middle of a batch, and ends."""

from __future__ import annotations

from ddtree_sglang.engine.processor_failures import described


def check_processor(serialized: str | None) -> str | None:
    """Why this `custom_logit_processor` must not reach a scheduler; None where it may.

    It is made here, in whichever process asks: with `--enable-custom-logit-processor` clients run their code anyway.
    """
    from sglang.srt.runtime_context import get_exec

    if not serialized or not get_exec().features.enable_custom_logit_processor:
        return None
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    try:
        processor = CustomLogitProcessor.from_str(serialized)
    except Exception as error:  # noqa: BLE001
        # Unpickling and a client's constructor may raise anything.
        return f"custom_logit_processor cannot be made: {described(error)}; send what its `to_str()` returns."
    if not callable(processor):
        return f"custom_logit_processor must be callable, got {type(processor).__name__}; derive CustomLogitProcessor."
    return None
