"""Card metadata: what the Hub refuses, what it warns about, what it takes."""

import pytest

from hubtool.hub.rules import REF_NAME, Problem, check_metadata, is_repo_id, read_metadata, split_card

GOOD = """---
license: mit
language: [en, zh, yue, code]
base_model: deepseek-ai/DeepSeek-V4-Flash
base_model_relation: quantized
library_name: mlx
pipeline_tag: text-generation
tags: [mlx, conversational]
---
# Title
"""


def fatal(metadata: str) -> list[str]:
    """The messages for which the Hub would refuse this metadata."""
    return [problem.message for problem in check_metadata(f"---\n{metadata}\n---\n") if problem.fatal]


def test_good_card_has_no_problem() -> None:
    assert check_metadata(GOOD) == []
    assert read_metadata(GOOD)["base_model"] == "deepseek-ai/DeepSeek-V4-Flash"


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ("license: deepseek", '"license" with value "deepseek" is not valid'),
        ("license: [mit, MIT]", 'value "MIT"'),
        ("license: 1", "must be a string or an array of strings, not 1"),
        ("language: English", "ISO 639-1"),
        ("language: xx", 'value "xx"'),
        ("language: zh-Hans", "language_bcp47"),
        ("language: [en, no]", "not False; put it in quotes"),
        ("base_model: ./local/model", "Use a model id from"),
        ("base_model: [org/ok, a/b/c]", 'value "a/b/c"'),
        ("base_model: null", "must be a string"),
        ("base_model_relation: quantised", "adapter, merge, quantized, finetune"),
        ("new_version: org/a--b", 'value "org/a--b"'),
        ("tags: mlx", '"tags" must be an array'),
        ("tags: [mlx, 4]", '"tags" must be an array of strings'),
        ("library_name: [mlx]", '"library_name" must be a string'),
        ("pipeline_tag: 3", '"pipeline_tag" must be a string'),
        ("widget: text", '"widget" must be an array'),
        ("model-index: {}", '"model-index" must be an array'),
        ("model-index: [{results: []}]", '"model-index[0].name" is required'),
        ("model-index: [{name: a}]", '"model-index[0].results" must be an array'),
        ("- a list", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("license: mit\nlicense: mit", "the key 'license' is named twice"),
    ],
)
def test_metadata_that_the_hub_refuses(metadata: str, part: str) -> None:
    messages = fatal(metadata)
    assert len(messages) == 1 and part in messages[0], messages


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ("pipeline_tag: text-generating", "official list of tasks"),
        ("license: other\nlicense_name: own", '"license_link"'),
        ("license: other\nlicense_link: LICENSE", '"license_name"'),
        ("", "empty or missing yaml metadata"),
    ],
)
def test_metadata_that_the_hub_only_warns_about(metadata: str, part: str) -> None:
    problems = check_metadata(f"---\n{metadata}\n---\n")
    assert [problem.fatal for problem in problems] == [False] and part in problems[0].message


def test_card_without_front_matter_is_all_text() -> None:
    assert split_card("# Title\n---\n") == ("", "# Title\n---\n")
    assert check_metadata("# Title") == [Problem("empty or missing yaml metadata in repo card", fatal=False)]


def test_front_matter_ends_at_its_first_closing_line() -> None:
    assert split_card("---\na: 1\n---\ntext\n---\nmore") == ("a: 1\n", "text\n---\nmore")
    assert split_card("---\r\na: 1\r\n---\r\ntext") == ("a: 1\r\n", "text")


@pytest.mark.parametrize("name", ["org/model", "a/b", "org/Model-1.5_x", f"{'a' * 96}/{'b' * 96}"])
def test_names_that_the_hub_takes(name: str) -> None:
    assert is_repo_id(name)


@pytest.mark.parametrize(
    "name",
    ["model", "org/", "/model", "a/b/c", "org/-model", "org/model.", "org/a..b", "org/a--b", "org/x.git", "ö/b"]
    + [f"org/{'b' * 97}"],
)
def test_names_that_the_hub_refuses(name: str) -> None:
    assert not is_repo_id(name)


def test_names_of_refs_follow_git() -> None:
    assert all(REF_NAME.fullmatch(name) for name in ("v1", "releases/v1.0", "a"))
    assert not any(REF_NAME.fullmatch(name) for name in ("", "a..b", "a b", "/a", "a/", "a.lock", "a~1", "a//b", ".a"))
