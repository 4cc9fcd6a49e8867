"""The plan foretells every byte: of the published models, and of every folder that is then written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import parse_local_safetensors_file_metadata

from hubtool.checkpoint.source import LocalSource
from hubtool.models import Component, Model, architecture_of, read_model
from hubtool.plan.plan import SHARD_NBYTES, Plan, make_plan
from hubtool.plan.recipe import load_recipe, recipe_names
from hubtool.sample import FLASH, PRO, SampleShape, published_layout
from hubtool.units import GB, usable_nbytes
from tests.checkpoints import read_tensors
from tests.fixtures import CommandLine, Conversions, Samples

FLASH_PARAMETERS = 284_334_567_511


def _model(folder: Path) -> Model:
    source = LocalSource(folder)
    return read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})


def _plan(model: Model, recipe: str, shard_nbytes: int = SHARD_NBYTES) -> Plan:
    return make_plan(model, load_recipe(recipe), shard_nbytes)


@pytest.fixture(scope="module")
def flash(published: Samples) -> Model:
    """V4-Flash."""
    return _model(published("flash"))


@pytest.fixture(scope="module")
def pro(published: Samples) -> Model:
    """V4-Pro."""
    return _model(published("pro"))


@pytest.fixture(scope="module")
def mini(sample: Samples) -> Model:
    """A model of few layers."""
    return _model(sample("mini"))


def test_flash_is_foretold_to_the_byte(published: Samples, hubtool: CommandLine) -> None:
    recipes = ["mixed_3_6", "mixed_2_6", "native"]
    arguments = [argument for recipe in recipes for argument in ("--recipe", recipe)]
    documents = hubtool("plan", published("flash"), *arguments, "--json").document
    three, two, native = documents
    assert [document["recipe"]["name"] for document in documents] == recipes
    assert all(document["parameters"] == FLASH_PARAMETERS for document in documents)

    assert (three["nbytes"], round(three["effective_bits"], 3)) == (135_346_422_876, 3.808)
    assert three["effective_bits"] == 8 * 135_346_422_876 / FLASH_PARAMETERS
    assert (three["shards"], three["tensors"]) == (28, 2610)
    assert three["dtypes"] == {
        "U32": 126_215_454_720,
        "BF16": 8_976_762_112,
        "F32": 135_589_724,
        "I64": 18_616_320,
    }
    assert (two["nbytes"], round(two["effective_bits"], 3), two["shards"]) == (106_355_393_628, 2.992, 23)

    # A repack that was published elsewhere holds the routing tables in half the bytes, as I32.
    tid2eid_nbytes = 3 * FLASH.vocab_size * FLASH.num_experts_per_tok * 8
    assert native["nbytes"] == 156_198_382_684
    assert native["nbytes"] - tid2eid_nbytes // 2 == 156_189_074_524

    dropped = {"names": "mtp.0.*", "tensors": 1575, "nbytes": 3_593_787_756}
    for document in documents:
        assert document["dropped"] == [dropped | {"reason": "multi-token prediction is not part of the MLX model"}]


def test_flash_quantization_names_every_module(flash: Model) -> None:
    plan = _plan(flash, "mixed_3_6")
    quantization = plan.quantization()
    assert quantization is not None
    top = {key: value for key, value in quantization.items() if not isinstance(value, dict)}
    assert top == {"group_size": 128, "bits": 4, "mode": "affine"}
    packed = {t.spec.name.removesuffix(".weight") for s in plan.shards for t in s.tensors if t.spec.dtype == "U32"}
    assert {key for key, value in quantization.items() if isinstance(value, dict)} == packed
    layers, compressed, indexed = 43, 41, 21
    assert len(packed) == 2 + layers * (5 + 3 + 3) + compressed * 2 + indexed * (2 + 2)
    sensitive = quantization["model.layers.7.ffn.switch_mlp.down_proj"]
    ordinary = quantization["model.layers.8.ffn.switch_mlp.down_proj"]
    assert (sensitive["bits"], ordinary["bits"]) == (6, 3)


def test_flash_shards_are_filled_in_order_up_to_5_gib(flash: Model) -> None:
    plan = _plan(flash, "mixed_3_6")
    assert [shard.file for shard in plan.shards] == [f"model-{n:05d}-of-00028.safetensors" for n in range(1, 29)]
    for shard, following in zip(plan.shards, plan.shards[1:], strict=False):
        assert shard.data_nbytes <= 5 << 30 < shard.data_nbytes + following.tensors[0].spec.nbytes
    assert plan.shards[-1].data_nbytes <= 5 << 30


def test_flash_components_are_shown_with_their_shares(published: Samples, hubtool: CommandLine) -> None:
    document = hubtool("plan", published("flash"), "--recipe", "mixed_3_6", "--json").document
    components = {component["name"]: component for component in document["components"]}
    others = (Component.MLP, Component.STATE_SPACE)
    assert list(components) == [component.value for component in Component if component not in others]
    assert components["routed experts"]["parameters"] == 277_025_390_592
    assert sum(component["parameters"] for component in components.values()) == FLASH_PARAMETERS
    assert sum(component["nbytes"] for component in components.values()) == document["nbytes"]
    text = hubtool("plan", published("flash"), "--recipe", "mixed_3_6").stdout
    for fact in ("135,346,422,876 bytes", "3.808 effective", "284,334,567,511", "2,610 in 28 shards", "mtp.0.*"):
        assert fact in text
    for component in components.values():
        assert f"{component['parameters']:,}" in text and f"{component['nbytes']:,}" in text


def test_machines_that_flash_fits(flash: Model) -> None:
    fits = _plan(flash, "mixed_3_6").machines()
    assert fits[128] is False  # 126.05 GiB: what its publisher found, too
    assert (fits[192], fits[512]) == (True, True)
    assert list(fits) == sorted(fits)
    assert (min(fits), max(fits)) == (16, 512)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("flash", FLASH), ("pro", PRO)])
def test_published_models_repack_to_what_their_layout_comes_to(
    name: str, shape: SampleShape, request: pytest.FixtureRequest
) -> None:
    """Counted from the published layout: FP8 block scales are repeated for every 32 columns of every row."""
    native = _plan(request.getfixturevalue(name), "native")
    layout = {spec.name: spec for spec in published_layout(shape) if not spec.name.startswith("mtp.")}
    nbytes = parameters = 0
    for spec in layout.values():
        if spec.name.endswith(".scale"):
            weight = layout[spec.name.removesuffix("scale") + "weight"]
            nbytes += spec.nbytes if weight.dtype == "I8" else weight.nbytes // 32
        else:
            nbytes += spec.nbytes
            parameters += spec.size * (2 if spec.dtype == "I8" else 1)
    assert (native.nbytes, native.parameters) == (nbytes, parameters)


@pytest.mark.parametrize("recipe", ["mixed_3_6", "mixed_2_6", "compact_4bit"])
def test_pro_plans(recipe: str, pro: Model) -> None:
    plan = _plan(pro, recipe)
    assert plan.nbytes == sum(plan.dtypes.values()) == sum(share.nbytes for share in plan.shares)
    assert plan.effective_bits == 8 * plan.nbytes / plan.parameters
    assert 2 < plan.effective_bits < 5
    assert len(plan.shards) >= math.ceil(plan.nbytes / SHARD_NBYTES)
    assert all(shard.data_nbytes <= SHARD_NBYTES or len(shard.tensors) == 1 for shard in plan.shards)
    assert plan.disk_nbytes == plan.nbytes + sum(len(shard.header) for shard in plan.shards)


def test_recipes_are_compared_in_a_table(published: Samples, hubtool: CommandLine) -> None:
    text = hubtool("plan", published("flash"), "--recipe", "mixed_3_6", "--recipe", "mixed_2_6").stdout
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("mixed")}
    assert rows["mixed_3_6"][1:3] == ["3.808", "135,346,422,876"]
    assert rows["mixed_2_6"][1:3] == ["2.992", "106,355,393,628"]


def test_more_jobs_take_more_memory(flash: Model) -> None:
    plan = _plan(flash, "mixed_3_6")
    peaks = [plan.peak_nbytes(jobs) for jobs in (1, 2, 8)]
    assert peaks == sorted(set(peaks))
    assert peaks[-1] < 4 * GB


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("name", ["tiny", "other"])
def test_planned_tensors_are_those_that_are_written(name: str, recipe: str, converted: Conversions) -> None:
    """Names, dtypes, shapes, offsets and bytes, as the stock client reads them from the files."""
    made = converted(name, recipe)
    files = {path.name: path.stat().st_size for path in made.folder.glob("*.safetensors")}
    assert files == {shard.file: shard.nbytes for shard in made.plan.shards}
    for shard in made.plan.shards:
        written = parse_local_safetensors_file_metadata(made.folder / shard.file)
        start = files[shard.file] - max(tensor.data_offsets[1] for tensor in written.tensors.values())
        assert written.metadata == {"format": "mlx"}
        assert {
            name: (tensor.dtype, tuple(tensor.shape), start + tensor.data_offsets[0], start + tensor.data_offsets[1])
            for name, tensor in written.tensors.items()
        } == {
            tensor.spec.name: (
                tensor.spec.dtype,
                tensor.spec.shape,
                tensor.offset,
                tensor.offset + tensor.spec.nbytes,
            )
            for tensor in shard.tensors
        }
    assert sum(len(tensor.data) for tensor in read_tensors(made.folder).values()) == made.plan.nbytes


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("name", ["tiny", "other"])
def test_planned_figures_are_those_of_the_command_and_of_the_folder(
    name: str, recipe: str, converted: Conversions, hubtool: CommandLine
) -> None:
    made = converted(name, recipe)
    foretold = hubtool("plan", made.source, "--recipe", recipe, "--json").document
    measured = hubtool("inspect", made.folder, "--json")
    assert measured.code == 0, measured.stdout
    for key in ("nbytes", "effective_bits", "parameters", "shards", "tensors", "dtypes"):
        assert foretold[key] == measured.document[key], key
    index = json.loads((made.folder / "model.safetensors.index.json").read_bytes())
    assert index["metadata"] == {"total_size": foretold["nbytes"], "total_parameters": foretold["parameters"]}


@pytest.mark.parametrize("name", ["tiny", "other", "pro_like", "r0731_like", "base_like"])
def test_parameters_do_not_depend_on_the_recipe(name: str, sample: Samples, hubtool: CommandLine) -> None:
    arguments = [argument for recipe in recipe_names() for argument in ("--recipe", recipe)]
    documents: list[dict[str, Any]] = hubtool("plan", sample(name), *arguments, "--json").document
    assert len({document["parameters"] for document in documents}) == 1
    bits = {document["recipe"]["name"]: document["effective_bits"] for document in documents}
    assert bits["mixed_2_6"] < bits["mixed_3_6"] < bits["mixed_4_6"] < bits["bf16"] < bits["float32"]
    assert 32 <= bits["float32"] < 33


def test_shards_are_filled_greedily(mini: Model) -> None:
    whole = _plan(mini, "native")
    assert len(whole.shards) == 1
    largest = max(tensor.spec.nbytes for tensor in whole.shards[0].tensors)
    plan = _plan(mini, "native", largest)
    assert len(plan.shards) > 2
    assert [t.spec for shard in plan.shards for t in shard.tensors] == [t.spec for t in whole.shards[0].tensors]
    for shard, following in zip(plan.shards, plan.shards[1:], strict=False):
        assert shard.data_nbytes <= largest < shard.data_nbytes + following.tensors[0].spec.nbytes


def test_tensor_larger_than_a_shard_has_one_for_itself(mini: Model) -> None:
    plan = _plan(mini, "native", 1)
    assert all(len(shard.tensors) == 1 for shard in plan.shards)


def test_digest_tells_plans_apart(mini: Model, sample: Samples) -> None:
    digests = [_plan(mini, recipe).digest for recipe in recipe_names()]
    assert len(set(digests)) == len(digests)
    assert digests == [_plan(_model(sample("mini")), recipe).digest for recipe in recipe_names()]
    assert _plan(mini, "native", 1 << 20).digest not in digests


def test_plan_writes_nothing(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hubtool("plan", sample("mini"), "--recipe", "mixed_3_6").code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "size", "bits"),
    [("mxfp4_3", None, 3.793), ("mxfp4_3_mac192", 192, 4.156), ("mxfp4_3_mac128", 128, 2.773)],
)
def test_recipes_for_fp4_experts_fill_what_they_are_made_for(
    recipe: str, size: int | None, bits: float, flash: Model
) -> None:
    plan = _plan(flash, recipe)
    cache = architecture_of(flash.config).cache_nbytes(flash.config, 32 * 1024, 2)
    assert cache is not None
    room = _plan(flash, "mixed_3_6").nbytes if size is None else usable_nbytes(size) - cache
    assert 0.99 < plan.nbytes / room <= 1
    assert round(plan.effective_bits, 3) == bits
    kept = [
        step for step in plan.steps if step.how == "repack" and step.parameter.component is Component.ROUTED_EXPERTS
    ]
    assert bool(kept) == (recipe != "mxfp4_3_mac128")
