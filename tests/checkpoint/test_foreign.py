"""Folders that hubtool did not make, as mlx-lm leaves them and as they come: measured, and what is odd is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import copied, edit_json
from tests.fixtures import CommandLine, Conversions

INDEX = "model.safetensors.index.json"


@pytest.fixture
def uniform(converted: Conversions, tmp_path: Path) -> Path:
    """A folder with one way of quantizing for all modules, said once, as `mlx_lm.convert -q` writes it."""
    folder = copied(converted("mini", "compact_4bit").folder, tmp_path / "theirs")
    for name in ("hubtool.json", "provenance.intoto.json", "README.md"):
        (folder / name).unlink()
    return folder


def quantization(folder: Path, change: Any) -> None:
    def both(config: dict[str, Any]) -> None:
        block = change(config["quantization"])
        config.update(quantization=block, quantization_config=block)

    edit_json(folder / "config.json", both)


def test_the_top_of_quantization_stands_for_all_modules(uniform: Path, hubtool: CommandLine) -> None:
    before = hubtool("inspect", uniform, "--json")
    assert before.code == 0, before.stdout
    entries = json.loads((uniform / "config.json").read_bytes())["quantization"]
    usual = next(each for each in entries.values() if isinstance(each, dict))
    # All but those that differ are said once.
    quantization(uniform, lambda block: usual | {k: v for k, v in block.items() if isinstance(v, dict) and v != usual})
    after = hubtool("inspect", uniform, "--json")
    assert (after.code, after.document["parameters"]) == (0, before.document["parameters"]), after.stdout
    assert "4-bit" in hubtool("card", uniform).stdout


ODD: dict[str, Any] = {
    "no dictionary": lambda config: config.update(quantization=["a"], quantization_config=["a"]),
    "bits of none": lambda config: config.update(quantization={"bits": 0}, quantization_config={"bits": 0}),
    "bits as text": lambda config: config.update(quantization={"bits": "4"}, quantization_config={"bits": "4"}),
    "bits of too many": lambda config: config.update(quantization={"bits": 64}, quantization_config={"bits": 64}),
    "true": lambda config: config.update(quantization=True, quantization_config=True),
    "an architecture as text": lambda config: config.update(architectures="Deepseek"),
    "architectures as numbers": lambda config: config.update(architectures=[1], model_type=3),
    "no architectures": lambda config: config.update(architectures={}),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_config_is_named_and_gives_no_absurd_figure(odd: str, uniform: Path, hubtool: CommandLine) -> None:
    edit_json(uniform / "config.json", ODD[odd])
    found = hubtool("inspect", uniform)
    if "architecture" not in odd:
        assert found.code == 1 and "config.json: quantization" in found.stdout + found.stderr, found.stdout
    card = hubtool("card", uniform)
    assert card.code == 0, card.stderr
    assert "| Architecture | D |" not in card.stdout and "0-bit" not in card.stdout and "64-bit" not in card.stdout


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (INDEX, b"[]", INDEX),
        (INDEX, b"{", INDEX),
        (INDEX, b'{"weight_map": {}, "metadata": null}', INDEX),
        (INDEX, b'{"weight_map": {"a": 3}}', INDEX),
        ("config.json", b"\xef\xbb\xbf{", "config.json"),
        ("config.json", b"null", "config.json"),
        ("README.md", b"---\nlicense: [\n---\n", "README.md"),
        ("README.md", b"---\n- a\n---\n", "README.md"),
        ("README.md", b"---\nlicense: \xff\n---\n", "README.md"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, content: bytes, named: str, uniform: Path, hubtool: CommandLine
) -> None:
    (uniform / name).write_bytes(content)
    for command in ("inspect", "card"):
        outcome = hubtool(command, uniform)
        assert outcome.code in (0, 1)
        if (command, name) not in (("inspect", "README.md"), ("card", INDEX)):
            assert named in outcome.stderr + outcome.stdout, (command, outcome)


@pytest.mark.parametrize("name", ["config.json", INDEX, "README.md"])
def test_a_byte_order_mark_is_no_fault(name: str, uniform: Path, hubtool: CommandLine) -> None:
    (uniform / "README.md").write_text("---\nlicense: mit\n---\n")
    before = hubtool("inspect", uniform, "--json").document
    (uniform / name).write_bytes(b"\xef\xbb\xbf" + (uniform / name).read_bytes())
    after = hubtool("inspect", uniform, "--json")
    assert (after.code, after.document["parameters"]) == (0, before["parameters"]), after.stdout
    assert hubtool("card", uniform).stdout.startswith("---\nlicense: mit\n")
