"""How MLX stores a model: packed tensors, the `quantization` block of config.json, and the index."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.models import Parameter
from hubtool.plan.format import FIXED_FORMATS, Format

HEADER_METADATA = {"format": "mlx"}

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits that MLX's affine formats store a weight in."""


def output_specs(parameter: Parameter, form: Format) -> tuple[TensorSpec, ...]:
    """The tensors of a parameter in a format: weight, and where quantized scales, and where affine biases."""
    if not form.quantized:
        return (TensorSpec(parameter.path, form.cast(parameter.dtype), parameter.shape),)
    *rows, columns = parameter.shape
    packed = TensorSpec(parameter.path, "U32", (*rows, columns * form.bits // 32))
    groups = (*rows, columns // form.group_size)
    scales = TensorSpec(f"{parameter.module}.scales", form.scales_dtype(parameter.computed), groups)
    if not form.has_biases:
        return packed, scales
    return packed, scales, TensorSpec(f"{parameter.module}.biases", form.scales_dtype(parameter.computed), groups)


def quantization(stored: Iterable[tuple[Parameter, Format]], effective_bits: float) -> dict[str, Any] | None:
    """The `quantization` block of config.json, or None if nothing is quantized.

    One entry for every quantized module; at the top, mode and group size of the largest part, and as `bits`, which the
    Hub's "N-bit" label follows, the width of MLX that is nearest to the effective bits.

    Args:
        stored: Every parameter and its format.
        effective_bits: Of the whole model.
    """
    sizes: Counter[Format] = Counter()
    modules: dict[str, Any] = {}
    for parameter, form in stored:
        if form.quantized:
            sizes[form] += parameter.size
            modules[parameter.module] = _entry(form)
    if not sizes:
        return None
    largest = sizes.most_common(1)[0][0]
    return {**_entry(largest), "bits": _label_bits(largest, effective_bits), **modules}


def _entry(form: Format) -> dict[str, Any]:
    return {"group_size": form.group_size, "bits": form.bits, "mode": form.mode}


def _label_bits(largest: Format, effective_bits: float) -> int:
    if largest.mode in FIXED_FORMATS:
        return largest.bits
    return min(WIDTHS, key=lambda bits: (abs(bits - effective_bits), bits))


def output_config(
    published: Mapping[str, Any], quantized: Mapping[str, Any] | None, model_file: str | None
) -> dict[str, Any]:
    """config.json of the output: the source's, with MLX's quantization in place of the source's own.

    Args:
        published: config.json of the source.
        quantized: What `quantization` says.
        model_file: The model code that is shipped beside the weights, None where mlx-lm has the model itself.
    """
    config = {key: value for key, value in published.items() if key != "quantization_config"}
    if model_file is not None:
        config["model_file"] = model_file
    if quantized is not None:
        config["quantization"] = quantized
        config["quantization_config"] = quantized
    return config


def output_index(weight_map: Mapping[str, str], nbytes: int, parameters: int) -> dict[str, Any]:
    """model.safetensors.index.json: which tensor lies in which file; `nbytes` of tensors, logical `parameters`."""
    return {"metadata": {"total_size": nbytes, "total_parameters": parameters}, "weight_map": dict(weight_map)}
