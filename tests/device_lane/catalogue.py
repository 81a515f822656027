"""The scenes of the lane, by name."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.class_catalogue import OTHER_CLASSES
from tests.device_lane.context_waves import (
    chunked,
    comes_back_from_the_host,
    fill_the_pool,
    finishes,
    first_turns,
    hits_about_the_window,
    later_turns,
    leaves_the_device,
    mixed,
    mixed_adapters,
    more_than_the_pool,
    passes_a_tracked_length,
    past_the_window,
    prefix_hit,
    resumes_at_a_tracked_length,
    resumes_at_its_end,
    retracted_in_time,
    to_the_context_limit,
)
from tests.device_lane.drafter_catalogue import HEADS, LATTICE_ON_TWO_RANKS, MARKOV_LFM2
from tests.device_lane.group_catalogue import GROUPS, GROUPS_GATED_DELTA, GROUPS_LATENT, GROUPS_OTHERS
from tests.device_lane.group_families import GROUPS_FAMILIES
from tests.device_lane.host_cache import FLAGS as _HOST_CACHE
from tests.device_lane.host_states_catalogue import STATES_ON_THE_HOST
from tests.device_lane.latent_catalogue import LATENT_FA3_PAGES, LATENT_FA3_PAGES_OTHERS
from tests.device_lane.new_weights import failing_adapters, failing_checkpoints, failing_updates_from_tensors
from tests.device_lane.penalty_waves import penalized
from tests.device_lane.picture_catalogue import IMAGES, IMAGES_FA3, IMAGES_TRITON
from tests.device_lane.published_catalogue import ON_OTHER_BACKENDS, PUBLISHED, SLOW_ON_OTHER_BACKENDS
from tests.device_lane.request_waves import FLAGS as _EVERY_KIND
from tests.device_lane.request_waves import few_by_far, of_every_kind, of_every_kind_in_chunks
from tests.device_lane.scenes import CONTEXT_LIMIT, SMALL_POOL, Scene, pool_of
from tests.device_lane.split_catalogue import SPLIT, SPLIT_GATED_DELTA, SPLIT_OTHERS, SPLIT_WINDOWS
from tests.device_lane.state_catalogue import (
    CHUNKS,
    DELTA_ATTENTION_RETRACTION,
    GATED_DELTA_RETRACTION,
    LOAD_FLAGS,
    MAMBA_CHUNKS,
    SHORT_CONVOLUTION,
    SLOW_STATES,
    TRACKED,
)
from tests.device_lane.storage_waves import comes_back_from_storage, has_no_drafts_in_storage, with_storage
from tests.device_lane.waves import (
    aborted,
    by_the_first_adapter,
    changing_widths,
    ends,
    few,
    few_adapters,
    greedy_by_top_k,
    one,
    pair_of_requests,
    prefix_of_another_adapter,
    processed,
    seeded,
    staggered,
    under_grammars,
    with_adapters,
    with_experts,
    with_states,
)
from tests.device_lane.window_catalogue import WINDOWS_FA3_PAGES, WINDOWS_FA3_PAGES_OTHERS

_PAGES = ("--page-size", "4", *CHUNKS)
_DETERMINISTIC = ("--enable-deterministic-inference",)
_LIMIT = ("--context-length", str(CONTEXT_LIMIT))
_STATES = ("--enable-return-hidden-states",)
# A round takes a second here: none is measured at start.
_ADAPTIVE = ("--speculative-ddtree-policy", "adaptive", "--speculative-ddtree-measure-seconds", "0")

SMALL_TRITON = Scene("small-triton", "triton", (pair_of_requests,), budget=7, captured=(2,))
SMALL_FA3 = Scene("small-fa3", "fa3", (few,), budget=7, captured=(4,))
# A drafter that scores pairs of candidates.
PAIRS_OF_CANDIDATES = Scene("pairs-of-candidates", "fa3", (staggered,), pair="selector", budget=7, captured=(4,))
PAIRS_ON_TWO_RANKS = replace(
    PAIRS_OF_CANDIDATES, name="pairs-two-ranks", pair="wide_selector", flags=("--tp-size", "2")
)
SMALL_FLASHINFER = Scene("small-flashinfer", "flashinfer", (pair_of_requests,), budget=16, captured=(2,))
TRITON_DETERMINISTIC = Scene(
    "triton-deterministic", "triton", (seeded,), pair="llama", budget=7, flags=_DETERMINISTIC, captured=(4,)
)
FA3_DETERMINISTIC = Scene(
    "fa3-deterministic", "fa3", (seeded, ends), pair="llama", budget=7, flags=_DETERMINISTIC, captured=(4,)
)
PROCESSORS = Scene("processors", "fa3", (processed, of_every_kind), budget=7, flags=_EVERY_KIND, captured=(1, 4))
SMALL_PROCESSORS = replace(PROCESSORS, name="small-processors", waves=(processed,))
CONTEXT_END = Scene("context-end", "fa3", (to_the_context_limit,), budget=7, flags=_LIMIT, captured=(4,))
# What the host learns of a round, it reads when the round's copies are there.
ADAPTIVE = Scene("adaptive", "fa3", (changing_widths,), budget=4, flags=_ADAPTIVE, captured=(1, 2), late=True)
TRITON_WIDTHS = Scene("triton-widths", "triton", (changing_widths,), budget=4, flags=LOAD_FLAGS, captured=(1, 2))

# Prompts of two chunks: what a chunk gives is no token of the grammar.
GRAMMARS = Scene(
    "grammars", "fa3", (under_grammars,), budget=7, flags=("--chunked-prefill-size", "4"), late=True, captured=(4,)
)
# A tree of four nodes and a block of eight: a round emits fewer rows of states than SGLang reserves for it.
LATE = Scene(
    "late",
    "fa3",
    (staggered, with_states, aborted),
    pair="llama",
    budget=3,
    flags=_STATES,
    late=True,
    captured=(1, 4),
)

_ADAPTERS = ("--max-loras-per-batch", "3", "--max-running-requests", "6", "--lora-backend")
ADAPTERS = Scene(
    "adapters",
    "triton",
    (with_adapters, prefix_of_another_adapter),
    budget=7,
    flags=(*_ADAPTERS, "csgmv"),
    captured=(1, 4),
    adapters=True,
    before=failing_adapters,
)
# Adapters of attention, of gated delta nets and of what is behind both; a state of one adapter is not another's.
QWEN35_ADAPTERS = replace(
    ADAPTERS,
    name="gated-delta-adapters",
    backend="fa3",
    pair="Qwen3.5-4B",
    waves=(
        with_adapters,
        prefix_of_another_adapter,
        by_the_first_adapter(passes_a_tracked_length),
        by_the_first_adapter(resumes_at_a_tracked_length),
    ),
    flags=(*TRACKED, *ADAPTERS.flags),
    before=None,
)
QWEN35_EXPERTS_ADAPTERS = replace(
    QWEN35_ADAPTERS, name="gated-delta-experts-adapters", backend="triton", pair="Qwen3.5-35B-A3B"
)
# Of attention, of Mamba2 and of a part without a gate, whose up_proj has a buffer only where all of them are asked for.
MAMBA_ADAPTERS = replace(
    QWEN35_ADAPTERS,
    name="mamba-adapters",
    backend="triton",
    pair="mamba",
    flags=(*QWEN35_ADAPTERS.flags, "--lora-target-modules", "all"),
)
PENALTIES = Scene("penalties", "fa3", (penalized,), budget=7, captured=(4,))

RETRACTION = Scene(
    "retraction", "fa3", (more_than_the_pool,), budget=7, flags=SMALL_POOL, must_log=("Retract requests",)
)

EXPERTS = Scene(
    "experts",
    "fa3",
    (with_experts,),
    pair="experts",
    budget=7,
    # A verify of four has 32 rows, and a forward of SGLang's own 8.
    flags=("--enable-return-routed-experts", *CHUNKS, "--max-running-requests", "4"),
    captured=(4,),
)

# gpt-oss: windows of eight tokens and sinks.
WINDOWS_TRITON = Scene(
    "windows-triton", "triton", (past_the_window, prefix_hit), pair="gpt_oss", budget=7, captured=(4,)
)

# What is drawn hangs on each node's place, with windows under deterministic inference.
WINDOWS_DETERMINISTIC = replace(
    WINDOWS_TRITON, name="windows-deterministic", waves=(past_the_window, prefix_hit, seeded), flags=_DETERMINISTIC
)

# Mellum: windows of eight tokens without sinks, which SGLang's FlashInfer backend takes.
_PAGED_PREFILLS = ("--lane-variable", "SGLANG_FLASHINFER_USE_PAGED=1")
WINDOWS_FLASHINFER = Scene(
    "windows-flashinfer",
    "flashinfer",
    (past_the_window, prefix_hit),
    pair="mellum",
    budget=7,
    flags=_PAGED_PREFILLS,
    captured=(4,),
)

# DeepSeek-V3: latent attention.
LATENT_TRITON = Scene("latent-triton", "triton", (few, prefix_hit), pair="deepseek", budget=7, captured=(4,))
LATENT_FA3 = Scene("latent-fa3", "fa3", (few,), pair="deepseek", budget=7, captured=(4,))

TRITON_3 = Scene("triton-3", "triton", (of_every_kind, aborted), budget=3, flags=_EVERY_KIND, captured=(4,))

# What these are asked is what the small scenes are, so that their rounds can be compared.
STOCK_TRITON = Scene("stock-triton", "triton", (pair_of_requests,), algorithm="DFLASH", captured=(2,))
STOCK_FA3 = Scene("stock-fa3", "fa3", (few,), algorithm="DFLASH", captured=(4,))

# Five answers of up to twelve tokens: long enough that a key in a wrong slot is read again.
FA3 = Scene("fa3", "fa3", (staggered, prefix_hit, chunked, greedy_by_top_k, ends, aborted), budget=16, flags=CHUNKS)

# A table of pages in the graph, prompts of several chunks, and sessions.
_LONG_PAGES = ("--page-size", "16", "--chunked-prefill-size")
FA3_PAGES = Scene(
    "fa3-pages",
    "fa3",
    (mixed, first_turns, later_turns),
    budget=7,
    flags=(*_LONG_PAGES, "16", "--enable-streaming-session"),
    captured=(2,),
    must_log=("Session closed",),
)
# Of a chunk of one page nothing would be left beside a running request.
FA3_PAGES_MIXED = Scene(
    "fa3-pages-mixed", "fa3", (mixed,), budget=7, flags=(*_LONG_PAGES, "32", "--enable-mixed-chunk"), captured=(2,)
)

# A drafter that reads the last eight tokens of a context, in whole pages.
_DRAFT_WINDOW = ("--speculative-draft-window-size", "8")
DRAFT_WINDOW = Scene(
    "draft-window",
    "fa3",
    (past_the_window, hits_about_the_window, to_the_context_limit),
    budget=7,
    flags=(*_DRAFT_WINDOW, *_PAGES, *_LIMIT),
    late=True,
)
DRAFT_WINDOW_FLASHINFER = Scene(
    "draft-window-flashinfer", "flashinfer", (past_the_window,), budget=7, flags=_DRAFT_WINDOW, captured=(4,)
)
DRAFT_WINDOW_OTHERS = (
    DRAFT_WINDOW_FLASHINFER,
    Scene(
        "draft-window-retraction",
        "triton",
        (retracted_in_time, past_the_window, aborted),
        budget=7,
        flags=(*_DRAFT_WINDOW, *SMALL_POOL),
        captured=(4,),
        must_log=("Retract requests",),
    ),
    Scene(
        "draft-window-stock",
        "fa3",
        (past_the_window, hits_about_the_window),
        algorithm="DFLASH",
        flags=(*_DRAFT_WINDOW, *_PAGES),
        captured=(4,),
    ),
)
# A drafter of two layers, of which the first has a window of its own, as published ones of Qwen3.5 and 3.6 have.
SLIDING_DRAFTER = Scene("sliding-drafter", "fa3", (past_the_window,), pair="sliding", budget=7, captured=(4,))
SLIDING_DRAFTERS = (
    SLIDING_DRAFTER,
    replace(SLIDING_DRAFTER, name="sliding-drafter-triton", backend="triton"),
    replace(SLIDING_DRAFTER, name="sliding-drafter-stock", algorithm="DFLASH", budget=None),
    Scene(
        "sliding-drafter-gated-delta",
        "fa3",
        (past_the_window,),
        pair="sliding_gated_delta",
        budget=7,
        flags=(*TRACKED, *_DRAFT_WINDOW),
        captured=(4,),
    ),
)
# A pool that the texts of a first wave leave, for copies on the host; of a drafter's two layers, too.
HOST_CACHE = Scene(
    "host-cache",
    "fa3",
    (leaves_the_device, comes_back_from_the_host),
    pair="sliding",
    budget=7,
    flags=(*_HOST_CACHE, *pool_of(120)),
    captured=(4,),
)
_STORED = replace(HOST_CACHE, name="storage", waves=(comes_back_from_storage,))
STORAGE = with_storage(_STORED)
STORAGE_OTHERS = (
    with_storage(replace(_STORED, name="storage-no-drafts", waves=(has_no_drafts_in_storage,)), drafts=False),
    with_storage(replace(_STORED, name="storage-windows", backend="triton", pair="gpt_oss")),
    with_storage(replace(_STORED, name="storage-two-ranks", pair="wide", flags=(*_STORED.flags, "--tp-size", "2"))),
)
HOST_CACHE_OTHERS = (
    *STORAGE_OTHERS,
    replace(HOST_CACHE, name="host-cache-stock", algorithm="DFLASH", budget=None),
    replace(
        HOST_CACHE, name="host-cache-window", backend="triton", flags=(*HOST_CACHE.flags, *_DRAFT_WINDOW, *_PAGES[:2])
    ),
    replace(HOST_CACHE, name="host-cache-latent", backend="triton", pair="deepseek"),
    replace(HOST_CACHE, name="host-cache-windows", backend="triton", pair="gpt_oss"),
    *(
        replace(HOST_CACHE, name=f"host-cache-{of}-pages", pair=pair, flags=(*HOST_CACHE.flags, *_PAGES[:2]))
        for of, pair in (("latent", "deepseek"), ("windows", "gpt_oss"))
    ),
)

# Both on two ranks, with adapters and with sessions.
_TOGETHER = ("--tp-size", "2", *_ADAPTERS, "csgmv", "--enable-streaming-session")
TOGETHER = tuple(
    Scene(name, "fa3", (*waves, first_turns, later_turns), pair="wide", budget=7, flags=flags, adapters=True)
    for name, waves, flags in (
        (
            "draft-window-two-ranks",
            (by_the_first_adapter(past_the_window), hits_about_the_window),
            (*_DRAFT_WINDOW, *_PAGES, *_TOGETHER),
        ),
        (
            "host-cache-two-ranks",
            (by_the_first_adapter(leaves_the_device), by_the_first_adapter(comes_back_from_the_host)),
            (*HOST_CACHE.flags, *_TOGETHER),
        ),
    )
)

# Targets of four and of eight bits; the last two have drafters of eight.
AWQ = Scene("awq", "fa3", (few,), pair="awq", budget=7, captured=(4,))
GPTQ = replace(AWQ, name="gptq", backend="triton", pair="gptq")
INT8 = Scene("int8", "fa3", (few_by_far,), pair="int8", budget=7, captured=(4,))
FP8 = replace(INT8, name="fp8", pair="fp8")
FP8_BLOCKS = replace(INT8, name="fp8-blocks", backend="triton", pair="fp8_blocks")
QUANTIZED_CHAINS = tuple(
    replace(tree, name=f"{tree.name}-stock", algorithm="DFLASH", budget=None) for tree in (AWQ, GPTQ, INT8, FP8)
)

# Not in each CI run, for their time: more requests at once, chunks, wider trees, no graphs, recurrent layers.
SLOW_SCENES = (
    Scene(
        "windows-triton-16",
        "triton",
        (past_the_window, staggered, prefix_hit, chunked),
        pair="gpt_oss",
        budget=16,
        flags=_PAGES,
    ),
    Scene(
        "windows-retraction",
        "triton",
        (fill_the_pool,),
        pair="gpt_oss",
        budget=7,
        flags=SMALL_POOL,
        must_log=("Retract requests",),
    ),
    *WINDOWS_FA3_PAGES_OTHERS,
    *LATENT_FA3_PAGES_OTHERS,
    Scene("windows-gemma", "triton", (past_the_window, prefix_hit), pair="gemma", budget=16, captured=(4,)),
    Scene(
        "windows-flashinfer-16",
        "flashinfer",
        (past_the_window, staggered, prefix_hit, chunked),
        pair="mellum",
        budget=16,
        flags=(*_PAGES, *_PAGED_PREFILLS),
    ),
    Scene(
        "windows-flashinfer-widths",
        "flashinfer",
        (changing_widths,),
        pair="mellum",
        budget=4,
        flags=(*LOAD_FLAGS, *_PAGED_PREFILLS),
        captured=(1, 2),
    ),
    Scene(
        "windows-flashinfer-retraction",
        "flashinfer",
        (fill_the_pool,),
        pair="mellum",
        budget=7,
        flags=(*SMALL_POOL, *_PAGED_PREFILLS),
        must_log=("Retract requests",),
    ),
    WINDOWS_DETERMINISTIC,
    replace(WINDOWS_DETERMINISTIC, name="windows-deterministic-eager", waves=(past_the_window,), captured=()),
    replace(
        WINDOWS_FLASHINFER,
        name="windows-flashinfer-deterministic",
        waves=(past_the_window, prefix_hit, seeded),
        # A tile must not be larger than the chunks that memory of this size gives.
        flags=(*_PAGED_PREFILLS, "--lane-variable", "SGLANG_FLASHINFER_PREFILL_SPLIT_TILE_SIZE=2048", *_DETERMINISTIC),
    ),
    replace(WINDOWS_FLASHINFER, name="windows-flashinfer-eager", waves=(past_the_window,), captured=()),
    replace(
        WINDOWS_FLASHINFER,
        name="windows-flashinfer-one-pool",
        flags=(*_PAGED_PREFILLS, "--disable-hybrid-swa-memory"),
    ),
    replace(WINDOWS_FLASHINFER, name="windows-mellum", backend="triton", flags=()),
    Scene("windows-triton-eager", "triton", (past_the_window,), pair="gpt_oss", budget=7, captured=()),
    LATENT_TRITON,
    *SLOW_STATES,
    *STATES_ON_THE_HOST,
    replace(
        SHORT_CONVOLUTION,
        name="short-convolution-adapters",
        waves=(
            with_adapters,
            prefix_of_another_adapter,
            by_the_first_adapter(finishes),
            by_the_first_adapter(resumes_at_its_end),
        ),
        flags=(*SHORT_CONVOLUTION.flags, *ADAPTERS.flags),
        adapters=True,
    ),
    QWEN35_ADAPTERS,
    QWEN35_EXPERTS_ADAPTERS,
    MAMBA_ADAPTERS,
    *DRAFT_WINDOW_OTHERS,
    *SLIDING_DRAFTERS,
    *HOST_CACHE_OTHERS,
    *GROUPS_OTHERS,
    *GROUPS_FAMILIES,
    PAIRS_ON_TWO_RANKS,
    LATTICE_ON_TWO_RANKS,
    MARKOV_LFM2,
    *OTHER_CLASSES,
    *TOGETHER,
    GPTQ,
    INT8,
    FP8,
    FP8_BLOCKS,
    *QUANTIZED_CHAINS,
    *SPLIT_OTHERS,
    *SLOW_ON_OTHER_BACKENDS,
    IMAGES_TRITON,
)

SMALL = (SMALL_TRITON, SMALL_FA3, SMALL_FLASHINFER)
SCENES = (
    Scene("triton", "triton", (staggered, prefix_hit, chunked), budget=16, flags=_PAGES),
    FA3,
    Scene(
        "flashinfer",
        "flashinfer",
        (staggered, prefix_hit, chunked, ends, aborted, of_every_kind_in_chunks),
        budget=16,
        flags=(*_PAGES, *_EVERY_KIND),
    ),
    TRITON_DETERMINISTIC,
    FA3_DETERMINISTIC,
    CONTEXT_END,
    PROCESSORS,
    ADAPTIVE,
    TRITON_WIDTHS,
    GRAMMARS,
    PENALTIES,
    *PUBLISHED,
    *ON_OTHER_BACKENDS,
    GATED_DELTA_RETRACTION,
    MAMBA_CHUNKS,
    DELTA_ATTENTION_RETRACTION,
    SHORT_CONVOLUTION,
    SPLIT,
    SPLIT_GATED_DELTA,
    SPLIT_WINDOWS,
    TRITON_3,
    RETRACTION,
    FA3_PAGES,
    FA3_PAGES_MIXED,
    Scene("triton-64", "triton", (one,), budget=64, captured=(1,)),
    Scene("flashinfer-64", "flashinfer", (pair_of_requests,), budget=64, captured=(2,)),
    Scene("fa3-64", "fa3", (pair_of_requests,), budget=64, captured=(2,)),
    LATE,
    ADAPTERS,
    EXPERTS,
    Scene(
        "adapters-triton",
        "fa3",
        (mixed_adapters,),
        budget=7,
        flags=(*_ADAPTERS, "triton", *CHUNKS, "--enable-mixed-chunk"),
        captured=(4,),
        adapters=True,
    ),
    Scene(
        "two-ranks",
        "fa3",
        (few_adapters,),
        pair="wide",
        budget=7,
        flags=("--tp-size", "2", *_ADAPTERS, "csgmv"),
        captured=(4,),
        adapters=True,
        before=failing_updates_from_tensors,
    ),
    GROUPS,
    GROUPS_GATED_DELTA,
    GROUPS_LATENT,
    WINDOWS_TRITON,
    WINDOWS_FA3_PAGES,
    WINDOWS_FLASHINFER,
    LATENT_FA3,
    LATENT_FA3_PAGES,
    DRAFT_WINDOW,
    PAIRS_OF_CANDIDATES,
    *HEADS,
    IMAGES,
    IMAGES_FA3,
    HOST_CACHE,
    STORAGE,
    AWQ,
    STOCK_TRITON,
    STOCK_FA3,
    Scene("plain", "triton", (pair_of_requests,), algorithm=None, captured=(2,), before=failing_checkpoints),
)
