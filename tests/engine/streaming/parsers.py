"""Answers with two tool calls in the format of each parser that SGLang registers, and with reasoning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

NAMES = ("get_weather", "get_news")
ARGUMENTS = ('{"city": "Paris", "days": 3}', '{"city": "Rome", "days": 5}')

_BAR = "\N{FULLWIDTH VERTICAL LINE}"
_CALLS = (("get_weather", "Paris"), ("get_news", "Rome"))


def _twice(template: str, start: str = "", end: str = "", between: str = "") -> str:
    return start + between.join(template.replace("NAME", name).replace("CITY", city) for name, city in _CALLS) + end


_ARG_LINES = _twice("<tool_call>NAME\n<arg_key>city</arg_key>\n<arg_value>CITY</arg_value>\n</tool_call>", between="\n")
_ARG_TAGS = _twice("<tool_call>NAME<arg_key>city</arg_key><arg_value>CITY</arg_value></tool_call>")
_FUNCTION_TAGS = _twice(
    "<tool_call>\n<function=NAME>\n<parameter=city>\nCITY\n</parameter>\n</function>\n</tool_call>", between="\n"
)

_SPACE = "]<]minimax[>["
_BEAM = _twice(
    ' to=NAME<|channel|>analysis <|constrain|>xml<|message|><rfl:parameter name="city">\nCITY\n</rfl:parameter>',
    "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant",
    "<|call|>",
    "<|end|><|start|>assistant",
)

WRITTEN = {
    "glm": _ARG_LINES,
    "glm45": _ARG_LINES,
    "ling3": _ARG_LINES,
    "poolside_v1": _ARG_LINES,
    "glm47": _ARG_TAGS,
    "spark25": _ARG_TAGS,
    "qwen3_coder": _FUNCTION_TAGS,
    "step3p5": _FUNCTION_TAGS,
    "nanbeige": _FUNCTION_TAGS,
    "mimo": _FUNCTION_TAGS,
    "pythonic": _twice('NAME(city="CITY")', "[", "]", ", "),
    "lfm2": _twice('NAME(city="CITY")', "<|tool_call_start|>[", "]<|tool_call_end|>", ", "),
    "minimax-m2": _twice(
        '<invoke name="NAME">\n<parameter name="city">CITY</parameter>\n</invoke>\n',
        "<minimax:tool_call>\n",
        "</minimax:tool_call>",
    ),
    "step3": _twice(
        f"<{_BAR}tool_call_begin{_BAR}>function<{_BAR}tool_sep{_BAR}>"
        '<steptml:invoke name="NAME"><steptml:parameter name="city">CITY</steptml:parameter></steptml:invoke>'
        f"<{_BAR}tool_call_end{_BAR}>",
        f"<{_BAR}tool_calls_begin{_BAR}>",
        f"<{_BAR}tool_calls_end{_BAR}>",
    ),
    "minicpm5": _twice('<function name="NAME"><param name="city">CITY</param></function>', between="\n"),
    "k2_horizon": _twice(
        "<ifm|tool_call>NAME<ifm|arg_key>city</ifm|arg_key><ifm|arg_value>CITY</ifm|arg_value></ifm|tool_call>",
        "<ifm|tool_calls>",
        "</ifm|tool_calls>",
    ),
    "kimi_k3": _twice(
        '<|open|>call tool="NAME" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>CITY<|close|>argument'
        "<|sep|><|close|>call<|sep|>",
        "<|open|>response<|sep|>Let me see.<|close|>response<|sep|><|open|>tools<|sep|>",
        "<|close|>tools<|sep|>",
    ),
    "gemma4": _twice('<|tool_call>call:NAME{city:<|"|>CITY<|"|>}<tool_call|>'),
    "gigachat35": _twice(
        f'<{_BAR}GCML{_BAR}invoke name="NAME">'
        f'<{_BAR}GCML{_BAR}parameter name="city" string="true">CITY</{_BAR}GCML{_BAR}parameter>'
        f"</{_BAR}GCML{_BAR}invoke>",
        f"<{_BAR}GCML{_BAR}tool_calls>",
        f"</{_BAR}GCML{_BAR}tool_calls>",
    ),
    "iquest_q1": _twice(
        "<iquest_tool_call>NAME<arg_key>city</arg_key><arg_value>CITY</arg_value></iquest_tool_call>", between="\n"
    ),
    "minimax-m3": _twice(
        f'{_SPACE}<invoke name="NAME">{_SPACE}<city>CITY{_SPACE}</city>{_SPACE}</invoke>',
        f"{_SPACE}<tool_call>",
        f"{_SPACE}</tool_call>",
    ),
    "muse": _twice(
        '<atem:invoke name="NAME"><atem:parameter name="city">CITY</atem:parameter></atem:invoke>\n',
        "to=user<|message|>Let me see.<|eom|><|start|>to=tools<|message|><atem:function_calls>\n",
        "</atem:function_calls><|eot|>",
    ),
    "gpt-oss": _twice(
        "<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>"
        '{"city": "CITY"}<|call|>',
        "<|channel|>analysis<|message|>Let me see.<|end|>",
    ),
    "beam": _BEAM,
    "response_template": _BEAM,
}
"""Of parsers that do not say what a call is wrapped in, or that read its arguments otherwise than as JSON."""

ONE_CALL = {
    # A format for one call.
    "gigachat3": "Let me see.<|message_sep|>\n\nfunction call<|role_sep|>\n"
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
    # SGLang's parser drops the beginning of a second call's mark when it comes in pieces (internlm_detector.py).
    "interns1": _twice('<|action_start|> <|plugin|>\n{"name": "NAME", "parameters": {"city": "CITY"}}<|action_end|>'),
}
"""Of parsers that stream the first call alone, in plain decoding too."""


def parsers() -> dict[str, Any]:
    """SGLang's, by name."""
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    return dict(FunctionCallParser.ToolCallParserEnum)


def tools() -> list[Any]:
    from sglang.srt.entrypoints.openai.protocol import Tool

    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    return [Tool(type="function", function={"name": name, "parameters": parameters}) for name in NAMES]  # type: ignore[arg-type]


def sample(name: str) -> str:
    """Two calls, most behind a sentence."""
    if name in WRITTEN or name in ONE_CALL:
        return {**WRITTEN, **ONE_CALL}[name]
    info = parsers()[name]().structure_info()
    calls = zip(NAMES, ARGUMENTS, strict=True)
    return "Let me see. " + "".join(info(call).begin + arguments + info(call).end for call, arguments in calls)


def pieces_of(text: str) -> list[str]:
    """About what a tokenizer makes of it: special tokens whole, words in pieces."""
    return re.findall(r"<[^<>\s]{1,40}>|\w{1,4}|\s+|[^\w\s]", text)


def tokenizer_of(name: str) -> Any:
    """One that brings the template of its answers, which one parser is made from; None for the others."""
    from sglang.srt.parser.beam import BEAM_RESPONSE_TEMPLATE

    return SimpleNamespace(response_template=BEAM_RESPONSE_TEMPLATE) if name == "response_template" else None


def parse_calls(name: str, chunks: Sequence[str]) -> tuple[str, dict[int, tuple[str, str]]]:
    """What a client puts together of a streamed answer: text, and name and arguments of each call by its index."""
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    parser = FunctionCallParser(tools(), name, tokenizer=tokenizer_of(name))
    events = [parser.parse_stream_chunk(chunk) for chunk in chunks] + [parser.parse_stream_end()]
    calls: dict[int, tuple[str, str]] = {}
    for call in (call for _, found in events for call in found):
        called, arguments = calls.get(call.tool_index, ("", ""))
        calls[call.tool_index] = called + (call.name or ""), arguments + (call.parameters or "")
    return "".join(text or "" for text, _ in events), calls


def parse_forced_calls(chunks: Sequence[str]) -> list[tuple[int, str, str]]:
    """What SGLang makes of the JSON of forced calls, without a parser of a format."""
    from sglang.srt.function_call.json_array_parser import JsonArrayParser

    parser = JsonArrayParser()
    events = [parser.parse_streaming_increment(chunk, tools()) for chunk in chunks] + [parser.finish(tools())]
    calls: dict[int, list[str]] = {}
    for call in (call for event in events for call in event.calls):
        kept = calls.setdefault(call.tool_index, ["", ""])
        kept[0] += call.name or ""
        kept[1] += call.parameters or ""
    return [(index, name, arguments) for index, (name, arguments) in sorted(calls.items())]


def reasoning_parsers() -> dict[str, Any]:
    """SGLang's parsers of reasoning that are told by two marks, by name, each with its marks."""
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    found = {}
    for name in ReasoningParser.DetectorMap:
        try:
            detector = ReasoningParser(name).detector
        except (TypeError, ValueError):  # wants a tokenizer or a template
            continue
        marks = getattr(detector, "think_start_token", None), getattr(detector, "think_end_token", None)
        if all(isinstance(mark, str) and mark for mark in marks):
            found[name] = marks
    return found


def parse_reasoning(name: str, chunks: Sequence[str]) -> tuple[str, str]:
    """Reasoning and answer, as a client puts them together."""
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    parser = ReasoningParser(name)
    events = [parser.parse_stream_chunk(chunk) for chunk in chunks] + [parser.parse_stream_end()]
    return "".join(one or "" for one, _ in events), "".join(two or "" for _, two in events)
