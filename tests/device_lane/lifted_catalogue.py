"""The refusals that are shown to be needed: with each taken away, its scene goes wrong."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.catalogue import (
    ADAPTERS,
    GRAMMARS,
    LATENT_FA3,
    SMALL_TRITON,
)
from tests.device_lane.context_waves import (
    TRACKED_LEN,
    chunked,
    ends_about_a_tracked_length,
    finishes,
    go_on_after_mixing,
    resumes_at_a_tracked_length,
    resumes_at_its_end,
)
from tests.device_lane.group_catalogue import GROUPS_EAGER
from tests.device_lane.group_waves import in_both_groups, the_second_group_alone
from tests.device_lane.lifted_requests import REQUESTS
from tests.device_lane.lifted_servers import SERVERS
from tests.device_lane.lifted_waves import (
    asking_both_groups,
    asking_for_two_answers,
    go_on_behind_that_page,
    long_side_by_side,
    mixed_within_a_page,
    turns_behind_those,
    turns_that_end_inside_a_path,
)
from tests.device_lane.needed import ROUNDS, TOKENS, UNANSWERED, Needed
from tests.device_lane.split_catalogue import SPLIT, SPLIT_STATES_RETRACTION
from tests.device_lane.state_catalogue import (
    CHUNKS,
    DELTA_ATTENTION_16,
    GATED_DELTA,
    GATED_DELTA_16,
    GATED_DELTA_FA3,
    GATED_DELTA_MIXED,
    LOAD_FLAGS,
    MAMBA,
    SHORT_CONVOLUTION,
    STATES_POOL,
    TRACKED,
)
from tests.device_lane.waves import (
    by_the_first_adapter,
    changing_widths,
    few,
    processed,
    with_experts,
    with_states,
)

_PAGES = ("--page-size", "4")


NEEDED = (
    Needed(
        "trees_on_torch_native",
        "needs an attention backend with tree masks",
        replace(SMALL_TRITON, name="refused-torch-native", backend="torch_native", captured=()),
        "'NoneType' object has no attribute 'shape'",
    ),
    Needed(
        "latent_attention_on_flashinfer",
        "honours a tree's mask with latent attention",
        replace(
            LATENT_FA3,
            name="refused-latent-flashinfer",
            backend="flashinfer",
            flags=("--flashinfer-mla-disable-ragged",),
            captured=(),
        ),
        TOKENS,
        right="chain",
        slow=False,
    ),
    Needed(
        "states_of_several_widths",
        "with a fixed number of nodes",
        replace(
            MAMBA,
            name="refused-mamba-widths",
            waves=(long_side_by_side,),
            budget=4,
            flags=(*MAMBA.flags, *LOAD_FLAGS),
            captured=(1, 2),
            must_log=(),
        ),
        TOKENS,
    ),
    Needed(
        "kimi_k3s_text_alone",
        "has not been run with KimiK3LinearForCausalLM",
        replace(
            DELTA_ATTENTION_16,
            name="refused-kimi-k3-text",
            pair="kimi_k3_text",
            waves=(finishes, resumes_at_its_end),
            flags=STATES_POOL,
            moves=False,
        ),
        TOKENS,
    ),
    Needed(
        "groups_share_a_head",
        "needs an LM head of each group's own",
        replace(
            GROUPS_EAGER,
            name="refused-groups-head",
            flags=tuple(flag for flag in GROUPS_EAGER.flags if flag != "--enable-dp-lm-head"),
        ),
        ROUNDS,
    ),
    Needed(
        "groups_that_measure",
        "which no group may choose by its own rounds",
        replace(
            GROUPS_EAGER,
            name="refused-groups-adaptive",
            before=asking_both_groups,
            flags=(
                *GROUPS_EAGER.flags,
                *("--speculative-ddtree-policy", "adaptive", "--speculative-ddtree-measure-seconds", "0"),
            ),
        ),
        UNANSWERED,
    ),
    Needed(
        "processors_on_two_servers",
        "calls a logit processor on two servers",
        replace(
            SPLIT,
            name="refused-split-processors",
            waves=(processed,),
            flags=("--enable-custom-logit-processor",),
            at_once=0,
        ),
        TOKENS,
    ),
    Needed(
        "states_from_two_servers",
        "returns no hidden states",
        replace(
            SPLIT,
            name="refused-split-states",
            pair="llama",
            waves=(with_states,),
            flags=("--enable-return-hidden-states",),
            at_once=0,
        ),
        "hidden states, expected",
    ),
    Needed(
        "experts_from_two_servers",
        "returns no routed experts",
        replace(
            SPLIT,
            name="refused-split-experts",
            pair="experts",
            waves=(with_experts,),
            flags=("--enable-return-routed-experts",),
            at_once=0,
        ),
        "routed experts",
    ),
    Needed(
        "experts_of_groups",
        "returns wrong experts",
        replace(
            GROUPS_EAGER,
            name="refused-groups-experts",
            pair="experts",
            waves=(in_both_groups(with_experts), the_second_group_alone, in_both_groups(chunked)),
            flags=(*GROUPS_EAGER.flags, "--enable-return-routed-experts", *CHUNKS),
            captured=(1, 2),
        ),
        "routed experts",
    ),
    Needed(
        "keys_over_ranks",
        "keeps all of a request's keys on each rank",
        replace(
            SMALL_TRITON,
            name="refused-decode-context-parallel",
            pair="wide",
            flags=("--tp-size", "2", "--dcp-size", "2"),
        ),
        "DCP Triton extend does not support custom masks",
    ),
    Needed(
        "classes_that_attend_over_all_ranks",
        "has been run with DeepseekV3ForCausalLM",
        replace(GROUPS_EAGER, name="refused-groups-llama", pair="llama"),
        "cannot reshape tensor of 0 elements",
    ),
    Needed(
        "states_in_groups",
        "has been run with DeepseekV3ForCausalLM",
        replace(
            GROUPS_EAGER,
            name="refused-groups-mamba",
            pair="mamba",
            flags=(*GROUPS_EAGER.flags, *TRACKED),
            captured=(1, 2),
        ),
        "written residual does not match the supplied output",
    ),
    Needed(
        "states_of_mixed_ends",
        "keeps a wrong state of a request that ends",
        replace(
            GATED_DELTA_MIXED,
            name="refused-mixed-ends",
            flags=(
                *GATED_DELTA_16.flags,
                *CHUNKS,
                *("--enable-mixed-chunk", "--mamba-radix-cache-strategy", "no_buffer"),
            ),
        ),
        TOKENS,
    ),
    Needed(
        "inputs_of_mixed_ends",
        "keeps wrong inputs of convolutions",
        replace(
            SHORT_CONVOLUTION,
            name="refused-mixed-convolutions",
            waves=(*GATED_DELTA_MIXED.waves, go_on_after_mixing, go_on_after_mixing),
            flags=(*SHORT_CONVOLUTION.flags, *CHUNKS, "--enable-mixed-chunk"),
        ),
        f"{TOKENS}|{ROUNDS}",
    ),
    *(
        Needed(
            "inputs_of_mixed_ends",
            "keeps wrong inputs of convolutions",
            replace(
                SHORT_CONVOLUTION,
                name=name,
                backend=backend,
                pair=pair,
                waves=(*GATED_DELTA_MIXED.waves, go_on_after_mixing, go_on_after_mixing),
                flags=(*SHORT_CONVOLUTION.flags, *CHUNKS, "--enable-mixed-chunk"),
            ),
            f"{TOKENS}|{ROUNDS}",
        )
        for name, backend, pair in (
            ("refused-mixed-convolutions-flashinfer", "flashinfer", "short_convolution"),
            ("refused-mixed-convolutions-experts", "fa3", "short_convolution_experts"),
            ("refused-mixed-convolutions-experts-flashinfer", "flashinfer", "short_convolution_experts"),
        )
    ),
    Needed(
        "states_within_a_page",
        "where a chunk ends within a page",
        replace(
            GATED_DELTA_FA3,
            name="refused-mixed-pages",
            waves=(mixed_within_a_page, go_on_behind_that_page),
            flags=(
                *GATED_DELTA_FA3.flags,
                *("--enable-mixed-chunk", "--chunked-prefill-size", "68", *_PAGES, "--context-length", "320"),
            ),
            captured=(2,),
        ),
        TOKENS,
    ),
    Needed(
        "states_of_sessions",
        "keep a session's state from turn to turn",
        replace(
            GATED_DELTA,
            name="refused-sessions-recurrent",
            waves=(turns_that_end_inside_a_path, turns_behind_those),
            flags=(*GATED_DELTA.flags, "--enable-streaming-session"),
        ),
        TOKENS,
    ),
    Needed(
        "states_planned_ahead",
        "plan the prefix cache's states ahead",
        replace(
            GATED_DELTA,
            name="refused-states-ahead",
            waves=(ends_about_a_tracked_length, resumes_at_a_tracked_length),
            flags=(*GATED_DELTA.flags, "--mamba-radix-cache-strategy", "extra_buffer_lazy"),
        ),
        f"0 tokens from the prefix cache, expected {TRACKED_LEN}",
    ),
    Needed(
        "heads_that_read_the_prompts_end",
        "takes drafters of DFlash, DFlash2, DSpark, got one of LiLiCorr",
        replace(SPLIT, name="refused-split-lattice", pair="lilicorr", waves=(few,), at_once=0),
        ROUNDS,
    ),
    Needed(
        "states_on_two_servers",
        "add --disable-overlap-schedule to this server",
        replace(SPLIT_STATES_RETRACTION, name="refused-split-states-overlap", decode_flags=()),
        TOKENS,
    ),
    Needed(
        "answers_in_one_room",
        "n must be 1",
        replace(SPLIT, name="refused-split-answers", waves=(few,), before=asking_for_two_answers),
        UNANSWERED,
    ),
    Needed(
        "adapters_of_several_widths",
        "serves adapters with a fixed number of nodes",
        replace(
            ADAPTERS,
            name="refused-adapters-widths",
            waves=(by_the_first_adapter(changing_widths),),
            budget=4,
            flags=(*ADAPTERS.flags, *LOAD_FLAGS),
            captured=(1, 2),
            before=None,
        ),
        TOKENS,
    ),
    Needed(
        "adapters_by_torch",
        "verifies trees with adapters on the LoRA backends",
        replace(
            ADAPTERS,
            name="refused-adapters-torch",
            flags=(*ADAPTERS.flags[:-1], "torch_native"),
            before=None,
        ),
        "The size of tensor a .* must match the size of tensor b",
    ),
    Needed(
        "grammars_of_outlines",
        "which outlines cannot",
        replace(GRAMMARS, name="refused-outlines", flags=(*GRAMMARS.flags, "--grammar-backend", "outlines")),
        "NotImplementedError",
    ),
    *SERVERS,
    *REQUESTS,
)
