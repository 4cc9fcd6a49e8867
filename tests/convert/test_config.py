"""The finished folder: every file of it, and a source whose license is not known."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from mlx_lm.utils import load_tokenizer as load_mlx_tokenizer

from hubtool.plan.recipe import recipe_names
from tests.checkpoints import copied, edit_json, read_tensors
from tests.fixtures import CommandLine, Conversions, Refusal, Samples

RUNTIME = Path(__file__).resolve().parents[2] / "hubtool" / "runtime"
CARRIED = {"LICENSE", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
ASK = "ask the model's publisher; hubtool publishes nothing without a license"


@pytest.mark.parametrize("recipe", recipe_names())
def test_folder_holds_these_files(recipe: str, converted: Conversions) -> None:
    made = converted("tiny", recipe)
    assert {path.name for path in made.folder.iterdir() if not path.name.startswith(".")} == CARRIED | {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "deepseek_v4.py",
        "hubtool.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "provenance.intoto.json",
    }


def test_files_of_the_source_are_carried_unchanged(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    for name in CARRIED:
        assert (made.folder / name).read_bytes() == (made.source / name).read_bytes()


def test_runtime_travels_with_the_weights(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    for name in ("deepseek_v4.py", "chat_template.jinja"):
        assert (made.folder / name).read_bytes() == (RUNTIME / name).read_bytes()


@pytest.mark.parametrize("recipe", recipe_names())
def test_config_is_the_sources_with_mlx_quantization(recipe: str, converted: Conversions) -> None:
    made = converted("tiny", recipe)
    config = json.loads((made.folder / "config.json").read_bytes())
    published = json.loads((made.source / "config.json").read_bytes())
    quantization = config.pop("quantization", None)
    assert config.pop("quantization_config", None) == quantization
    assert config.pop("model_file") == "deepseek_v4.py"
    del published["quantization_config"]
    assert config == published
    if recipe in ("bf16", "float32"):
        assert quantization is None
        return
    assert quantization is not None
    entries = {module: entry for module, entry in quantization.items() if isinstance(entry, dict)}
    tensors = read_tensors(made.folder)
    assert set(entries) == {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    assert all(set(entry) == {"group_size", "bits", "mode"} for entry in entries.values())
    assert set(quantization) - set(entries) == {"group_size", "bits", "mode"}


def test_top_of_the_quantization_is_the_largest_part(published: Samples, converted: Conversions) -> None:
    config = json.loads((converted("tiny", "native").folder / "config.json").read_bytes())
    top = {key: value for key, value in config["quantization"].items() if not isinstance(value, dict)}
    assert top == {"group_size": 32, "bits": 4, "mode": "mxfp4"}


@pytest.mark.parametrize("recipe", recipe_names())
def test_index_names_every_tensor(recipe: str, converted: Conversions) -> None:
    made = converted("tiny", recipe)
    index = json.loads((made.folder / "model.safetensors.index.json").read_bytes())
    assert index["weight_map"] == {name: tensor.file for name, tensor in read_tensors(made.folder).items()}


@pytest.mark.parametrize("recipe", ["mixed_3_6", "native", "compact_4bit", "float32"])
def test_stock_mlx_lm_loads_the_folder(recipe: str, converted: Conversions) -> None:
    """Strictly: every tensor has its module, and every module its tensors."""
    made = converted("tiny", recipe)
    model, config = load_model(made.folder, lazy=True, strict=True, model_config={}, trust_remote_code=True)
    tokenizer = load_mlx_tokenizer(made.folder)
    logits = model(mx.array([tokenizer.encode("A sample of text")]))
    assert logits.shape[-1] == config["vocab_size"]
    assert np.isfinite(np.array(logits.astype(mx.float32))).all()


@pytest.fixture
def source(sample: Samples, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return copied(sample("mini"), tmp_path / "source")


def test_source_without_a_card_is_refused(source: Path, assert_refused: Refusal) -> None:
    (source / "README.md").unlink()
    assert_refused(
        source,
        "source: source without a license: found no README.md, "
        f"expected a README.md whose front matter names the license; {ASK}",
        planned=True,
    )


@pytest.mark.parametrize(
    "card",
    ["# A model\n", "---\nlanguage: en\n---\n# A model\n", "---\nlicense:\n---\n", "license: mit\n"],
    ids=["no front matter", "no license", "empty license", "license in the text"],
)
def test_source_without_a_license_is_refused(card: str, source: Path, assert_refused: Refusal) -> None:
    (source / "README.md").write_text(card)
    assert_refused(
        source,
        "README.md: source without a license: found front matter without `license`, expected `license: ...`; " + ASK,
        planned=True,
    )


@pytest.mark.parametrize("front", ["license: [mit", "- license\n- mit", 'license: "mit'])
def test_card_whose_front_matter_cannot_be_read_is_refused(
    front: str, source: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    (source / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    outcome = hubtool("convert", source, "--recipe", "native", "--out", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.stderr.startswith("Error: README.md: front matter cannot be read: found ")
    assert outcome.stderr.endswith(f"; {ASK}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("language", "found"), [("[en, no]", "False"), ("no", "False"), ("[en, 7]", "7")])
def test_language_that_yaml_reads_as_no_text_is_refused(
    language: str, found: str, source: Path, assert_refused: Refusal
) -> None:
    (source / "README.md").write_text(f"---\nlicense: mit\nlanguage: {language}\n---\n")
    assert_refused(
        source,
        f"README.md: language: front matter that is not text: found {found}, expected a string or a list of strings; "
        "YAML reads no, yes and numbers as something else: put it in quotes in the source's card",
        planned=True,
    )


def test_metadata_that_the_hub_would_refuse_is_refused_before_the_work(source: Path, assert_refused: Refusal) -> None:
    (source / "README.md").write_text("---\nlicense: mine\n---\n")
    assert_refused(
        source, re.compile(r"README.md of the source: the Hub would refuse the card's metadata: .*"), planned=True
    )


def test_license_and_language_are_carried_and_nothing_else(source: Path, hubtool: CommandLine, tmp_path: Path) -> None:
    (source / "README.md").write_text(
        "---\nlicense: other\nlicense_name: deepseek\nlicense_link: LICENSE\nlanguage:\n- en\n- zh\n"
        "new_version: org/newer\nextra_gated_prompt: Pay first\nmodel-index:\n- name: x\n  results: []\n---\n"
    )
    assert hubtool("convert", source, "--recipe", "native", "--out", tmp_path / "out").code == 0
    record = json.loads((tmp_path / "out" / "hubtool.json").read_bytes())
    assert record["source"]["metadata"] == {
        "license": "other",
        "license_name": "deepseek",
        "license_link": "LICENSE",
        "language": ["en", "zh"],
    }


def test_only_known_files_are_carried(source: Path, hubtool: CommandLine, tmp_path: Path) -> None:
    for name in ("secrets.env", ".hidden", "modeling.py", "NOTICE.txt", "vocab.json"):
        (source / name).write_text("{}")
    (source / "tokenizer").mkdir()
    assert hubtool("convert", source, "--recipe", "native", "--out", tmp_path / "out").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= CARRIED | {"NOTICE.txt", "vocab.json"}
    assert not names & {"secrets.env", ".hidden", "modeling.py", "tokenizer"}


def test_published_model_file_does_not_displace_ours(source: Path, hubtool: CommandLine, tmp_path: Path) -> None:
    edit_json(source / "config.json", lambda config: config.update(model_file="evil.py"))
    assert hubtool("convert", source, "--recipe", "native", "--out", tmp_path / "out").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["model_file"] == "deepseek_v4.py"
