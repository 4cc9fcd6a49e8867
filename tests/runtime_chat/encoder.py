"""A second implementation of the DeepSeek-V4 chat format, in Python, to compare the shipped template with.

It shares nothing with the template: the fixed texts come from the vectors, JSON from the standard library.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VECTORS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("chat_vectors.json").read_text(encoding="utf-8"))

Message = Mapping[str, Any]

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, REMINDER = "<｜User｜>", "<｜Assistant｜>", "<｜latest_reminder｜>"
RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
TASKS = ("action", "query", "authority", "domain", "title", "read_url")


def _vector(name: str) -> dict[str, Any]:
    return next(vector for vector in VECTORS if vector["name"] == name)


def _fixed_texts() -> tuple[str, str, str]:
    """The tools section before and after the schemas, and the prefix of maximum effort, cut out of the vectors."""
    offered = _vector("tools offered")
    system = offered["messages"][0]["content"]
    section = offered["prompt"].removeprefix(f"{BOS}{system}\n\n").split(USER)[0]
    before, after = section.split(_dumps(offered["tools"][0]["function"]))
    effort = _vector("effort max")
    prefix = effort["prompt"].removeprefix(BOS).split(effort["messages"][0]["content"])[0]
    return before, after, prefix


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


TOOLS_BEFORE, TOOLS_AFTER, MAX_EFFORT = _fixed_texts()


@dataclass
class Turn:
    """One turn of the prompt: several user and tool messages may have become one."""

    role: str
    task: str | None = None
    message: Message = field(default_factory=dict)
    blocks: list[str | tuple[int, str]] = field(default_factory=list)  # texts, and (place of the call, result)


def encode(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    thinking: bool = False,
    max_effort: bool = False,
    drop_thinking: bool = True,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt of a conversation that the format can express."""
    turns = _turns(_with_tools(messages, tools))
    drops = thinking and drop_thinking and not any(turn.message.get("tools") for turn in turns)
    if drops:
        before_last_user = turns[: _last_user(turns)] if _last_user(turns) >= 0 else []
        dropped = [turn for turn in before_last_user if turn.role == "developer"]
        turns = [turn for turn in turns if not any(turn is other for other in dropped)]
    last_user = _last_user(turns)
    prompt = BOS + (MAX_EFFORT if thinking and max_effort else "")
    for index, turn in enumerate(turns):
        following = turns[index + 1].role if index + 1 < len(turns) else None
        asked = index > 0 and turns[index - 1].task is not None
        prompt += _body(turn, reasoned=thinking and not asked and (not drops or index > last_user))
        if following in ("assistant", "latest_reminder") or (following is None and add_generation_prompt):
            opened = thinking and (not drops or index >= last_user or turn.task == "action")
            prompt += _lead(turn, "<think>" if opened else "</think>")
    return prompt


def _with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    if not tools:
        return list(messages)
    if messages[0]["role"] in ("system", "developer"):
        return [{**messages[0], "tools": tools}, *messages[1:]]
    return [{"role": "system", "tools": tools}, *messages]


def _turns(messages: Sequence[Message]) -> list[Turn]:
    turns: list[Turn] = []
    places: dict[str, int] = {}
    for message in messages:
        role, task = message["role"], message.get("task")
        if role == "assistant" and message.get("tool_calls"):
            places = {call["id"]: place for place, call in enumerate(message["tool_calls"]) if "id" in call}
        if role not in ("user", "tool"):
            turns.append(Turn(role, task, message))
            continue
        continues = turns and turns[-1].role == "user" and (role == "tool" or turns[-1].task is None)
        turn = turns[-1] if continues else Turn("user", task)
        text = _text(message.get("content"))
        turn.blocks.append((places.get(message.get("tool_call_id", ""), 0), text) if role == "tool" else text)
        if not continues:
            turns.append(turn)
    return turns


def _last_user(turns: Sequence[Turn]) -> int:
    return max((index for index, turn in enumerate(turns) if turn.role in ("user", "developer")), default=-1)


def _text(content: str | Sequence[Any] | None) -> str:
    if isinstance(content, str):
        return content
    parts = [
        part if isinstance(part, str) else part.get("text", f"[Unsupported {part['type']}]") for part in content or ()
    ]
    return "\n\n".join(parts)


def _body(turn: Turn, *, reasoned: bool) -> str:
    message = turn.message
    if turn.role == "user":
        results = iter(
            sorted((block for block in turn.blocks if not isinstance(block, str)), key=lambda block: block[0])
        )
        texts = [
            block if isinstance(block, str) else f"<tool_result>{next(results)[1]}</tool_result>"
            for block in turn.blocks
        ]
        return USER + "\n\n".join(texts)
    text = _text(message.get("content"))
    if turn.role == "latest_reminder":
        return REMINDER + text
    if turn.role == "assistant":
        thought = f"{message.get('reasoning_content') or ''}</think>" if reasoned else ""
        return thought + text + _calls(message.get("tool_calls")) + ("" if message.get("wo_eos") else EOS)
    if message.get("tools"):
        schemas = "\n".join(_dumps(tool["function"]) for tool in message["tools"])
        text += f"\n\n{TOOLS_BEFORE}{schemas}{TOOLS_AFTER}"
    if message.get("response_format"):
        text += f"\n\n{RESPONSE_FORMAT}{_dumps(message['response_format'])}"
    return (USER if turn.role == "developer" else "") + text


def _lead(turn: Turn, think: str) -> str:
    if turn.task == "action":
        return f"{ASSISTANT}{think}<｜action｜>"
    if turn.task is not None:
        return f"<｜{turn.task}｜>"
    return ASSISTANT + think if turn.role in ("user", "developer") else ""


def _calls(calls: Sequence[Mapping[str, Any]] | None) -> str:
    if not calls:
        return ""
    invokes = []
    for call in calls:
        function = call["function"]
        parameters = "\n".join(
            f'<｜DSML｜parameter name="{key}" string="true">{value}</｜DSML｜parameter>'
            if isinstance(value, str)
            else f'<｜DSML｜parameter name="{key}" string="false">{_dumps(value)}</｜DSML｜parameter>'
            for key, value in parse_arguments(function["arguments"]).items()
        )
        invokes.append(f'<｜DSML｜invoke name="{function["name"]}">\n{parameters}\n</｜DSML｜invoke>\n')
    return f"\n\n<｜DSML｜tool_calls>\n{''.join(invokes)}</｜DSML｜tool_calls>"


def parse_arguments(arguments: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a call; text that is not JSON is the one parameter `arguments`.

    Raises:
        TypeError: the text is JSON, but not an object.
    """
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return {"arguments": arguments}
    if not isinstance(value, dict):
        raise TypeError(f"arguments are not an object: {arguments}")
    return value
