"""What must be true of a scene: answers are plain torch's, every slot is given back, and no rule was broken."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.device_lane.laws import FARTHEST, distance, laws, problems_of_draws
from tests.device_lane.references import Reference, experts_of, histogram
from tests.device_lane.scenes import Answered, Chooser, Outcome, Scene, Sent

MAX_STATE_ERROR = 1e-3


def _last_error(log: str) -> list[str]:
    """What a server died of, as its log has it; nothing if it does not say."""
    errors = [line for line in log.splitlines() if re.match(r"[\w.]*(Error|Violation): ", line)]
    return [f"the log's last error is {errors[-1]!r}"] if errors else []


def problems(scene: Scene, outcome: Outcome, reference: Reference) -> list[str]:
    """What is wrong with a scene's outcome; empty when all is as plain torch says."""
    reference = reference.of_server(scene.flags)
    found = [outcome.failure, *_last_error(outcome.log)] if outcome.failure else []
    for one_answer in outcome.answered:
        found += _of_answer(scene, one_answer, reference)
    found += _of_draws(scene, outcome, reference)
    if outcome.used_slots:
        found.append(f"{outcome.used_slots} slots of the KV pool are taken when nothing runs")
    for word in ("LaneViolation", "not permitted when stream is capturing", "Leak Detected", "memory leak"):
        if word in outcome.log:
            found.append(f"the log has {next(line for line in outcome.log.splitlines() if word in line)!r}")
    largest = max((line["batch_size"] for line in outcome.decode_rounds), default=0)
    if outcome.failure is None and largest < scene.at_once:
        found.append(f"no round had more than {largest} requests, expected {scene.at_once}")
    found += _of_nodes(scene, outcome, reference)
    found += _of_mixing(scene, outcome, reference)
    found += [f"the log lacks {word!r}" for word in scene.must_log if word not in outcome.log]
    return found


def _of_mixing(scene: Scene, outcome: Outcome, reference: Reference) -> list[str]:
    """Where chunks are mixed: whether any answer's rounds are others than if none had taken part in a prefill."""
    mixed = [one for one in outcome.answered if one.sent.check == "steps"]
    if "--enable-mixed-chunk" not in scene.flags or not mixed or outcome.failure is not None:
        return []
    for one in mixed:
        by_itself = histogram(Chooser(reference, scene).rounds(one.sent.asked))
        if one.answer["meta_info"].get("spec_correct_drafts_histogram", []) != by_itself:
            return []
    return ["all rounds are as if no request had a token by another one's prefill: chunks were not mixed"]


def _of_nodes(scene: Scene, outcome: Outcome, reference: Reference) -> list[str]:
    """What is wrong with the number of nodes that its rounds verified, and with those that they accepted."""
    if scene.algorithm != "DDTREE" or scene.widths_change or outcome.failure is not None:
        return []
    found = []
    nodes = {line["nodes"] for line in outcome.decode_rounds if line["nodes"] is not None}
    if nodes - {scene.num_nodes} or (scene.moves and not nodes):
        found.append(f"rounds verified {sorted(nodes)} nodes a request, expected {scene.num_nodes}")
    if scene.moves:
        asked = (answered.sent.asked for answered in outcome.answered)
        if not any(one.moves for each in asked for one in Chooser(reference, scene).rounds(each)):
            found.append("no accepted node had to move, so that a chain would have passed as well")
    return found


def _of_draws(scene: Scene, outcome: Outcome, reference: Reference) -> list[str]:
    """Whether tokens that nobody knew before follow their laws, all of the scene's together."""
    found, drawn = [], []
    for sent, answer in ((one.sent, one.answer) for one in outcome.answered if one.sent.check == "law"):
        about, tokens = f"{scene.name}, prompt of {len(sent.asked.prompt)}", answer["output_ids"]
        problems_of_one = problems_of_draws(sent.asked, answer, reference, sent.supports)
        found += [f"{about}: {problem}" for problem in problems_of_one]
        if not problems_of_one:
            pairs = zip(tokens, laws(reference, sent.asked, tokens), strict=True)
            drawn += [(token, law) for token, law in pairs if law is not None]
    off = distance(drawn)
    if abs(off) > FARTHEST:
        found.append(
            f"{scene.name}: {len(drawn)} drawn tokens surprise by {off:.1f} standard deviations off their laws"
        )
    return found


def _of_events(events: list[dict[str, Any]], answer: dict[str, Any]) -> list[str]:
    """What is wrong with a stream: an event for each token, with all so far and their log-probabilities."""
    tokens, logprobs = answer["output_ids"], answer["meta_info"].get("output_token_logprobs", [])
    found = []
    if [one["output_ids"] for one in events] != [tokens[: index + 1] for index in range(len(tokens))]:
        found.append(f"streamed {[one['output_ids'] for one in events]}, expected {tokens} one by one")
    for index, one in enumerate(events):
        if one["meta_info"].get("output_token_logprobs", []) != logprobs[: index + 1]:
            found.append(f"log-probabilities of event {index} are {one['meta_info']['output_token_logprobs']}")
        if (one["meta_info"]["finish_reason"] is None) != (index < len(events) - 1):
            found.append(f"event {index} of {len(events)} finishes by {one['meta_info']['finish_reason']}")
    return found


def _of_answer(scene: Scene, one_answer: Answered, reference: Reference) -> list[str]:
    sent, answer = one_answer.sent, one_answer.answer
    if sent.check == "law":
        return []  # _of_draws
    expected, meta = reference.expect(sent.asked), answer["meta_info"]
    tokens, wanted = list(answer["output_ids"]), list(expected.output_ids)
    about = f"{scene.name}, prompt of {len(sent.asked.prompt)}"
    if sent.check == "prefix":
        wanted = wanted[: len(tokens)]
    if tokens != wanted:
        return [f"{about}: tokens {tokens}, expected {wanted}"]
    found = []
    if sent.total is not None and len(sent.asked.prompt) + len(tokens) != sent.total:
        found.append(f"{about}: {len(tokens)} tokens, expected {sent.total} with the prompt")
    if sent.aborted and meta["finish_reason"]["type"] != "abort":
        found.append(f"{about}: finished by {meta['finish_reason']}, it was to be aborted before")
    if sent.check != "prefix" and meta["finish_reason"]["type"] != expected.finish_reason:
        found.append(f"{about}: finished by {meta['finish_reason']}, expected {expected.finish_reason}")
    found += [f"{about}: {problem}" for problem in _of_what_is_told(sent, answer, reference)]
    found += [f"{about}: {problem}" for problem in _of_prefix_cache(scene, sent, meta)]
    return found + _of_rounds(scene, sent, meta.get("spec_correct_drafts_histogram", []), reference, about)


def _of_what_is_told(sent: Sent, answer: dict[str, Any], reference: Reference) -> list[str]:
    """What is wrong with what a request is told besides its tokens: events, log-probabilities, states, experts."""
    found, meta, expected = [], answer["meta_info"], reference.expect(sent.asked)
    if sent.streamed:
        found += _of_events(answer["events"], answer)
    if sent.logprobs:
        logprobs = [entry[0] for entry in meta["output_token_logprobs"]]
        if any(abs(a - b) > 1e-3 for a, b in zip(logprobs, expected.logprobs, strict=True)):
            found.append(f"log-probabilities {logprobs}, expected {list(expected.logprobs)}")
    if sent.states:
        found += _of_states(sent, answer, reference)
    if sent.experts and not torch.equal(experts_of(answer), reference.experts(sent.asked)):
        found.append(f"routed experts {experts_of(answer).tolist()}")
    return found


def _of_prefix_cache(scene: Scene, sent: Sent, meta: dict[str, Any]) -> list[str]:
    """What is wrong with the tokens that it had of a prompt.

    The last round of SGLang's chain may have accepted more than the answer holds, and then has its last token's keys.
    """
    found = []
    more = {0, 1} if scene.algorithm == "DFLASH" and sent.goes_on else {0}
    if sent.cached is not None and meta["cached_tokens"] - sent.cached not in more:
        found.append(f"{meta['cached_tokens']} tokens from the prefix cache, expected {sent.cached}")
    by_place = meta.get("cached_tokens_details") or {}
    for place, least in (("host", sent.from_host), ("storage", sent.from_storage)):
        if least is not None and by_place.get(place, 0) < least:
            found.append(f"{by_place.get(place, 0)} tokens from the {place}, expected {least} at least")
    return found


def _of_rounds(scene: Scene, sent: Sent, accepted: list[int], reference: Reference, about: str) -> list[str]:
    """What is wrong with an answer's rounds by correct drafts."""
    if sent.check == "steps":
        ways = reference.with_steps_of_one_token(sent.asked, scene.num_nodes)
        if tuple(accepted) not in ways:
            return [f"{about}: rounds by correct drafts {accepted}, expected one of {sorted(ways)}"]
    if sent.check == "rounds" and scene.algorithm is not None and not scene.widths_change:
        rounds = histogram(Chooser(reference, scene).rounds(sent.asked))
        if accepted != rounds:
            return [f"{about}: rounds by correct drafts {accepted}, expected {rounds}"]
    return []


def _of_states(sent: Sent, answer: dict[str, Any], reference: Reference) -> list[str]:
    """Plain decoding's list: the prompt's rows that were not in the prefix cache, then a row per further token."""
    prompt, *further = answer["meta_info"]["hidden_states"]
    rows, expected = [*prompt, *further], reference.states(sent.asked)[answer["meta_info"]["cached_tokens"] :]
    if len(rows) != len(expected):
        return [f"{len(rows)} hidden states, expected {len(expected)}"]
    off = (torch.tensor(rows) - expected).abs().amax(-1)
    return [f"hidden states differ by {off.tolist()}"] if float(off.max()) > MAX_STATE_ERROR else []
