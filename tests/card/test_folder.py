"""The card: metadata that the Hub takes, and the figures of the record."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hubtool.hub.rules import check_metadata
from hubtool.plan.recipe import recipe_names
from tests.checkpoints import copied, file_bytes
from tests.fixtures import CommandLine, Conversions, Samples


@pytest.mark.parametrize("recipe", recipe_names())
def test_metadata_is_what_the_hub_takes(recipe: str, converted: Conversions) -> None:
    text = (converted("tiny", recipe).folder / "README.md").read_text()
    assert check_metadata(text) == []
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data["license"] == "mit"
    assert data["library_name"] == "mlx"
    assert data["pipeline_tag"] == "text-generation"
    assert data["base_model"] == "someone/DeepSeek-V4-sample"
    assert data["base_model_relation"] == "quantized"
    assert "mlx" in data["tags"]


def test_card_shows_the_figures_of_the_folder(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    text = (made.folder / "README.md").read_text()
    for fact in (
        f"{made.plan.nbytes:,}",
        f"{made.plan.effective_bits:.3f}",
        "mixed",
        "affine",
        "DeepseekV4ForCausalLM",
    ):
        assert fact in text


def test_card_of_an_unknown_source_claims_no_base_model(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    assert hubtool("convert", sample("mini"), "--recipe", "native", "--out", tmp_path / "out").code == 0
    data = ModelCard((tmp_path / "out" / "README.md").read_text()).data
    assert data.get("base_model") is None and data.get("base_model_relation") is None


def test_lost_card_is_made_again(converted: Conversions, hubtool: CommandLine, tmp_path: Path) -> None:
    made = converted("tiny", "mixed_3_6")
    folder = copied(made.folder, tmp_path / "folder")
    (folder / "README.md").unlink()
    assert hubtool("card", folder).code == 0
    assert file_bytes(folder)["README.md"] == file_bytes(made.folder)["README.md"]
