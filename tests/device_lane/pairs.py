"""Tiny pairs for the device lane: a random target whose answers hang on every token before, and a drafter for it.

A fault in a mask, a length or a slot must change a token, so the target's weights are random and large: its next token
depends on far context, and no answer runs in a short circle. The drafter is trained for seconds on the target's own
greedy answers. It hits now and then, often with a token that was not its first choice, so accepted nodes have to move.

Everything comes from a seed. Two layers, two heads of 16, one KV head: the interpreter's time goes by launches and
programs, and this is the least that has several of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MellumConfig,
    MellumForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ddtree_sglang.training.model.drafter_config import drafter_config_for
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane import hybrid_targets
from tests.device_lane.head_protocol import PairHead
from tests.device_lane.multimodal import save_as_multimodal
from tests.device_lane.sight import Sight
from tests.device_lane.sliding_drafter import FULL, WINDOW, state_kinds, with_sliding_layers
from tests.support.published_configs import GPT_OSS_ROPE

VOCABULARY = 32
EOS_TOKEN = 2
BOS_TOKEN = 1
MASK_TOKEN = VOCABULARY - 1
NUM_WORDS = VOCABULARY - 2  # what prompts are made of; the mask token and its neighbour are left out
MAX_POSITIONS = 512
NUM_LAYERS = 2

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": MAX_POSITIONS,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN,
}
# Standard deviation of a matrix's outputs for inputs of unit variance. Attention that weighs more than the residual
# stream is what makes far tokens count.
_GAINS = {
    "embed_tokens": _SHAPE["hidden_size"] ** 0.5,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "o_proj": 2.0,
    "down_proj": 2.0,
    "lm_head": 3.0,
}
# Their features are of one layer, so more steps help little: acceptance at 17 nodes is between two and three.
TRAINING_STEPS = 300
_CACHED = ("gpt_oss", "deepseek_v3")  # whose answers take a third of the time with a cache
_TRAINING_ANSWERS = 256
_ANSWER_LEN = 32

# Experts of each layer's feed-forward part, of which a token gets two.
NUM_EXPERTS, EXPERTS_PER_TOKEN = 4, 2
_EXPERTS: dict[str, Any] = {
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": EXPERTS_PER_TOKEN,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}

# gpt-oss: a window in every other layer, a sink for each head, experts that clamp and have biases, YaRN.
_GPT_OSS: dict[str, Any] = {
    "max_position_embeddings": 131072,
    "rope_parameters": dict(GPT_OSS_ROPE),
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "num_local_experts": NUM_EXPERTS,
    "num_experts_per_tok": EXPERTS_PER_TOKEN,
}

# DeepSeek-V3: one latent row for all heads, a dense layer, then experts in groups and a shared one.
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": NUM_EXPERTS,
    "num_experts_per_tok": EXPERTS_PER_TOKEN,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    # Of the published configuration, which Hugging Face's class does not have.
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}

# Gemma 4: windows, scaled embeddings, norms of queries, keys and values and after each part, a scale per layer.
_GEMMA: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
    "rope_parameters": None,
    "pad_token_id": 0,
}

# Mellum: Qwen3's mixture of experts with windows, which have a rotation of their own; no sinks.
_MELLUM: dict[str, Any] = {
    **_EXPERTS,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "rope_parameters": {
        kind: {"rope_theta": theta, "rope_type": "default"}
        for kind, theta in (("sliding_attention", 10000.0), ("full_attention", 500000.0))
    },
}

Architecture = Literal[
    "qwen3",
    "llama",
    "qwen3_moe",
    "gpt_oss",
    "gemma",
    "mellum",
    "deepseek",
    "qwen3_5",
    "qwen3_5_wide",
    "lfm2",
    "lfm2_vl",
    "lfm2_moe",
    "nemotron_h",
    "nemotron_h_omni",
    "nemotron_h_puzzle",
    "mimo_v2_flash",
    "mimo_v2",
    "kimi_k3",
    "kimi_k3_text",
]


@dataclass(frozen=True)
class TinyPair:
    """A pair in memory and on disk, in the folders that a server loads."""

    target: Any  # a Hugging Face causal language model, float32
    drafter: DFlashDrafter
    model: str
    draft: str
    head: PairHead | None = None  # of a drafter that scores pairs
    sight: Sight | None = None  # of a target that sees

    @property
    def block_size(self) -> int:
        """Rows of the drafter's block: the bonus token and the masks."""
        return self.drafter.config.block_size

    @property
    def max_path_len(self) -> int:
        """P, the bonus token and the D drafts, of which a head that proposes at every row has one a row."""
        return self.block_size + (self.head is not None and self.head.from_anchor)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread within: on a busy machine, threads for products this small wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_pair(
    folder: Path,
    architecture: Architecture,
    block_size: int,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    intermediate_size: int = _SHAPE["intermediate_size"],
    kinds: Sequence[str] = (FULL,),
) -> TinyPair:
    """Make a pair and write it to `folder`; takes a few seconds.

    A larger vocabulary than the usual one is for tensor parallelism: SGLang pads it to a multiple of 64, and with less
    than that a second rank would have none of it. Acceptance is lower then. An `intermediate_size` that 32 divides is
    for adapters on a CPU, where SGLang pads others. The drafter has a layer of each of the `kinds`.
    """
    with one_thread():
        target = make_target(architecture, seed, vocabulary, intermediate_size)
        drafter = train_drafter(target, block_size, seed, kinds)
    target.save_pretrained(folder / "target")
    save_tokenizer(folder / "target", vocabulary)
    if architecture in hybrid_targets.AS_PUBLISHED:
        hybrid_targets.AS_PUBLISHED[architecture](folder / "target")
    if architecture in hybrid_targets.WITH_IMAGES:
        save_as_multimodal(folder / "target", hybrid_targets.WITH_IMAGES[architecture])
    export_drafter(drafter, folder / "draft", torch.float32)
    state_kinds(folder / "draft", drafter)
    return TinyPair(target, drafter.eval(), str(folder / "target"), str(folder / "draft"))


def make_target(
    architecture: Architecture,
    seed: int,
    vocabulary: int = VOCABULARY,
    intermediate_size: int = _SHAPE["intermediate_size"],
) -> Any:
    """A random target whose matrices have the gains above."""
    shape = _SHAPE | {"vocab_size": vocabulary, "intermediate_size": intermediate_size}
    target: Any
    if architecture in hybrid_targets.MAKERS:
        target = hybrid_targets.MAKERS[architecture](shape)
    elif architecture == "qwen3_moe":
        target = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **_EXPERTS))
    elif architecture == "qwen3":
        target = Qwen3ForCausalLM(Qwen3Config(**shape))
    elif architecture == "deepseek":
        target = DeepseekV3ForCausalLM(DeepseekV3Config(**shape | _DEEPSEEK))
    elif architecture == "gemma":
        # SGLang names them itself for checkpoints that take images alone (utils/hf_transformers/config.py).
        of_windows = {"swa_num_key_value_heads": shape["num_key_value_heads"]}
        target = Gemma4ForCausalLM(Gemma4TextConfig(**shape | _GEMMA | of_windows))
    elif architecture == "mellum":
        target = MellumForCausalLM(MellumConfig(**shape | _MELLUM))
    elif architecture == "gpt_oss":
        target = GptOssForCausalLM(GptOssConfig(**shape | _GPT_OSS))
    else:
        target = LlamaForCausalLM(LlamaConfig(**shape))
    fill(target, seed)
    _name_most_frequent_token(target, EOS_TOKEN)
    return target


def fill(target: Any, seed: int) -> None:
    """Random weights with the gains above; the target answers from now on."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            own = hybrid_targets.own_values(target.config.model_type, name, parameter.shape, generator)
            if own is not None:
                parameter.copy_(own)
                continue
            # gpt-oss has its experts' inputs before their outputs.
            is_turned = parameter.dim() == 3 and target.config.model_type == "gpt_oss"
            fill_parameter(name, parameter, generator, parameter.shape[1 if is_turned else -1])
        if target.config.model_type == "gemma4_text":
            # Its embeddings are scaled, its attention's outputs are normed and its scores are not divided.
            target.model.embed_tokens.weight.div_(2 * target.config.hidden_size**0.5)
            for layer in target.model.layers:
                layer.self_attn.q_norm.weight.div_(layer.self_attn.head_dim**0.5)
    target.eval()


def fill_parameter(name: str, parameter: torch.Tensor, generator: torch.Generator, fan_in: int) -> None:
    """Random values for one of a target's parameters, by its name and the inputs of an output."""
    if name.endswith("sinks"):
        # As large as the scores, in a form that SGLang's bfloat16 holds exactly.
        parameter.copy_((1.0 + torch.randn(parameter.shape, generator=generator)).bfloat16())
    elif name.endswith("bias"):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    elif parameter.dim() == 1:
        # Norms on queries and keys take away the gain of what they are applied to.
        parameter.fill_(_GAINS["q_proj"] if name.endswith("q_norm.weight") else 1.0)
    else:
        gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)


@torch.no_grad()
def _name_most_frequent_token(target: Any, name: int) -> None:
    """Swap two tokens of the vocabulary, so that the one that answers hold most often is `name`."""
    prompts = random_prompts(64, 6, 0)
    frequent = int(greedy(target, prompts, 12)[:, prompts.shape[1] :].flatten().mode().values)
    for table in (target.get_input_embeddings().weight, target.lm_head.weight):
        table[[name, frequent]] = table[[frequent, name]]


def random_prompts(count: int, length: int, seed: int) -> torch.Tensor:
    """`[count, length]` int64 of words."""
    return torch.randint(0, NUM_WORDS, (count, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def greedy(target: Any, prompts: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Prompts of one length `[C, T]` and their greedy answers, `[C, T + num_tokens]`."""
    rows, cache = prompts, None
    caches = target.config.model_type in (*hybrid_targets.CACHED, *_CACHED)
    for _ in range(num_tokens):
        new = rows if cache is None else rows[:, -1:]
        out = target(new, past_key_values=cache, use_cache=caches)
        cache = out.past_key_values
        rows = torch.cat([rows, out.logits[:, -1:].argmax(-1)], dim=1)
    return rows


def train_drafter(target: Any, block_size: int, seed: int, kinds: Sequence[str] = (FULL,)) -> DFlashDrafter:
    """A layer of each of the `kinds`, trained on greedy answers alone."""
    torch.manual_seed(seed)
    feature_layer = target.config.num_hidden_layers - 2  # the last layer of a target is never a feature
    drafter = DFlashDrafter(
        drafter_config_for(
            target.config,
            mask_token_id=MASK_TOKEN,
            mask_token=f"w{MASK_TOKEN}",
            target_layer_ids=(feature_layer,),
            num_layers=len(kinds),
            block_size=block_size,
        )
    )
    with_sliding_layers(drafter, kinds, WINDOW)
    train(drafter, target, seed, TRAINING_STEPS)
    return drafter


def train(drafter: DFlashDrafter, target: Any, seed: int, steps: int, from_anchor: bool = False) -> None:
    """Train a drafter on greedy answers of its target; a few seconds for some hundred steps.

    `from_anchor`: each row of a block is to propose the next token, and not the masks their own.
    """
    block_size, prompt_len = drafter.config.block_size, 6
    rows = greedy(target, random_prompts(_TRAINING_ANSWERS, prompt_len, seed + 1), _ANSWER_LEN)
    with torch.no_grad():
        states = target(rows, output_hidden_states=True).hidden_states
        features = torch.cat([states[layer + 1] for layer in drafter.config.target_layer_ids], dim=-1)
        head = target.lm_head.weight.detach()
    generator = torch.Generator().manual_seed(seed + 2)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=5e-3, weight_decay=0.0)
    span = block_size + from_anchor  # of a block and of what it proposes
    last_anchor = rows.shape[1] - span
    for _ in range(steps):
        chosen = torch.randint(0, len(rows), (32,), generator=generator)
        anchors = torch.randint(prompt_len, last_anchor + 1, (32, 6), generator=generator)
        blocks = rows[chosen].gather(1, (anchors[..., None] + torch.arange(span)).flatten(1)).view(32, 6, span)
        with torch.no_grad():
            block_embeds = target.get_input_embeddings()(drafter.block_token_ids(blocks[..., 0]))
        hidden = drafter(block_embeds, features[chosen], anchors)
        logits = (hidden if from_anchor else hidden[:, :, 1:]) @ head.T
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), blocks[..., 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Words w0, w1, ...; requests are given as ids, and a server wants a tokenizer all the same."""
    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"w{EOS_TOKEN}", bos_token=f"w{BOS_TOKEN}")
    wrapped.save_pretrained(folder)
