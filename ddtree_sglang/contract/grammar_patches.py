"""Changes to other packages' code by which a grammar's state and its end are plain decoding's."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

_GUIDANCE = "sglang.srt.constrained.llguidance_backend"
_GRAMMAR = "sglang.srt.constrained.base_grammar_backend.BaseGrammarObject"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
_REQ = "sglang.srt.managers.schedule_batch.Req"
_RUN_ENDS = "ddtree_sglang.engine.run_ends"
_SCOUTS = "ddtree_sglang.engine.stages.grammar_scouts"

GRAMMAR_PATCHES = (
    Patch(
        "sglang.srt.constrained.base_grammar_backend.GrammarMask.apply",
        "around",
        "ddtree_sglang.engine.grammar_rows:mask_whole_rows",
        "a mask would fall on other rows than its own where logits are a part of wider ones",
    ),
    Patch(
        f"{_GUIDANCE}.GuidanceGrammar.accept_token",
        "after",
        f"{_SCOUTS}:follow_token",
        "below a root another matcher stands in a grammar's place, which has to know the committed tokens",
    ),
    Patch(
        f"{_RESULTS}._accept_grammar_tokens",
        "around",
        "ddtree_sglang.engine.grammar_ends:accept_run",
        "a grammar that takes an end token which the request ignores would be in another state than plain decoding's",
    ),
    Patch(
        f"{_RESULTS}.advance_grammar_fsm",
        "around",
        f"{_RUN_ENDS}:cut_before_grammars_advance",
        "a grammar would take in tokens past the end of its request",
    ),
)
"""Each passes through under any other algorithm."""

GRAMMAR_STATE_PATCHES = (
    Patch(
        _GRAMMAR,
        "object",
        "ddtree_sglang.core.node_masks:GrammarWalk",
        "what a grammar notes of an end token is undone as plain decoding undoes it, and taken back with the token",
        "finished",
    ),
    Patch(
        _GRAMMAR,
        "object",
        "ddtree_sglang.core.node_masks:accept_as_plain",
        "what a grammar notes of an end token is undone as plain decoding undoes it",
        "finished",
    ),
    Patch(
        _REQ,
        "object",
        "ddtree_sglang.engine.grammar_ends:grammar_as_plain",
        "SGLang asks whether the grammar has ended when it has been advanced too far for the question",
        "grammar",
    ),
    Patch(
        _REQ,
        "object",
        "ddtree_sglang.engine.stages.node_grammar:_end_at_the_limit",
        "a grammar that gives up ends its request, not the server",
        "to_finish",
    ),
    *(
        Patch(
            f"{_GUIDANCE}.GuidanceGrammar",
            "object",
            f"{_SCOUTS}:ScoutedGrammar.{name}",
            "below the root its scout answers, so that its own matcher meets no more than plain decoding's; put back",
            fields,
        )
        for name, fields in (
            ("accept_token", "ll_matcher"),
            ("rollback", "ll_matcher"),
            ("_back_at_root", "finished ll_matcher"),
            ("finished", "finished"),
        )
    ),
)
"""Attributes of grammars, and of requests for their sake."""
