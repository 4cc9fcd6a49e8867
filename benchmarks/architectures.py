"""Tries every module of mlx-lm's models folder with a small configuration of its kind: docs/architectures.md.

    python -m benchmarks.architectures > docs/architectures.md

A configuration has a small value for each field that a class asks for, by the field's name. The tensors are those that
the class's own parameters name, with routed experts one by one as they are published; where the class does not take
these, stacked as it names them itself.
"""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx_lm
import mlx_lm.models

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.errors import HubtoolError
from hubtool.models import Model, generic
from hubtool.models.mlx_class import build
from hubtool.plan.plan import make_plan
from hubtool.plan.recipe import load_recipe
from hubtool.sample import PUBLISHED

SIDES: Mapping[str, Any] = {
    "hidden_size|d_model|n_embd|dim|model_dim|model_dims|emb_dim": 256,
    "vocab_size": 1024,
    "num_hidden_layers|n_layers?|num_layers|depth|num_transformer_layers": 4,
    "num_attention_heads|n_heads?|num_heads|num_query_heads": 4,
    "num_key_value_heads|n_kv_heads|kv_n_heads|multi_query_group_num|num_attention_groups": 2,
    "head_dim|head_size|kv_channels|attention_head_dim|hidden_size_per_head|v_head_dim|qk_nope_head_dim": 64,
    "qk_rope_head_dim|rotary_dim|kv_lora_rank": 32,
    "q_lora_rank": 64,
    "\\w*intermediate_size|n_inner|ffn_dim|ffn_hidden_size|mlp_dim": 256,
    "num_experts_per_\\w+|moe_top_?k|num_selected_experts|topk_group|n_group|top_k|moe_k": 2,
    "num_experts|n_routed_experts|num_local_experts|moe_num_experts": 4,
    "n_shared_experts|num_shared_experts": 1,
    "\\w*eps|\\w*epsilon": 1e-5,
    "rope_theta|\\w*_theta|rope_base": 10000.0,
    "max_position_embeddings|max_seq_len|n_positions|n_ctx|context_length": 2048,
    "sliding_window|window_size|attention_window_size": 128,
    "tie_word_embeddings|tie_embeddings": False,
    "partial_rotary_factor|\\w*_factor|\\w*_scale|\\w*_multiplier": 1.0,
    "rope_scaling": None,
    "layer_types|layers_block_type": ["full_attention"] * 4,
    "num_dense_layers|num_kv_shared_layers": 0,
    "mlp_only_layers": [],
    "first_k_dense_replace|moe_layer_start_index": 1,
    "decoder_sparse_step|moe_layer_freq|moe_layer_interval|moe_layer_period|interleave_moe_layer_step": 1,
}
"""A small value for each field that classes ask for, by the name."""

SKIPPED = {"__init__", "cache", "base", "activations", "switch_layers", "rope_utils", "pipeline", "ssm", "mla"}
SKIPPED |= {"gated_delta", "bitlinear_layers", "gear"}
"""Modules that are no models."""


PAGE = """# Architectures

<!-- written by `python -m benchmarks.architectures` -->

DeepSeek-V4 is read by hand; every other architecture as mlx-lm's own class says. Each module of mlx-lm {version} was
tried with a small configuration of its kind: {planned} of {tried} are planned. Piecewise: each piece reads what its
rows need. Whole: some parameters are evaluated at once, and the plan's memory counts them. A class that does not take a
configuration of such small values may work with a published one: `hubtool plan` says so before anything is fetched.
"""


def main() -> None:
    """Print the page."""
    with contextlib.redirect_stdout(sys.stderr):  # some modules print when they are imported
        rows = [(name, *_try(name)) for name in sorted(_names())]
    counts = Counter(how for _, how, _ in rows)
    planned = sum(count for how, count in counts.items() if how.startswith("planned"))
    print(PAGE.format(version=mlx_lm.__version__, planned=planned, tried=len(rows)))
    print("| module | outcome | |\n| --- | --- | --- |")
    for name, how, why in rows:
        print(f"| `{name}` | {how} | {why.replace('|', ' ')} |")


def _names() -> Iterator[str]:
    for path in Path(mlx_lm.models.__path__[0]).glob("*.py"):
        if path.stem not in SKIPPED:
            yield path.stem


def _try(name: str) -> tuple[str, str]:
    try:
        if name in PUBLISHED:
            model, how = _sampled(name)
        else:
            module = importlib.import_module(f"mlx_lm.models.{name}")
            model, how = _planned(_configuration(name, module))
    except SystemExit:
        return "refused", "the class needs a package that is not installed"
    except HubtoolError as error:
        why = re.sub(r"\s+", " ", f"{error.what}: {error.found}")[:150]
        return ("no small configuration" if "configuration" in error.what else "refused"), why
    whole = [each for each in model.parameters if each.program and each.program.whole]
    if whole:
        steps = sorted({each.program.stuck for each in whole if each.program})
        return "planned, whole in part", f"{len(whole)} parameters, through {', '.join(steps)}; {how}"
    traced = sum(each.program is not None for each in model.parameters)
    return "planned, piecewise", f"{traced} of {len(model.parameters)} parameters computed; {how}"


def _sampled(name: str) -> tuple[Model, str]:
    """The model of the checkpoint that `hubtool sample --architecture` writes."""
    published = PUBLISHED[name]()
    model = generic.read_model(published.config, {spec.name: spec for spec in published.tensors})
    make_plan(model, load_recipe("mixed_4_6"))
    return model, "the published layout"


def _planned(config: Mapping[str, Any]) -> tuple[Model, str]:
    """The model, planned, and which tensors it was planned from."""
    built = build(config)
    stacked = {name: shape for module in built.modules for name, shape in _full(module.path, module.parameters)}
    last: HubtoolError | None = None
    for how, shapes in (("experts one by one", dict(_apart(stacked))), ("as the class names them", stacked)):
        specs = {name: TensorSpec(name, "BF16", shape) for name, shape in shapes.items()}
        if how == "experts one by one" and specs.keys() == stacked.keys():
            continue
        try:
            model = generic.read_model(config, specs)
            make_plan(model, load_recipe("mixed_4_6"))
            return model, how
        except HubtoolError as error:
            last = error
    assert last is not None
    raise last


def _full(path: str, parameters: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in parameters.items():
        yield (f"{path}.{name}" if path else name), shape


def _apart(stacked: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors with each expert's by itself."""
    for name, shape in stacked.items():
        match = re.search(r"\.(switch_mlp|switch_glu)\.(\w+)\.weight$", name)
        if match is None or len(shape) != 3:
            yield name, shape
            continue
        for expert in range(shape[0]):
            yield f"{name[: match.start()]}.experts.{expert}.{match[2]}.weight", shape[1:]


def _configuration(name: str, module: Any) -> dict[str, Any]:
    config = {"model_type": name, "architectures": [name], "torch_dtype": "bfloat16"}
    config |= _fields(module.ModelArgs, module)
    for key in ("text_config", "llm_config", "language_config"):
        if key in inspect.signature(module.ModelArgs).parameters:
            inner = _inner_type(module)
            inner_module = importlib.import_module(f"mlx_lm.models.{inner}")
            config[key] = {"model_type": inner, **_fields(inner_module.ModelArgs, inner_module)}
    return config


def _inner_type(module: Any) -> str:
    """The module whose model a wrapper of vision and text wraps: what its source imports from its neighbours."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in [node.module, *(each.name for each in node.names)]:
                if alias and alias not in SKIPPED and (Path(mlx_lm.models.__path__[0]) / f"{alias}.py").is_file():
                    return alias
    return "llama"


def _fields(kind: type, module: Any) -> dict[str, Any]:
    """A small value for each field that has a name of `SIDES`; the class's own default for the others."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        for pattern, value in SIDES.items():
            if re.fullmatch(pattern, field.name):
                found[field.name] = value
                break
        else:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                found.setdefault(field.name, _by_type(str(field.type)))
    found.pop("model_type", None)
    return found


def _by_type(kind: str) -> Any:
    for word, value in (("bool", False), ("float", 1.0), ("str", "silu"), ("List", []), ("Dict", None), ("int", 2)):
        if word in kind:
            return value
    return None


if __name__ == "__main__":
    sys.exit(main())
