"""Kinds of block drafters: fields of `config.json` by which admission knows them, and what shows or refuses them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.table import ASKED, Cell, Refused, scene, shown


@dataclass(frozen=True)
class Drafter:
    """A kind.

    Attributes:
        scores: what a candidate's score depends on.
        architecture: SGLang's class.
        cells: where a server has run with one, or why none does.
        top: fields of `config.json`.
        dflash: of its `dflash_config`.
        refused_with: features of the server that are refused with it.
    """

    scores: str
    architecture: str
    cells: tuple[Cell, ...]
    top: dict[str, Any] = field(default_factory=dict)
    dflash: dict[str, Any] = field(default_factory=dict)
    refused_with: dict[str, Refused] = field(default_factory=dict)

    def config_json(self, plain: dict[str, Any]) -> dict[str, Any]:
        """As a checkpoint has it, made of a plain drafter's."""
        dflash = plain["dflash_config"] | self.dflash
        return {**plain, "architectures": [self.architecture], **self.top, "dflash_config": dflash}


def _tiny(name: str, note: str = "") -> Cell:
    return shown(f"tests/e2e/test_plain_torch_reference.py::test_rounds_of_a_tiny_pair[{name}]", note)


_GROUPS, _SPLIT = "DP attention", "prefill/decode disaggregation"
PAIR_FEATURES = (_GROUPS, _SPLIT)
assert {*PAIR_FEATURES} <= {*ASKED}
_NO_SERVERS = {
    _GROUPS: Refused(
        "takes drafters of DFlash, DSpark, DFlash2, got one of",
        needed="tests/engine/admission/test_attention_groups.py::test_sglangs_worker_takes_no_lattice_with_groups",
    ),
    _SPLIT: Refused("takes drafters of DFlash, DFlash2, DSpark, got one of", needed="refused-split-lattice"),
}
_LATTICE = {
    "lilicorr_enabled": True,
    "lilicorr_candidate_topk": 4,
    "lilicorr_hidden_size": 8,
    "lilicorr_num_layers": 1,
    "lilicorr_num_heads": 2,
    "lilicorr_mlp_ratio": 2.0,
    "lilicorr_factor_dim": 4,
    "lilicorr_vector_eps": 1e-6,
    "lilicorr_logit_scale": 5.0,
}
_BEFORE = "its position and the token before"
_CLASSES = "tests/engine/admission/test_refused_classes.py::"
_OWN = Refused("a model of its own, not run under DDTREE yet")
_PATH = "every token of the path"

DRAFTERS: dict[str, Drafter] = {
    "DFlash": Drafter("its position", "DFlashDraftModel", (_tiny("DDTREE-4"), scene("fa3"))),
    "DFlash2 (selector)": Drafter(
        _BEFORE,
        "DFlash2DraftModel",
        (scene("pairs-of-candidates"), scene("attention-groups-selector")),
        dflash={"selector_rank": 4, "selector_top_k": 6},
    ),
    "DFlash2, with convolutions": Drafter(
        _BEFORE,
        "DFlash2DraftModel",
        (_tiny("selector-convolutions"), scene("selector-convolutions")),
        dflash={"selector_rank": 4, "selector_top_k": 6, "conv_kernel_size": 3, "conv_group_size": 8},
    ),
    "LiLiCorr": Drafter(
        f"{_BEFORE}; all candidates of the block, the last committed token",
        "LiLiCorrDraftModel",
        (_tiny("lilicorr"), scene("lilicorr")),
        dflash=_LATTICE,
        refused_with=_NO_SERVERS,
    ),
    "DSpark, vanilla Markov head": Drafter(
        _BEFORE,
        "Qwen3DSparkModel",
        (_tiny("markov"), _tiny("markov-anchor"), scene("markov-anchor"), scene("attention-groups-markov")),
        {"markov_rank": 4, "markov_head_type": "vanilla"},
    ),
    "DSpark, gated Markov head": Drafter(
        _BEFORE,
        "Qwen3DSparkModel",
        (_tiny("gated-markov"), scene("gated-markov"), scene("split-gated-markov")),
        {"markov_rank": 4, "markov_head_type": "gated"},
    ),
    "DSpark, recurrent Markov head": Drafter(
        _PATH,
        "Qwen3DSparkModel",
        (
            Refused(
                "a Markov head of type 'rnn' scores a candidate by its whole path",
                needed="tests/engine/stages/test_pair_scores.py::"
                "test_a_recurrent_head_scores_a_candidate_by_more_than_the_token_before[rnn-True]",
            ),
        ),
        {"markov_rank": 4, "markov_head_type": "rnn"},
    ),
    "Domino": Drafter(
        _PATH,
        "DFlashDraftModel",
        (
            Refused(
                "a Domino head (projector_type) scores a candidate by its whole path",
                needed="tests/engine/stages/test_ranking.py::"
                "test_sglangs_domino_proposes_other_tokens_than_its_states_alone",
            ),
        ),
        dflash={"projector_type": "domino"},
    ),
    "DFlash for Laguna": Drafter("its position", "DFlashLagunaForCausalLM", (_tiny("gates"),)),
    "DSpark for MiniMax": Drafter(
        "",
        "DSparkMiniMaxDraftModel",
        (
            replace(
                _OWN,
                needed=f"{_CLASSES}test_sglang_reads_the_configuration_of_minimaxs_drafter_for_its_own_algorithm_alone",
            ),
        ),
    ),
    "DSpark for DeepSeek-V4": Drafter(
        "",
        "DeepseekV4ForCausalLMDSpark",
        (replace(_OWN, needed=f"{_CLASSES}test_sglang_asks_deepseek_v4_for_states_by_a_method_of_dspark_alone"),),
    ),
    "DSpark for LFM2": Drafter(
        _BEFORE,
        "Lfm2DSparkDraftModel",
        (_tiny("markov-lfm2"), scene("short-convolution-markov")),
        {"markov_rank": 4, "markov_head_type": "vanilla"},
    ),
}
"""By the names of the document."""

ALIASES = {
    "DFlash for Muse Glimmer": ("DFlash", "MuseGlimmerAssistantModel"),
    "DFlash2 of beams": ("DFlash2 (selector)", "DFlash2BeamDraftModel"),
    "DFlash2 for MiniMax": ("DFlash2 (selector)", "MiniMaxDFlash2DraftModel"),
    "DSpark by its base class": ("DSpark, vanilla Markov head", "DSparkDraftModel"),
    "DSpark for Ling": ("DSpark, vanilla Markov head", "LingDSparkModel"),
}
"""Kinds that are another's, by a class of SGLang that is the other's by another name (test_drafters.py)."""
DRAFTERS |= {
    name: replace(DRAFTERS[other], architecture=architecture, cells=(_tiny(architecture, "beside a Qwen3, slow"),))
    for name, (other, architecture) in ALIASES.items()
}
