"""DeepSeek-V4's two chat formats: that of April 2026, and that of 0731, which has other reasoning efforts.

Both are defined by encoding/encoding_dsv4.py in DeepSeek's repos. The earlier has one text, for the effort `max`
(`REASONING_EFFORT_MAX`); the later one a text an effort (`REASONING_EFFORT_PROMPTS`): none for `low`, which is its
default, the earlier's `max` for `high`, and a new one for `max`. All else is the same (ggml-org/llama.cpp#26398).
"""

from functools import cache
from pathlib import Path

from hubtool.models.chat import ChatFormat, Config, Form, constants

_TEMPLATE = Path(__file__).parent.parent / "runtime" / "chat_template.jinja"

_EFFORT = "Reasoning Effort:"
"""How the text of an effort begins."""

_BEYOND = """Reasoning Effort: Beyond maximum \u2014 exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the \
problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause \
rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no \
assumption remains unchecked and no error remains undiscovered."""
"""The text of the effort `max` of 0731, on which that model was trained; two line breaks follow it."""

_CHANGES = (
    ("of the April 2026 releases", "of the 0731 release"),
    (
        "'max' (or 'xhigh') puts a prefix before the system text; 'low', 'medium', 'high' do not",
        "'max' and 'high' (or 'xhigh') put a prefix each before the system text; 'low', 'medium' do not",
    ),
    (
        "{%- macro max_effort_prefix() -%}\n",
        "{%- macro max_effort_prefix() -%}\n" + _BEYOND + "\n{{- '\\n\\n' -}}\n{%- endmacro -%}\n\n"
        "{%- macro high_effort_prefix() -%}\n",
    ),
    ("{%- set effort = reasoning_effort or 'high' -%}", "{%- set effort = reasoning_effort or 'low' -%}"),
    (
        "{%- if thinks and effort in ['xhigh', 'max'] -%}\n  {{- max_effort_prefix() -}}\n",
        "{%- if thinks and effort == 'max' -%}\n  {{- max_effort_prefix() -}}\n"
        "{%- elif thinks and effort in ['high', 'xhigh'] -%}\n  {{- high_effort_prefix() -}}\n",
    ),
)
"""What the template of 0731 has instead of that of April."""


@cache
def forms() -> tuple[Form, Form]:
    """The formats of April and of 0731."""
    april = _TEMPLATE.read_text("utf-8")
    later = april
    for before, after in _CHANGES:
        assert later.count(before) == 1, before
        later = later.replace(before, after)
    return (
        Form("DeepSeek-V4's format of April 2026", april.encode()),
        Form("DeepSeek-V4's format of 0731", later.encode()),
    )


def choose(config: Config, encoder: str | None) -> tuple[Form, str]:
    """The format that a checkpoint has, and how that is known."""
    april, later = forms()
    is_later = is_0731(config)
    guess = later if is_later else april
    by_config = "config.json has the keys of 0731" if is_later else "config.json has none of the keys of 0731"
    if encoder is None:
        return guess, f"{by_config}; there is no {CHAT.encoder_file} to compare with"
    found = constants(encoder)
    names, texts = found or (frozenset[str](), frozenset[str]())
    efforts = {text.strip() for text in texts if text.startswith(_EFFORT)}
    known = {_BEYOND: later, _absolute(): april}
    for form, expected in ((april, {_absolute()}), (later, {_absolute(), _BEYOND})):
        if efforts == expected and not efforts - known.keys():
            return form, f"its {CHAT.encoder_file} has the efforts of that format"
    if not efforts and "REASONING_EFFORT_PROMPTS" in names | texts:
        return later, f"its {CHAT.encoder_file} defines REASONING_EFFORT_PROMPTS"
    return (
        guess,
        f"{by_config}; its {CHAT.encoder_file} is of no format that hubtool knows: compare before you rely on it",
    )


def is_0731(config: Config) -> bool:
    """Whether a checkpoint is of the release that came with a DSpark drafter, by the keys that only it has."""
    return any(str(key).startswith("dspark_") for key in config)


@cache
def _absolute() -> str:
    """The text of the earlier format's only effort, as the template has it."""
    text = _TEMPLATE.read_text("utf-8")
    return text[text.index(_EFFORT) : text.index("\n{{- '\\n\\n' -}}", text.index(_EFFORT))]


CHAT = ChatFormat(
    encoder_file="encoding/encoding_dsv4.py",
    marks=("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
    choose=choose,
    forms=forms(),
)
