"""What the document says of the published pairs: what they are, and what of that a tiny pair has."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from tests.support.published import BACKENDS, ENDS, PAIRS, SERVED, TESTS, Published
from tests.support.published_configs import SLIDING
from tests.support.table import CPU
from tests.support.tiny import HEAD_DIM, NUM_DRAFT_LAYERS, WINDOW, layer_kinds, read_layers

_FROM = "../../"
_LISTED = """## Published pairs

The drafters that DFlash's authors list: block size, layers, target layers that it reads, mask token, attention, as
far as public repositories quote or list them; where those differ, the other revision is named, too. A target's
fields are as its card and such quotations have them. No checkpoint of these was loaded here. `ddtree doctor
--draft` reads each of these configurations without weights and says that DDTREE serves it
([test](../../tests/engine/admission/test_published_drafters.py)).
"""
_SHOWN = """### What is shown of each

A tiny random target and drafter per pair, with the fields below. Three requests at once, then three of which some
go on behind the first ones' texts in the prefix cache. A server with trees of sixteen nodes besides the root, one with
trees of seven, and one with SGLang's chain give plain decoding's tokens; trees accept what plain torch says. Reports of
rounds say that there were batches of three. {runs}

Smaller are widths, depths, the numbers of experts and windows; what kernels branch on is the published: ratios of
heads, the period of the layers' kinds, the rotated part of a head (but for Kimi's latent heads), gates, norms, which
head is tied. All tiny
drafters have two layers with heads of 16; what has a window in the published one has it in the first of the two.
"""


_SCENES = tuple(f"{name}{end}" for name in PAIRS if name not in SERVED for end in ENDS)


def pairs_section(slow: Container[str]) -> str:
    """Both tables; `slow`: scenes that CI's runs leave out."""
    listed = [_listed(name, pair) for name, pair in PAIRS.items()]
    shown = [_shown(name, pair, slow) for name, pair in PAIRS.items()]
    heads = ("target", "class", "layers", "heads / KV heads / size", "rope", "head", "drafter", "its fields")
    parts = ("pair", "target's own fields", "smaller", "drafter's own", "smaller", "shown")
    return "\n".join((_LISTED, _table(heads, listed), "", _SHOWN.format(runs=_runs(slow)), _table(parts, shown)))


def _runs(slow: Container[str]) -> str:
    """How many of the lane's servers are in CI's runs."""
    left_out = sum(name in slow for name in _SCENES)
    if left_out == 0:
        return f"All {len(_SCENES)} servers of the device lane are in CI's runs, as are those on `{CPU}`."
    return (
        f"Of {len(_SCENES)} servers of the device lane {len(_SCENES) - left_out} are in CI's runs; those marked slow, "
        "somebody has to ask for."
    )


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _listed(name: str, pair: Published) -> list[str]:
    target = pair.target
    head = "tied" if target["tie_word_embeddings"] else "own"
    told = _draft(pair.draft)
    if pair.other_draft:
        told += "; another revision: " + ", ".join(f"{key} {value}" for key, value in pair.other_draft.items())
    layers = str(target["num_hidden_layers"])
    return [name, f"`{pair.kind}`", layers, _heads(target), _rope(target), head, f"`{pair.drafter}`", told]


def _heads(target: dict[str, Any]) -> str:
    if "kv_lora_rank" in target:
        return f"{target['num_attention_heads']}, latent {target['kv_lora_rank']} + {target['qk_rope_head_dim']}"
    heads = " / ".join(str(target[key]) for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if "full_attention_interval" not in target:
        return heads
    states = " / ".join(
        str(target[key]) for key in ("linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim")
    )
    return f"{heads} in each fourth layer, GDN {states}"


def _rope(target: dict[str, Any]) -> str:
    rope = target["rope_parameters"]
    found = [f"{rope['rope_theta']:.0e}".replace("e+0", "e") if rope["rope_theta"] != 150000 else "1.5e5"]
    if rope["rope_type"] != "default":
        found.append(f"{rope['rope_type']} x {rope['factor']:.0f}")
    if "partial_rotary_factor" in rope:
        found.append(f"{rope['partial_rotary_factor']} of a head")
    if "mrope_section" in rope:
        found.append("three rows for images")
    return ", ".join(found)


def _draft(draft: dict[str, Any]) -> str:
    sliding = draft["layer_types"].count(SLIDING)
    reads, mask = draft["dflash_config"]["target_layer_ids"], draft["dflash_config"].get("mask_token_id")
    attention = f"{sliding} with a window of {draft['sliding_window']}, 1 full" if sliding else "full"
    parts = [
        f"block {draft['block_size']}",
        f"layers {draft['num_hidden_layers']}",
        f"reads {', '.join(map(str, reads))}",
        f"mask {'not found' if mask is None else mask}",
        f"attention {attention}",
    ]
    if "rope_parameters" in draft:
        parts.append(f"rope {_rope(draft)}")
    return "; ".join([*parts, "biases"] if draft.get("attention_bias") else parts)


def _shown(name: str, pair: Published, slow: Container[str]) -> list[str]:
    own = [key for key in pair.target if pair.tiny[key] == pair.target[key]]
    smaller = [
        f"{key} {_short(pair.tiny[key])} for {_short(pair.target[key])}" for key in pair.target if key not in own
    ]
    return [name, ", ".join(f"`{key}`" for key in own), ", ".join(smaller), *_drafter(pair), _where(name, slow)]


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else str(value)


def _drafter(pair: Published) -> tuple[str, str]:
    draft, reads = pair.draft, len(read_layers(pair))
    own = [f"block {draft['block_size']}", f"{pair.heads_per_kv_head} heads to one of keys"]
    smaller = [f"{NUM_DRAFT_LAYERS} layers for {draft['num_hidden_layers']}", f"heads of {HEAD_DIM}"]
    wanted = len(pair.target_layer_ids)
    if reads == wanted:
        own.append(f"reads {reads} layers")
    else:
        smaller.append(f"reads {reads} layers for {wanted}")
    if SLIDING in layer_kinds(pair):
        own.append("sliding, then full")
        smaller.append(f"window {WINDOW} for {draft['sliding_window']}")
    if "rope_parameters" in draft:
        own.append(f"rope {_rope(draft)}")
    if draft.get("attention_bias"):
        own.append("biases")
    return ", ".join(own), ", ".join(smaller)


def _where(name: str, slow: Container[str]) -> str:
    """The CPU platform's test, or the lane's scenes."""
    link = f"[shown]({_FROM}{TESTS[name][0].partition('::')[0]})"
    if name in SERVED:
        return f"{link} on `{CPU}`"
    names = [f"{name}{end}" for end in ENDS]
    scenes = ", ".join(f"{one} (slow)" if one in slow else one for one in names)
    return f"{link} on `{BACKENDS[PAIRS[name].family]}`, scenes {scenes}"
