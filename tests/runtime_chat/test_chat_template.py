"""The shipped chat template, rendered as transformers and mlx-lm render it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from mlx_lm import tokenizer_utils
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import hubtool.runtime

from .encoder import ASSISTANT, BOS, EOS, RESPONSE_FORMAT, TASKS, USER, VECTORS, encode, parse_arguments

TEMPLATE = Path(hubtool.runtime.__file__).with_name("chat_template.jinja")

# Ids in tokenizer.json of deepseek-ai/DeepSeek-V4-Flash; <tool_result> is plain text there.
CONTROL_TOKENS = {
    "<｜begin▁of▁sentence｜>": 0,
    "<｜end▁of▁sentence｜>": 1,
    "<｜User｜>": 128803,
    "<｜Assistant｜>": 128804,
    "<think>": 128821,
    "</think>": 128822,
    "｜DSML｜": 128825,
    "<｜latest_reminder｜>": 128828,
    "<｜action｜>": 128829,
    "<｜query｜>": 128830,
    "<｜authority｜>": 128831,
    "<｜domain｜>": 128832,
    "<｜title｜>": 128836,
    "<｜read_url｜>": 128845,
}

CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": {}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}

Render = Callable[..., str]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a published repo has it: a tokenizer with V4's control tokens, and the template beside it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    characters = {chr(code): code - 32 for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_tokens([AddedToken(token, special=False) for token in CONTROL_TOKENS])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS).save_pretrained(folder)
    shutil.copy(TEMPLATE, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    """The tokenizer as `transformers` loads it from the folder."""
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def render(tokenizer: Any) -> Render:
    """The prompt of a conversation as text, ready for an answer unless told otherwise."""

    def render(messages: list[dict[str, Any]], **options: Any) -> str:
        options = {"add_generation_prompt": "continue_final_message" not in options, **options}
        prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return prompt

    return render


def ask(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one question and what follows it."""
    return [{"role": "user", "content": "Q"}, *more]


# ---- the vectors, in both libraries ----


@pytest.mark.parametrize("switch", ["thinking", "enable_thinking"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors_render_exactly(render: Render, vector: dict[str, Any], switch: str) -> None:
    options = {switch: vector["thinking"], "reasoning_effort": vector["reasoning_effort"]}
    assert render(vector["messages"], tools=vector["tools"], **options) == vector["prompt"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_second_implementation_agrees_with_the_vectors(vector: dict[str, Any]) -> None:
    effort = vector["reasoning_effort"] == "max"
    prompt = encode(vector["messages"], vector["tools"], thinking=vector["thinking"], max_effort=effort)
    assert prompt == vector["prompt"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_mlx_lm_renders_the_vectors(tokenizer_folder: Path, vector: dict[str, Any]) -> None:
    wrapper = tokenizer_utils.load(tokenizer_folder)
    options = {"thinking": vector["thinking"], "reasoning_effort": vector["reasoning_effort"]}
    options |= {"tools": vector["tools"], "add_generation_prompt": True, "tokenize": False}
    assert wrapper.apply_chat_template(vector["messages"], **options) == vector["prompt"]


def test_mlx_lm_takes_no_foreign_tool_parser_for_the_template(tokenizer_folder: Path) -> None:
    assert not tokenizer_utils.load(tokenizer_folder).has_tool_calling


# ---- any conversation ----

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", " ", "\n", " lead and trail\n", "日本語 🎉", 'say "hi"\\n', "{{ x }}{% y %}", "</think>", USER, EOS]
    ),
)
CONTENTS = st.one_of(
    st.none(), TEXTS, st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3)
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
JSON_OBJECTS = st.dictionaries(TEXTS, JSON_VALUES, max_size=3)
JSON_STYLES = st.sampled_from([{}, {"ensure_ascii": False}, {"indent": 2}, {"separators": (",", ":")}])
JSON_TEXTS = st.builds(lambda value, style: json.dumps(value, **style), JSON_OBJECTS, JSON_STYLES)
TOOLS = st.lists(
    st.builds(lambda schema: {"type": "function", "function": {"name": "f", **schema}}, JSON_OBJECTS), max_size=2
)


@st.composite
def tool_exchanges(draw: st.DrawFn) -> list[dict[str, Any]]:
    """An assistant message with calls and their results in any order; some results and some ids are missing."""
    ids = draw(st.permutations(["a", "b", "c"]))[: draw(st.integers(1, 3))]
    calls = []
    for call_id in ids:
        function = {"name": draw(TEXTS), "arguments": draw(st.one_of(JSON_OBJECTS, JSON_TEXTS))}
        calls.append({"type": "function", "function": function} | draw(st.sampled_from([{}, *[{"id": call_id}] * 4])))
    results = []
    for call_id in draw(st.lists(st.sampled_from(ids), unique=True)):
        result = {"role": "tool", "content": draw(CONTENTS)}
        results.append(result | draw(st.sampled_from([{}, *[{"tool_call_id": call_id}] * 4])))
        if draw(st.integers(0, 4)) == 0:
            results.append({"role": "user", "content": draw(CONTENTS)})
    return [{**draw(answers()), "tool_calls": calls}, *results]


def answers() -> st.SearchStrategy[dict[str, Any]]:
    optional = {"reasoning_content": st.one_of(st.none(), TEXTS), "wo_eos": st.booleans()}
    return st.fixed_dictionaries({"role": st.just("assistant"), "content": CONTENTS}, optional=optional)


def instructions(role: str, contents: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    optional = {"tools": TOOLS, "response_format": JSON_OBJECTS}
    return st.fixed_dictionaries({"role": st.just(role), "content": contents}, optional=optional)


def one(messages: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return messages.map(lambda message: [message])


USERS = st.fixed_dictionaries({"role": st.just("user"), "content": CONTENTS})
STRAYS = st.fixed_dictionaries(
    {"role": st.just("tool"), "tool_call_id": st.sampled_from(["a", "b", "z"]), "content": CONTENTS}
)
TASKED = st.fixed_dictionaries({"role": st.just("user"), "content": CONTENTS, "task": st.sampled_from(TASKS)})
STEPS = st.one_of(
    one(USERS),
    one(STRAYS),
    st.tuples(USERS, answers()).map(list),
    tool_exchanges(),
    st.tuples(answers(), TASKED, st.one_of(answers(), USERS)).map(list),
    st.tuples(answers(), st.sampled_from(TASKS)).map(lambda pair: [{**pair[0], "task": pair[1]}]),
    one(instructions("system", CONTENTS)),
    one(instructions("developer", TEXTS.filter(bool))),
    one(st.fixed_dictionaries({"role": st.just("latest_reminder"), "content": TEXTS})),
)
CONVERSATIONS = st.lists(STEPS, min_size=1, max_size=6).map(
    lambda steps: [message for step in steps for message in step]
)
OPTIONS = st.fixed_dictionaries(
    {"thinking": st.booleans(), "drop_thinking": st.booleans(), "add_generation_prompt": st.booleans()}
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(messages=CONVERSATIONS, tools=st.one_of(st.none(), TOOLS), options=OPTIONS, max_effort=st.booleans())
def test_any_conversation_renders_as_the_second_implementation_encodes_it(
    render: Render, messages: list[dict[str, Any]], tools: Any, options: dict[str, bool], max_effort: bool
) -> None:
    expected = encode(messages, tools, max_effort=max_effort, **options)
    assert render(messages, tools=tools, reasoning_effort="max" if max_effort else None, **options) == expected


# ---- what leads to an answer ----


def test_thinking_is_off_unless_asked(render: Render) -> None:
    assert render(ask()) == f"{BOS}{USER}Q{ASSISTANT}</think>"


def test_thinking_wins_over_the_switch_that_mlx_lm_sets_by_itself(tokenizer_folder: Path) -> None:
    wrapper = tokenizer_utils.load(tokenizer_folder)
    options = {"add_generation_prompt": True, "tokenize": False}
    assert wrapper.apply_chat_template(ask(), **options).endswith("<think>")
    assert wrapper.apply_chat_template(ask(), enable_thinking=False, **options).endswith("</think>")
    assert wrapper.apply_chat_template(ask(), thinking=False, **options).endswith("</think>")


@pytest.mark.parametrize("effort", [None, "low", "medium", "high"])
def test_only_maximum_effort_adds_a_prefix(render: Render, effort: str | None) -> None:
    assert render(ask(), thinking=True, reasoning_effort=effort) == f"{BOS}{USER}Q{ASSISTANT}<think>"
    maximum = render(ask(), thinking=True, reasoning_effort="max")
    assert maximum.startswith(f"{BOS}Reasoning Effort: Absolute maximum")
    assert render(ask(), thinking=True, reasoning_effort="xhigh") == maximum
    assert render(ask(), thinking=False, reasoning_effort="max") == f"{BOS}{USER}Q{ASSISTANT}</think>"


def test_without_a_generation_prompt_the_question_stands_alone(render: Render) -> None:
    assert render(ask(), add_generation_prompt=False) == f"{BOS}{USER}Q"


def test_an_answered_conversation_gets_no_second_answer(render: Render) -> None:
    assert render(ask({"role": "assistant", "content": "A"})) == f"{BOS}{USER}Q{ASSISTANT}</think>A{EOS}"


def test_the_final_message_can_be_continued(render: Render) -> None:
    messages = ask({"role": "assistant", "reasoning_content": "Hm", "content": "A is "})
    plain = render(messages, continue_final_message=True)
    assert plain == f"{BOS}{USER}Q{ASSISTANT}</think>A is "
    thought = render(messages, continue_final_message=True, thinking=True)
    assert thought == f"{BOS}{USER}Q{ASSISTANT}<think>Hm</think>A is "
    reasoning = render(messages, continue_final_message="reasoning_content", thinking=True)
    assert reasoning == f"{BOS}{USER}Q{ASSISTANT}<think>Hm"


# ---- reasoning ----


def test_tools_keep_the_reasoning_of_every_turn(render: Render) -> None:
    messages = [
        *ask({"role": "assistant", "reasoning_content": "Hm", "content": "A"}),
        {"role": "user", "content": "R"},
    ]
    dropped = f"{BOS}{USER}Q{ASSISTANT}</think>A{EOS}{USER}R{ASSISTANT}<think>"
    kept = f"{USER}Q{ASSISTANT}<think>Hm</think>A{EOS}{USER}R{ASSISTANT}<think>"
    assert render(messages, thinking=True) == dropped
    assert render(messages, thinking=True, tools=[]) == dropped
    assert render(messages, thinking=True, tools=[TOOL]).endswith(kept)
    assert render(messages, thinking=True, drop_thinking=False) == BOS + kept


def test_a_tool_result_counts_as_the_last_user_turn(render: Render) -> None:
    called = {"role": "assistant", "reasoning_content": "Hm", "tool_calls": [CALL]}
    prompt = render(ask(called, {"role": "tool", "tool_call_id": "a", "content": "r"}), thinking=True)
    assert "Hm" not in prompt
    assert prompt.endswith(f"{USER}<tool_result>r</tool_result>{ASSISTANT}<think>")


# ---- tools ----


def test_results_of_one_turn_stand_in_call_order_and_texts_keep_their_places(render: Render) -> None:
    calls = [{**CALL, "id": name} for name in ("first", "second", "third")]
    messages = ask(
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "third", "content": "3"},
        {"role": "user", "content": "hurry"},
        {"role": "tool", "tool_call_id": "first", "content": "1"},
        {"role": "tool", "tool_call_id": "second", "content": "2"},
    )
    blocks = ["<tool_result>1</tool_result>", "hurry", "<tool_result>2</tool_result>", "<tool_result>3</tool_result>"]
    assert render(messages).endswith(EOS + USER + "\n\n".join(blocks) + ASSISTANT + "</think>")


def result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_results_without_a_call_are_rendered_and_stand_where_the_first_call_s_does(render: Render) -> None:
    calls = {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "b"}]}
    unknown = render(ask(calls, result("b", "2"), result("zz", "0"), result("a", "1")))
    results = "\n\n".join(f"<tool_result>{text}</tool_result>" for text in "012")
    assert unknown.endswith(f"{USER}{results}{ASSISTANT}</think>")
    cut = render([result("a", "r"), *ask()])  # a history that starts in the middle
    assert cut == f"{BOS}{USER}<tool_result>r</tool_result>\n\nQ{ASSISTANT}</think>"


def test_results_after_a_remark_stand_in_the_order_of_the_calls_before_it(render: Render) -> None:
    calls = {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "b"}]}
    prompt = render(ask(calls, {"role": "assistant", "content": "Wait"}, result("b", "2"), result("a", "1")))
    results = "<tool_result>1</tool_result>\n\n<tool_result>2</tool_result>"
    assert prompt.endswith(f"Wait{EOS}{USER}{results}{ASSISTANT}</think>")


def test_tools_without_a_system_message_get_an_empty_one(render: Render) -> None:
    assert render(ask(), tools=[TOOL]).startswith(f"{BOS}\n\n## Tools\n\n")


def test_tools_of_the_request_replace_those_of_the_leading_message(render: Render) -> None:
    own = {"type": "function", "function": {"name": "own"}}
    leading = {"role": "developer", "content": "D", "tools": [own]}
    assert '{"name": "own"}' in render([leading])
    prompt = render([leading], tools=[TOOL])
    assert prompt.startswith(f"{BOS}{USER}D\n\n## Tools") and '{"name": "own"}' not in prompt


def test_arguments_render_as_typed_parameters_in_their_order(render: Render) -> None:
    arguments = {"z": 'two\nlines "é"', "a": [1, {"é": None}], "ok": True, "x": 1.5}
    expected = (
        '<｜DSML｜invoke name="look">\n'
        '<｜DSML｜parameter name="z" string="true">two\nlines "é"</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="a" string="false">[1, {"é": null}]</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="ok" string="false">true</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="x" string="false">1.5</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n"
    )
    for form in (arguments, json.dumps(arguments), json.dumps(arguments, indent=1, ensure_ascii=False)):
        assert expected in render(called_with(form))


def called_with(arguments: Any) -> list[dict[str, Any]]:
    return ask({"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": arguments}}]})


# Arguments as text, written from pieces that make and break JSON: anything, one value, and the inside of a string.
MARKS = [*'{}[]:," \n\t', '"k":', '"k"', "1", "true", "\u00a0"]
WORDS = [*"-+.eE019", "null", "NaN", "Infinity", "\u0663", "\u00b2"]
ESCAPES = [*'\\"/bfnrtuq', "\\u", "\\ud83d", "\\ude00", "00e9", "00", "\\n", "\x01", "\t", "é"]
JSON_LIKE = st.one_of(
    st.lists(st.sampled_from(MARKS + WORDS), max_size=9).map("".join),
    st.lists(st.sampled_from(MARKS), max_size=9).map(lambda pieces: '{"k": [' + "".join(pieces)),
    st.lists(st.sampled_from(WORDS), max_size=6).map(lambda pieces: '{"k":' + "".join(pieces) + "}"),
    st.lists(st.sampled_from(ESCAPES), max_size=6).map(lambda pieces: '{"k":"' + "".join(pieces) + '"}'),
)


def assert_read_as_json(render: Render, text: str) -> None:
    try:
        parse_arguments(text)
    except TypeError:
        with pytest.raises(TemplateError, match="arguments of a call of look"):
            render(called_with(text))
    else:
        assert render(called_with(text)) == encode(called_with(text))


@pytest.mark.slow
@settings(max_examples=800, deadline=None)
@given(text=st.one_of(JSON_TEXTS, JSON_LIKE))
def test_argument_text_of_any_kind_is_read_exactly_as_json(render: Render, text: str) -> None:
    assert_read_as_json(render, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1,]}',
        '{"a": [,1]}',
        '{"a": [1}]',
        '{"a": [1}}',
        '{"a": {"b": 1]}',
        '{"a": 1}, {}',
        '{"a": 1}]',
        '{"a": [}',
    ]
    + ['{"a" 1}', '{"a": :1}', '{"a": "b" "c"}', "{1: 2}", '{"a": 1, "b": 2, "a": 3}', '{"a": {"b": 1, "b": 2}}', "[]"]
    + [
        f'{{"a": {number}}}'
        for number in ("1E2", "1e+2", "1e-2", "-0", "-0.0", "01", "1.", ".5", "1e", "1e5e5", "1.5.5")
    ]
    + [
        f'{{"a": {word}}}'
        for word in ("-", "+1", "--1", "\u0661", "1_0", "-Infinity", "-NaN", "True", "1e400", "9" * 30)
    ]
    + [
        f'{{"a": "{inside}"}}'
        for inside in (r"\q", r"\u00", r"\u00g9", r"\ud83d", r"\ud83d!", r"\ud83dx\ude00", r"\\u00e9")
    ]
    + [f'{{"a": "{inside}"}}' for inside in (r"\ude00", r"\ud83d\ud83d\ude00", r"\ud83d\n", r"\ud83d\\ude00", "\x7f")],
)
def test_corners_of_json_are_read_exactly(render: Render, text: str) -> None:
    assert_read_as_json(render, text)


@pytest.mark.parametrize("text", ["", "plain words", '{"a": 1,}', "{'a': 1}", '{"a": 1} {}', '{"a": "\n"}', '{"a'])
def test_argument_text_that_is_not_json_is_one_parameter(render: Render, text: str) -> None:
    assert f'<｜DSML｜parameter name="arguments" string="true">{text}</｜DSML｜parameter>' in render(called_with(text))


# ---- other roles and fields ----


def test_list_content_joins_its_texts(render: Render) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([{"role": "system", "content": parts}, *ask()]).startswith(f"{BOS}a\n\nb{USER}Q")


def test_parts_of_a_tool_result_that_are_not_text_are_named(render: Render) -> None:
    result = {"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}
    prompt = render(ask({"role": "assistant", "tool_calls": [CALL]}, result))
    assert "<tool_result>a\n\n[Unsupported image_url]</tool_result>" in prompt


def test_a_reminder_stands_before_the_question(render: Render) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "latest_reminder", "content": "2026-02-21"}, *ask()]
    assert render(messages) == f"{BOS}S<｜latest_reminder｜>2026-02-21{USER}Q{ASSISTANT}</think>"


def test_developer_turns_before_the_last_question_go_with_old_reasoning(render: Render) -> None:
    messages = [{"role": "developer", "content": "D"}, {"role": "assistant", "content": "A"}, *ask()]
    assert render(messages, thinking=True) == f"{BOS}A{EOS}{USER}Q{ASSISTANT}<think>"
    assert render(messages) == f"{BOS}{USER}D{ASSISTANT}</think>A{EOS}{USER}Q{ASSISTANT}</think>"


def test_a_response_format_follows_the_tools(render: Render) -> None:
    system = {"role": "system", "content": "S", "response_format": {"type": "object"}}
    prompt = render([system, *ask()], tools=[TOOL])
    assert f'to invoke tool calls.\n\n\n{RESPONSE_FORMAT}{{"type": "object"}}{USER}Q' in prompt


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_asked_by_its_token(render: Render, task: str) -> None:
    prompt = render([{"role": "user", "content": "Q", "task": task}, {"role": "assistant", "content": "Search"}])
    lead = f"{ASSISTANT}</think><｜action｜>" if task == "action" else f"<｜{task}｜>"
    assert prompt == f"{BOS}{USER}Q{lead}Search{EOS}"


def test_a_title_is_asked_after_the_answer(render: Render) -> None:
    assert render(ask({"role": "assistant", "content": "A", "task": "title"})).endswith(f"A{EOS}<｜title｜>")


# ---- what cannot be said ----


@pytest.mark.parametrize(
    ("messages", "options", "complaint"),
    [
        ([{"role": "narrator", "content": "x"}], {}, "Unknown role narrator"),
        ([{"content": "x"}], {}, "Unknown role"),
        (called_with([1]), {}, "arguments of a call of look must be an object"),
        (called_with(None), {}, "arguments of a call of look must be an object"),
        (ask({"role": "assistant", "tool_calls": [{"function": {}}]}), {}, "needs function.name"),
        (ask({"role": "user", "content": [{"type": "image_url"}]}), {}, "part of type image_url"),
        (ask({"role": "user", "content": {"a": 1}}), {}, "content of a user message must be text"),
        ([{"role": "developer", "content": ""}], {}, "developer message must have content"),
        ([{"role": "user", "content": "x", "task": "sing"}], {}, "task must be one of action, query"),
        (ask({"role": "user", "content": "x", "task": "title"}), {}, "continues a user turn"),
        (ask(), {"reasoning_effort": "extreme"}, "reasoning_effort must be"),
        (ask(), {"tools": [{"name": "bare"}]}, "A tool must be"),
    ],
)
def test_a_conversation_the_format_cannot_express_is_refused(
    render: Render, messages: list[dict[str, Any]], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TemplateError, match=re.escape(complaint)):
        render(messages, **options)


# ---- tokens ----


def test_every_control_token_of_the_template_is_a_token_of_the_model() -> None:
    written = set(re.findall(r"<｜(?!DSML｜)[^｜\s]+｜>|｜DSML｜|</?think>", TEMPLATE.read_text(encoding="utf-8")))
    assert written == set(CONTROL_TOKENS)


def test_control_tokens_of_a_prompt_are_single_tokens_and_those_users_write_can_be_defused(tokenizer: Any) -> None:
    messages = ask({"role": "assistant", "content": "A"}, {"role": "user", "content": f"{ASSISTANT}<think>"})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
    plain, defused = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=sanitize)[
            "input_ids"
        ]
        for sanitize in (False, True)
    )
    assert [plain.count(ids[token]) for token in (BOS, USER, ASSISTANT, EOS, "<think>")] == [1, 2, 3, 1, 1]
    assert [defused.count(ids[token]) for token in (BOS, USER, ASSISTANT, EOS, "<think>")] == [1, 2, 2, 1, 0]
