"""Any architecture that mlx-lm knows: what its model class and its `sanitize` say.

config.json -> mlx-lm's class, built lazily -> its parameters: names, order, shapes, what can be quantized
headers     -> tracing.trace(sanitize)      -> a program for each parameter; what no program reads is dropped

MLX is imported when a model is read: this module itself needs none.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.errors import SourceError
from hubtool.models.architecture import Architecture, Config, find_layer
from hubtool.models.kinds import find_component
from hubtool.models.model import Dropped, Encoding, Model, Parameter, Part
from hubtool.models.program import Node, Program, Rerun

if TYPE_CHECKING:
    from hubtool.models.mlx_class import Built, Classes, Module

FLOATS = ("BF16", "F16", "F32")
DECODED_METHODS = ("fp8", "mxfp4", "mxfp8")
"""`quant_method` of sources whose weights are decoded exactly as mlx-lm's classes do it."""

_PACKED: Mapping[tuple[int, int], tuple[Encoding, tuple[int, int]]] = {
    (4, 32): ("fp4", (1, 32)),
    (8, 32): ("fp8", (1, 32)),
}
"""Encoding and block of what mlx-lm's classes keep packed with E8M0 scales, by bits and group size: mxfp4 and mxfp8."""

_AGAIN = "fetch config.json and the shards of one revision, or update mlx-lm"
_MODALITY = re.compile(r"vision|visual|image|audio|speech|video|projector|siglip", re.IGNORECASE)


def read_model(config: Config, tensors: Mapping[str, TensorSpec], classes: "Classes | None" = None) -> Model:
    """The MLX model that a checkpoint makes, as mlx-lm's class of its model_type says.

    Args:
        config: config.json.
        tensors: Every published tensor.
        classes: Model and ModelArgs, where they are not mlx-lm's own.

    Raises:
        SourceError: mlx-lm has no such class, or it does not take this checkpoint; the source is quantized in a way
            that is not decoded; `sanitize` looks at values or cannot be traced.
    """
    from hubtool.models.mlx_class import build, trace_sanitize

    _refuse_quantized(config, tensors)
    built = build(config, classes)
    specs = {name: (spec.dtype, spec.shape) for name, spec in tensors.items()}
    outputs = trace_sanitize(built, specs)
    reader = _Reader(built, outputs, Rerun(config, specs), tensors)
    parameters = reader.parameters()
    used = {name for parameter in parameters for name in parameter.names}
    return Model(
        architecture=str(next(iter(config.get("architectures") or ()), built.name)),
        model_type=str(config["model_type"]),
        num_layers=built.num_layers,
        config=config,
        parameters=parameters,
        dropped=_dropped((spec for name, spec in tensors.items() if name not in used), built.num_layers, config),
    )


def cache_nbytes(config: Config, tokens: int, activation_nbytes: int) -> int | None:
    """Bytes of mlx-lm's cache for one sequence of `tokens` tokens; None where the class tells only with weights."""
    from hubtool.models.mlx_class import measure_cache

    return measure_cache(config, tokens, activation_nbytes)


def tidy(config: Config) -> dict[str, Any]:
    """config.json as mlx-lm's `save_config` leaves it: sorted, without what is of no use any more."""
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "vision_config")}
    if isinstance(text := kept.get("text_config"), dict):
        kept["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    return dict(sorted(kept.items()))


GENERIC = Architecture(model_type=None, read=read_model, cache_nbytes=cache_nbytes, tidy=tidy)
"""Every architecture of which mlx-lm has a class."""


def _refuse_quantized(config: Config, tensors: Mapping[str, TensorSpec]) -> None:
    """Raise SourceError if the source is quantized in a way that is not decoded."""
    if isinstance(config.get("quantization"), dict):
        raise SourceError(
            "the source is an MLX quantization already",
            where="config.json: quantization",
            found=f"{config['quantization'].get('bits')} bits",
            expected="the checkpoint as it was first published",
            remedy="take the base model that its card names",
        )
    text = config.get("text_config")
    for place, fields in (("", config), ("text_config.", text if isinstance(text, dict) else {})):
        settings = fields.get("quantization_config")
        if not isinstance(settings, dict):
            continue
        method = str(settings.get("quant_method", settings.get("quant_algo", "a method it does not name")))
        if method not in DECODED_METHODS:
            raise SourceError(
                "the source is quantized in a way that hubtool does not decode",
                where=f"config.json: {place}quantization_config",
                found=" ".join(filter(None, [method, str(settings.get("format") or "")])),
                expected=f"BF16, F16, F32, or {', '.join(DECODED_METHODS)}",
                remedy="take the checkpoint that it was made from",
            )
    for spec in tensors.values():
        if spec.dtype in ("F8_E5M2", "F64", "U64"):
            raise SourceError(
                "dtype that MLX does not read",
                where=spec.name,
                found=spec.dtype,
                expected="BF16, F16, F32, F8_E4M3 or integers",
                remedy="take another revision of the checkpoint",
            )


@dataclass(frozen=True)
class _Reader:
    """Makes parameters of a built model and the nodes that `sanitize` gave."""

    built: "Built"
    outputs: Mapping[str, Node]
    rerun: Rerun
    tensors: Mapping[str, TensorSpec]

    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, in the order in which mlx-lm saves them."""
        made, left = [], dict(self.outputs)
        for module in self.built.modules:
            for name, shape in module.parameters.items():
                path = f"{module.path}.{name}" if module.path else name
                node = left.pop(path, None)
                if node is None:
                    raise SourceError(
                        "missing tensor",
                        where=path,
                        found="nothing in the source from which mlx-lm's class makes it",
                        expected=f"{list(shape)}, as config.json has it",
                        remedy=_AGAIN,
                    )
                scales = left.pop(f"{module.path}.scales", None) if name == "weight" else None
                made.append(self._parameter(module, name, shape, node, scales))
        # Prediction layers beyond the last, which some classes pass on and no parameter takes, are dropped.
        beyond = self.built.num_layers
        left = {path: node for path, node in left.items() if (find_layer(path) or 0) < beyond}
        if left:
            path, node = next(iter(left.items()))
            raise SourceError(
                "tensor that mlx-lm's class has no parameter for",
                where=next(iter(node.names), path),
                found=f"{path} {list(node.shape)}",
                expected="parameters that the class has",
                remedy=_AGAIN,
            )
        return tuple(made)

    def _parameter(
        self, module: "Module", name: str, shape: tuple[int, ...], node: Node, scales: Node | None
    ) -> Parameter:
        path = f"{module.path}.{name}" if module.path else name
        layer = find_layer(path)
        if node.op == "AsType" and node.inputs[0].op == "Input" and not {node.dtype, node.inputs[0].dtype} & {*FLOATS}:
            node = node.inputs[0]  # integers stay as published: the class narrows them again when it loads them
        encoding, block = self._encoding(path, shape, node, scales)
        packed = encoding in ("fp4", "fp8")
        dtype = self.built.stored_dtype(path, "BF16" if packed else node.dtype)
        quantizable = name == "weight" and module.quantizable and dtype in FLOATS
        parts, program = self._origin(node, scales, dtype if not packed else node.dtype)
        return Parameter(
            module=module.path,
            name=name,
            shape=shape,
            dtype=dtype,
            encoding=encoding,
            block=block,
            parts=parts,
            component=find_component(path, layer, module.classes),
            layer=layer,
            quantizable=quantizable,
            stacked=len(shape) > 2 and (program is not None or len(parts) == shape[0]),
            computed=dtype if dtype in FLOATS else "BF16",
            own=module.own if quantizable else None,
            program=program,
        )

    def _encoding(
        self, path: str, shape: tuple[int, ...], node: Node, scales: Node | None
    ) -> tuple[Encoding, tuple[int, int]]:
        if scales is not None and node.dtype == "U32" and scales.dtype == "U8":
            bits, group = 32 * node.shape[-1] // shape[-1], shape[-1] // scales.shape[-1]
            if (bits, group) in _PACKED and node.shape[:-1] == shape[:-1]:
                return _PACKED[bits, group]
        if node.shape != shape or scales is not None:
            raise SourceError(
                "shape contradicts config.json" if scales is None else "packed in a way that hubtool does not decode",
                where=next(iter(node.names), path),
                found=f"{path} {node.dtype} {list(node.shape)}",
                expected=list(shape),
                remedy=_AGAIN,
            )
        read = {self.tensors[name].dtype for name in node.names}
        if node.dtype in ("U8", "I8") and any(dtype.startswith("F8") for dtype in read):
            raise SourceError(
                "FP8 that mlx-lm's class does not decode",
                where=node.names[0],
                found=", ".join(sorted(read)),
                expected="scales as this architecture publishes them",
                remedy=_AGAIN,
            )
        return ("fp8_scaled" if "F8_E4M3" in read else "plain"), (1, 1)

    def _origin(self, node: Node, scales: Node | None, dtype: str) -> tuple[tuple[Part, ...], Program | None]:
        """Published parts where they are taken as they are, one or stacked; else the program."""
        if node.dtype == dtype and scales is None:
            if node.op == "Input":
                return (Part(node.args[0]),), None
            if (names := _stacked_names(node)) is not None:
                return tuple(map(Part, names)), None
        from hubtool.models.tracing import stuck

        if node.dtype != dtype:
            node = Node("AsType", (node,), node.shape, dtype)
        blocked = stuck(node) or (stuck(scales) if scales else "")
        return (), Program(node, scales, self.rerun if blocked else None, blocked)


def _stacked_names(node: Node) -> list[str] | None:
    """Names of the tensors that a node stacks along a new first axis, None if it is anything else."""
    if node.op != "Concatenate" or node.args[0] != 0:
        return None
    names = []
    for each in node.inputs:
        source = each.inputs[0] if each.op == "Reshape" else None
        if source is None or source.op != "Input" or each.shape != (1, *source.shape):
            return None
        names.append(source.args[0])
    return names


def _dropped(specs: Iterable[TensorSpec], num_layers: int, config: Config) -> tuple[Dropped, ...]:
    groups: dict[tuple[str, str], list[TensorSpec]] = defaultdict(list)
    for spec in specs:
        groups[_drop_key(spec.name, num_layers, config)].append(spec)
    return tuple(
        Dropped(names, len(found), sum(spec.nbytes for spec in found), reason)
        for (names, reason), found in sorted(groups.items())
    )


def _drop_key(name: str, num_layers: int, config: Config) -> tuple[str, str]:
    """What a dropped tensor is summed up under, and why it is dropped."""
    layer = find_layer(name)
    first = name.removeprefix("model.").partition(".")[0]
    if _MODALITY.search(name.partition(".")[0]) or _MODALITY.search(first):
        prefix = name[: name.index(first) + len(first)]
        return f"{prefix}.*", "mlx-lm's class is the text model: it leaves out what sees and hears"
    if (layer is not None and layer >= num_layers) or first == "mtp":
        prefix = name[: name.index(f".{layer}.") + len(f".{layer}")] if layer is not None else "mtp"
        return f"{prefix}.*", "multi-token prediction is not part of mlx-lm's class"
    if "lm_head" in name and config.get("tie_word_embeddings", True):
        return name, "the head is the embeddings, which the model shares"
    return re.sub(r"\.\d+(?=\.)", ".*", name), "mlx-lm's class of this architecture does not use it"
