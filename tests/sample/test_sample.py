"""The sample is a DeepSeek-V4 checkpoint as published: layout, formats, tokenizer, and bytes that never change."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from hubtool.checkpoint.tensors import StoredTensor, TensorSpec, read_header
from hubtool.errors import OutputError
from hubtool.sample import (
    BASE_LIKE,
    FLASH,
    FLASH_0731,
    FLASH_BASE,
    OTHER,
    PRO,
    PRO_LIKE,
    R0731_LIKE,
    SIZES,
    SMALL,
    TINY,
    SampleShape,
    published_config,
    published_layout,
    published_shards,
    tokenizer_files,
    write_sample,
)
from hubtool.sample.weights import RandomWeights
from hubtool.units import GB, MB
from tests.checkpoints import write_sparse_checkpoint

WRITTEN_SHAPES = {
    "tiny": TINY,
    "other": OTHER,
    "pro_like": PRO_LIKE,
    "r0731_like": R0731_LIKE,
    "base_like": BASE_LIKE,
}


@pytest.fixture(scope="module", params=WRITTEN_SHAPES)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleShape]:
    """A written checkpoint and its shape."""
    shape = WRITTEN_SHAPES[request.param]
    return write_sample(tmp_path_factory.mktemp("sample") / request.param, shape), shape


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sample of seed 0."""
    return write_sample(tmp_path_factory.mktemp("sample") / "tiny")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the folder's shards, in the order of the files."""
    headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    return {tensor.spec.name: tensor for header in headers for tensor in header.tensors}


def stored_bytes(folder: Path, tensor: StoredTensor) -> NDArray[np.uint8]:
    """A tensor's bytes in its shape, the last side in bytes."""
    raw = np.fromfile(folder / tensor.file, np.uint8, tensor.nbytes, offset=tensor.offset)
    return raw.reshape(*tensor.spec.shape[:-1], -1)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def e8m0(raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """2**(b - 127) of each byte."""
    return np.ldexp(1.0, raw.astype(np.int64) - 127)


def e4m3(byte: int) -> float:
    """The value of an e4m3 byte: sign, four exponent bits with bias 7, three mantissa bits."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    magnitude = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude


E4M3 = np.array([e4m3(byte) for byte in range(256)])
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decoded(folder: Path, tensors: dict[str, StoredTensor], prefix: str) -> NDArray[np.float64]:
    """A quantized linear as numbers."""
    weight, scale = tensors[f"{prefix}.weight"], e8m0(stored_bytes(folder, tensors[f"{prefix}.scale"]))
    raw = stored_bytes(folder, weight)
    if weight.spec.dtype == "I8":
        values = E2M1[np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)]
        return values * scale.repeat(32, axis=1)
    rows, columns = raw.shape
    return E4M3[raw] * scale.repeat(128, axis=0)[:rows].repeat(128, axis=1)[:, :columns]


def fraction_of_experts(shape: SampleShape) -> float:
    """The routed experts' share of a shape's bytes."""
    layout = published_layout(shape)
    experts = sum(spec.nbytes for spec in layout if ".ffn.experts." in spec.name)
    return experts / sum(spec.nbytes for spec in layout)


@pytest.mark.parametrize(
    ("shape", "tensors", "nbytes", "shards"),
    [
        pytest.param(FLASH, 69_187, 159_609_485_896, 46, id="Flash"),
        pytest.param(FLASH_0731, 72_317, 166_878_536_440, 48, id="Flash-0731"),
        pytest.param(PRO, 145_116, 864_704_792_696, 64, id="Pro"),
    ],
)
def test_layout_has_the_published_tensors_and_bytes(shape: SampleShape, tensors: int, nbytes: int, shards: int) -> None:
    layout = published_layout(shape)
    assert len({spec.name for spec in layout}) == len(layout) == tensors
    assert sum(spec.nbytes for spec in layout) == nbytes
    assert len(published_shards(shape)) == shards


def test_layout_of_flash_has_the_published_dtypes() -> None:
    layout = published_layout(FLASH)
    nbytes: Counter[str] = Counter()
    for spec in layout:
        nbytes[spec.dtype] += spec.nbytes
    assert nbytes == {
        "I8": 141_733_920_768,
        "F8_E8M0": 8_858_737_664,
        "F8_E4M3": 6_023_020_544,
        "BF16": 2_830_518_528,
        "F32": 144_672_072,
        "I64": 18_616_320,
    }
    assert Counter(spec.dtype for spec in layout) == {
        "I8": 33_792,
        "F8_E8M0": 34_167,
        "F8_E4M3": 375,
        "BF16": 433,
        "F32": 417,
        "I64": 3,
    }


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("embed.weight", "BF16", (129280, 4096)),
        TensorSpec("hc_head_fn", "F32", (4, 16384)),
        TensorSpec("layers.0.ffn.gate.tid2eid", "I64", (129280, 6)),
        TensorSpec("layers.3.ffn.gate.bias", "F32", (256,)),
        TensorSpec("layers.42.attn.wo_b.weight", "F8_E4M3", (4096, 8192)),
        TensorSpec("layers.42.attn.wo_b.scale", "F8_E8M0", (32, 64)),
        TensorSpec("layers.2.attn.compressor.ape", "F32", (4, 1024)),
        TensorSpec("layers.3.attn.compressor.ape", "F32", (128, 512)),
        TensorSpec("layers.2.attn.indexer.compressor.wkv.weight", "BF16", (256, 4096)),
        TensorSpec("layers.7.ffn.experts.255.w2.weight", "I8", (4096, 1024)),
        TensorSpec("layers.7.ffn.experts.255.w2.scale", "F8_E8M0", (4096, 64)),
        TensorSpec("layers.7.ffn.shared_experts.w1.scale", "F8_E8M0", (16, 32)),
        TensorSpec("layers.7.hc_attn_fn", "F32", (24, 16384)),
        TensorSpec("mtp.0.e_proj.weight", "F8_E4M3", (4096, 4096)),
    ],
    ids=lambda spec: spec.name,
)
def test_layout_of_flash_has_the_published_shape_of(spec: TensorSpec) -> None:
    assert spec in published_layout(FLASH)


def test_layout_of_flash_base_differs_from_flash_in_the_experts_only() -> None:
    flash, base = ({spec.name: spec for spec in published_layout(shape)} for shape in (FLASH, FLASH_BASE))
    assert flash.keys() == base.keys()
    differing = [name for name in flash if flash[name] != base[name]]
    assert all(".ffn.experts." in name for name in differing)
    assert base["layers.5.ffn.experts.9.w1.weight"].dtype == "F8_E4M3"
    assert base["layers.5.ffn.experts.9.w1.scale"].shape == (16, 32)


def test_config_of_flash_is_the_published_one() -> None:
    config = published_config(FLASH)
    ratios = config["compress_ratios"]
    assert isinstance(ratios, list)
    assert (len(ratios), ratios[:4], ratios[-2:]) == (44, [0, 0, 4, 128], [4, 0])
    assert config["rope_scaling"] == {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    }
    assert len(config) == 48
    assert not any(key.startswith("dspark_") for key in config)


def test_config_of_0731_announces_its_drafter() -> None:
    config = published_config(FLASH_0731)
    ratios = config["compress_ratios"]
    assert isinstance(ratios, list)
    assert (len(ratios), ratios[-4:], config["num_nextn_predict_layers"]) == (46, [4, 0, 0, 0], 1)
    assert {key: value for key, value in config.items() if key.startswith("dspark_")} == {
        "dspark_block_size": 5,
        "dspark_markov_rank": 256,
        "dspark_noise_token_id": 128799,
        "dspark_target_layer_ids": [40, 41, 42],
    }


def test_written_headers_index_and_config_agree_with_the_layout(sample: tuple[Path, SampleShape]) -> None:
    folder, shape = sample
    tensors = stored_tensors(folder)
    assert [tensor.spec for tensor in tensors.values()] == published_layout(shape)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: tensor.file for name, tensor in tensors.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert json.loads((folder / "config.json").read_text()) == published_config(shape)


def test_every_tensor_begins_at_a_multiple_of_its_element(sample: tuple[Path, SampleShape]) -> None:
    folder, _ = sample
    for tensor in stored_tensors(folder).values():
        assert tensor.offset % (tensor.nbytes // tensor.spec.size) == 0, tensor.spec.name


def test_samples_hold_no_nan(sample: tuple[Path, SampleShape]) -> None:
    folder, _ = sample
    for tensor in stored_tensors(folder).values():
        raw = stored_bytes(folder, tensor)
        match tensor.spec.dtype:
            case "F8_E4M3":
                assert not np.any(raw & 0x7F == 0x7F), tensor.spec.name
            case "F8_E8M0":
                assert raw.max() < 255, tensor.spec.name
            case "F32":
                assert np.isfinite(raw.view("<f4")).all(), tensor.spec.name
            case "BF16":
                assert not np.any(raw.view("<u2") & 0x7F80 == 0x7F80), tensor.spec.name


def test_decoded_linears_keep_the_variance_of_what_passes_through(sample: tuple[Path, SampleShape]) -> None:
    folder, _ = sample
    tensors = stored_tensors(folder)
    linears = [name.removesuffix(".scale") for name in tensors if name.endswith(".scale")]
    gains = []
    for prefix in linears:
        weight = decoded(folder, tensors, prefix)
        gains.append(weight.std() * weight.shape[1] ** 0.5)
        assert 0.25 < gains[-1] < 2.5, prefix
        assert abs(weight.mean()) < 0.2 * weight.std(), prefix
    assert np.sqrt(np.mean(np.square(gains))) == pytest.approx(1, abs=0.2)


def test_fp4_experts_use_all_sixteen_codes_and_several_exponents(tiny: Path) -> None:
    tensors = stored_tensors(tiny)
    packed = stored_bytes(tiny, tensors["layers.5.ffn.experts.3.w2.weight"])
    assert {*np.unique(packed & 15), *np.unique(packed >> 4)} == set(range(16))
    assert len(np.unique(stored_bytes(tiny, tensors["layers.5.ffn.experts.3.w2.scale"]))) == 3


def test_routing_table_names_different_experts_for_each_token(sample: tuple[Path, SampleShape]) -> None:
    folder, shape = sample
    tables = [tensor for name, tensor in stored_tensors(folder).items() if name.endswith("tid2eid")]
    assert len(tables) == shape.num_hash_layers
    for tensor in tables:
        experts = np.sort(stored_bytes(folder, tensor).view("<i8"), axis=1)
        assert np.all(np.diff(experts, axis=1) > 0)
        assert set(np.unique(experts)) == set(range(shape.n_routed_experts))


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_sizes_have_every_element_of_the_architecture(shape: SampleShape) -> None:
    names = {spec.name for spec in published_layout(shape)}
    assert set(shape.compress_ratios[: shape.num_hidden_layers]) == {0, 4, 128}
    assert "layers.0.ffn.gate.tid2eid" in names
    assert f"layers.{shape.num_hash_layers}.ffn.gate.bias" in names
    assert {"layers.2.attn.indexer.wq_b.weight", "layers.3.attn.compressor.ape", "mtp.0.e_proj.scale"} <= names
    assert {"layers.1.ffn.shared_experts.w1.weight", "layers.1.hc_ffn_scale", "hc_head_fn"} <= names
    assert shape.qk_rope_head_dim < min(shape.head_dim, shape.index_head_dim)
    assert len(published_shards(shape)) > 2


@pytest.mark.parametrize("shape", [*WRITTEN_SHAPES.values(), SMALL], ids=[*WRITTEN_SHAPES, "small"])
def test_rows_of_every_matrix_divide_into_groups_of_128(shape: SampleShape) -> None:
    for spec in published_layout(shape):
        if spec.name.endswith(".weight") and len(spec.shape) == 2 and "_head." not in spec.name:
            columns = spec.shape[1] * (2 if spec.dtype == "I8" else 1)
            assert columns % 128 == 0, spec


def test_tiny_has_an_fp8_linear_that_does_not_fill_its_last_block() -> None:
    specs = {spec.name: spec for spec in published_layout(TINY)}
    assert specs["layers.0.attn.wkv.weight"].shape == (64, 256)
    assert specs["layers.0.attn.wkv.scale"].shape == (1, 2)


def test_tiny_stays_tiny(tiny: Path) -> None:
    assert sum(path.stat().st_size for path in tiny.iterdir()) < 40 * MB


def test_small_has_flash_proportions_in_one_and_a_half_gigabytes() -> None:
    nbytes = sum(spec.nbytes for spec in published_layout(SMALL))
    assert 1.4 * GB < nbytes < 1.6 * GB
    assert fraction_of_experts(SMALL) == pytest.approx(fraction_of_experts(FLASH), abs=0.02)


def test_bytes_are_the_same_on_every_machine(tiny: Path) -> None:
    whole = hashlib.sha256()
    for name, digest in digests(tiny).items():
        whole.update(f"{name} {digest}\n".encode())
    assert whole.hexdigest() == "03ad80518357d16d664e47a58a879ef22069910429fdee52d303aafdd49d679a"


def test_seed_decides_the_weights_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    other = digests(write_sample(tmp_path / "other", seed=1))
    same = {name for name, digest in digests(tiny).items() if other[name] == digest}
    assert same == {name for name in other if not name.startswith("model-")}


def test_a_tensor_depends_on_its_name_alone(tiny: Path) -> None:
    tensors = stored_tensors(tiny)
    random = RandomWeights({name: tensor.spec for name, tensor in tensors.items()}, TINY.n_routed_experts, seed=0)
    for tensor in [*tensors.values()][::-37]:
        written = stored_bytes(tiny, tensor).reshape(-1)
        assert np.array_equal(np.concatenate([*random.chunks(tensor.spec)]), written), tensor.spec.name


def test_two_tensors_of_one_shape_differ(tiny: Path) -> None:
    raw = [stored_bytes(tiny, tensor).tobytes() for tensor in stored_tensors(tiny).values() if tensor.nbytes >= 64]
    assert len(set(raw)) == len(raw)


def test_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        OutputError, match=r"the folder for the sample is not empty: found other files.*name another folder"
    ):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert (write_sample(folder) / "config.json").exists()


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a vocabulary of 100 has no room"):
        write_sample(tmp_path / "sample", replace(TINY, vocab_size=100))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"does not fit on the disk: found .* free, expected .* TB; free some space"):
        write_sample(tmp_path / "sample", replace(TINY, vocab_size=1 << 40))
    assert list(tmp_path.iterdir()) == []


def test_license_is_named_in_the_front_matter_and_lies_beside(tiny: Path) -> None:
    assert "license: mit" in (tiny / "README.md").read_text().split("---")[1]
    assert "weights in this folder are random" in (tiny / "README.md").read_text()
    assert (tiny / "LICENSE").read_text().startswith("MIT License")


def test_transformers_reads_the_config(sample: tuple[Path, SampleShape]) -> None:
    folder, shape = sample
    config = AutoConfig.from_pretrained(folder)
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    assert config.layer_types == [kinds[ratio] for ratio in shape.compress_ratios[: shape.num_hidden_layers]]
    assert config.mlp_layer_types.count("hash_moe") == shape.num_hash_layers
    assert config.qk_rope_head_dim == shape.qk_rope_head_dim
    assert config.rope_parameters["compress"]["rope_theta"] == 160000


TOKENIZER = Tokenizer.from_str(json.dumps(tokenizer_files(TINY.vocab_size)["tokenizer.json"]))
CHAT = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>The number of 2 + 2? 北京\n<｜Assistant｜><think>so</think>｜DSML｜"


def test_tokenizer_has_exactly_the_ids_of_the_vocabulary(sample: tuple[Path, SampleShape]) -> None:
    folder, shape = sample
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert sorted(tokenizer.get_vocab().values()) == list(range(shape.vocab_size))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert tokenizer.convert_tokens_to_ids("<｜▁pad▁｜>") == 2
    assert tokenizer.chat_template is None


def test_tokenizer_keeps_text_and_gives_marks_and_words_one_token(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer.encode(CHAT)
    assert tokenizer.decode(ids) == CHAT
    pieces = tokenizer.convert_ids_to_tokens(ids)
    marks = {"<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"}
    assert marks | {"Ġof", "Ġnumber"} <= set(pieces)
    assert tokenizer.encode(" the") == [tokenizer.convert_tokens_to_ids("Ġthe")]


def test_mlx_lm_streams_what_the_tokenizer_encodes(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    detokenizer = tokenizer.detokenizer
    for token in tokenizer.encode(CHAT):
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text == CHAT
    assert tokenizer.eos_token_ids == {1}
    assert tokenizer.has_thinking


@given(text=st.text())
def test_tokenizer_loses_no_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_sparse_flash_has_real_headers_and_full_size(tmp_path: Path) -> None:
    folder = write_sparse_checkpoint(tmp_path / "flash", FLASH)
    shards = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in shards][::45] == [
        "model-00001-of-00046.safetensors",
        "model-00046-of-00046.safetensors",
    ]
    headers = [read_header(path) for path in shards]
    assert sum(header.data_nbytes for header in headers) == 159_609_485_896
    assert sum(path.stat().st_blocks * 512 for path in shards) < 20 * MB
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 159_609_485_896
    assert len(index["weight_map"]) == 69_187
