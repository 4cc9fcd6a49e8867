"""A model run one layer at a time over all windows of tokens, each of its weights read once.

A layer with routed experts is run up to them; then each expert is read, and meets all tokens that chose it; then the
layer is run to its end. So memory holds one layer without its experts, and two experts: the next is read meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_unflatten

from hubtool.errors import SourceError
from hubtool.worker.build import DECODED, formats, parameter_names, quantize_others
from hubtool.worker.cut import AtExperts, Cut, Reached, Returned, Run
from hubtool.worker.dense import decode
from hubtool.worker.layerwise import sanitize_of
from hubtool.worker.routed import Room, Routed, ahead
from hubtool.worker.tensors import Tensors

Observe = Callable[[str, int | None, mx.array], None]
"""Takes a matrix's path, the expert's number for a routed one, and rows [.., in] that it multiplies: each row once."""

Change = Callable[[str, int | None, mx.array], mx.array]
"""Takes a matrix's path, the expert's number for a routed one, and its decoded weight, and gives what is to be used."""


@dataclass
class Lane:
    """One way of a model through the windows: its name among what is kept, and the dtype of its activations."""

    name: str
    dtype: mx.Dtype

    def key(self, layer: int, batch: int) -> str:
        """Under which the output of a layer for a batch is kept."""
        return f"{layer}/{self.name}-{batch}"


class Forward:
    """A model that is run layer by layer.

    Args:
        model: As `build_model` builds it; its modules are changed.
        tensors: Its weights.
        config: config.json, which says how they are stored.
        observe: Is shown the input of every matrix.

    Raises:
        SourceError: A parameter has no tensor.
    """

    def __init__(
        self, model: nn.Module, tensors: Tensors, config: Mapping[str, Any], observe: Observe | None = None
    ) -> None:
        self.tensors = tensors
        self.observe = observe
        self.change: Change | None = None
        self._model: Any = model
        self._formats = formats(config, tensors.specs)
        self._sanitize = sanitize_of(model)
        self._expert: int | None = None
        self._seen: set[int] = set()
        quantize_others(model, self._formats)
        self._modules = dict(model.named_modules())
        self._paths: dict[int, str] = {id(module): path for path, module in self._modules.items()}
        self._cut = Cut(model, self._embed, self._on_input)
        self._vectors: dict[str, tuple[npt.NDArray[np.intp], mx.array]] = {}
        self._wanted: npt.NDArray[np.intp] = np.empty(0, np.intp)
        self._parts: dict[tuple[str, int], tuple[list[int], frozenset[int]]] = {}
        self._returned: list[tuple[tuple[int, ...], mx.Dtype]] = []
        apart = [self._path(module) for module in (*self._cut.layers, *self._cut.embeddings, self._cut.head)]
        self._fill(self._complete(model, self._read(self._names("", apart)), apart))

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self._cut.layers)

    def advance(
        self, index: int, lanes: Sequence[Lane], batches: Sequence[mx.array], room: Room
    ) -> dict[str, npt.NDArray[np.int32]]:
        """Run a layer over all batches of windows for each lane; what it returns is kept, what it was given stays.

        Args:
            index: The layer.
            lanes: Whose outputs of the layer before are kept.
            batches: Tokens [B, S] of each batch.
            room: Where things are kept.

        Returns:
            The experts that each lane's tokens chose, [tokens, k], by the lane's name; empty for a layer without.

        Raises:
            SourceError: A parameter has no tensor, or the layer returns what is not finite.
        """
        layer, experts = self._cut.layers[index], self._cut.experts[index]
        apart = [self._path(experts)] if experts is not None else []
        names = self._names(self._path(layer), apart)
        self._wanted = np.unique(np.concatenate([np.array(tokens).reshape(-1) for tokens in batches]))
        self._fill(self._complete(layer, self._read(names), apart))
        routed = [(lane, each) for lane in lanes if (each := self._to_experts(index, lane, batches, room)) is not None]
        if routed:
            self._meet_experts(index, apart[0], [each for _, each in routed])
        for lane, each in routed:
            self._from_experts(index, lane, each, batches, room)
        self._empty(names)
        self._vectors.clear()
        return {lane.name: each.indices for lane, each in routed}

    def _to_experts(self, index: int, lane: Lane, batches: Sequence[mx.array], room: Room) -> Routed | None:
        """Run a layer to its end, or up to its experts if it has any."""
        routed = None
        for batch, tokens in enumerate(batches):
            self._seen.clear()
            run = self._start(index, lane, batch, room)
            reached = self._cut.run(tokens, run)
            assert isinstance(reached, Reached)
            if not isinstance(reached, AtExperts):
                self._finish(index, lane, batch, reached.value, room)
                continue
            x, k = _parted(reached.value)[0], reached.indices.shape[-1]
            if routed is None:
                routed = Routed(lane.name, [each.size for each in batches], k, room)
            # Together: what was computed for the parts must not be computed again for the input.
            mx.eval(x, reached.indices, [array for part in run.recorded for array in _parted(part)])
            routed.add(batch, x, reached.indices)
            self._parts[lane.name, batch] = [len(_parted(part)) for part in run.recorded], frozenset(self._seen)
            room.keep.put(f"parts/{lane.name}-{batch}", [array for part in run.recorded for array in _parted(part)])
        return routed

    def _meet_experts(self, index: int, path: str, routed: Sequence[Routed]) -> None:
        """Read each expert that was chosen, once, and let it meet the tokens of all lanes that chose it."""
        names = self._names(path)
        numbers = sorted({number for each in routed for number in each.numbers()})

        def meet(rows: mx.array) -> mx.array:
            self._seen.clear()
            return self._cut.meet_expert(index, rows)

        for number, arrays in ahead(lambda number: self._read(names, [number]), numbers):
            self._expert = number
            self._fill(arrays)
            for each in routed:
                each.meet(number, meet)
        self._expert = None
        self._empty(names)

    def _from_experts(self, index: int, lane: Lane, routed: Routed, batches: Sequence[mx.array], room: Room) -> None:
        """Run a layer from its experts to its end."""
        for batch, tokens in enumerate(batches):
            run = self._start(index, lane, batch, room)
            sizes, self._seen = self._parts[lane.name, batch][0], set(self._parts[lane.name, batch][1])
            arrays = iter(room.keep.get(f"parts/{lane.name}-{batch}"))
            run.replayed = [_joined([next(arrays) for _ in range(size)]) for size in sizes]
            run.experts = routed.output(batch, tokens.shape)
            reached = self._cut.run(tokens, run)
            assert isinstance(reached, Reached)
            self._finish(index, lane, batch, reached.value, room)
            room.keep.drop(f"parts/{lane.name}-{batch}")
        routed.close()

    def _start(self, index: int, lane: Lane, batch: int, room: Room) -> Run:
        run = Run(index, lane.dtype)
        if index:
            run.before = _joined(room.keep.get(lane.key(index - 1, batch)))
        return run

    def _finish(self, index: int, lane: Lane, batch: int, output: Returned, room: Room) -> None:
        arrays = _parted(output)
        room.keep.put(lane.key(index, batch), arrays)
        if not all(bool(mx.isfinite(array).all()) for array in arrays):
            raise SourceError(
                "activations are not finite",
                where=self._path(self._cut.layers[index]),
                found="NaN or an infinity in what the layer returns",
                expected="numbers, computed from nothing but what the layer before returned",
                remedy="a model whose layers share more than that cannot be run one layer at a time",
            )

    # What follows the layers.

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return self.tensors.specs[f"{self._path(self._cut.head)}.weight"].shape[0]

    @property
    def head(self) -> str | None:
        """Path of the head, None where it is the embedding."""
        head = self._cut.head
        return None if any(head is each for each in self._cut.embeddings) else self._path(head)

    def head_inputs(self, lane: Lane, batch: int, tokens: mx.array, room: Room) -> mx.array:
        """What the head multiplies for a batch after the last layer, [B, S, in]."""
        run = self._start(self.layers, lane, batch, room)
        assert run.before is not None
        self._returned = [(array.shape[2:], array.dtype) for array in _parted(run.before)]
        reached = self._cut.run(tokens, run)
        assert isinstance(reached, Reached)
        x = _parted(reached.value)[0]
        mx.eval(x)
        return x

    def open_head(self, first: int, stop: int) -> None:
        """Read these rows of the head, in place of others."""
        path = self._path(self._cut.head)
        self._fill(self._read(self._names(path), range(first, stop)))

    def close_head(self) -> None:
        """Let go of the head's rows."""
        self._empty(self._names(self._path(self._cut.head)))

    def logits(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """Logits [n, rows of the head that were read] of what the head multiplies, [n, in], as float32."""
        run = Run(self.layers, dtype, before=self._blank(len(x)), head=x[None])
        logits = self._cut.run(mx.zeros((1, len(x)), mx.int32), run)
        assert isinstance(logits, mx.array)
        return logits[0].astype(mx.float32)

    def _blank(self, tokens: int) -> Returned:
        """NaN in the place of what the last layer returns, which nobody needs once the head's input is known."""
        return _joined([mx.full((1, tokens, *shape), mx.nan, dtype) for shape, dtype in self._returned])

    # Weights come and go.

    def _path(self, module: nn.Module) -> str:
        return self._paths[id(module)]

    def _names(self, path: str, apart: Sequence[str] = ()) -> list[str]:
        """Tensors of the module at a path, without those of some modules within it."""
        left_out = tuple(f"{each}." for each in apart)
        names = [name for name in self.tensors.specs if not path or name.startswith(f"{path}.")]
        return [name for name in names if not name.startswith(left_out)]

    def _read(self, names: Sequence[str], rows: Sequence[int] | None = None) -> dict[str, mx.array]:
        """Arrays as the model takes them, by their names in the model."""
        arrays: dict[str, mx.array] = self._sanitize({name: self.tensors.read(name, rows) for name in names})
        mx.eval(*arrays.values())  # a thread's graphs are nothing to another one
        return arrays

    def _complete(self, module: nn.Module, arrays: dict[str, mx.array], apart: Sequence[str]) -> dict[str, mx.array]:
        """The arrays, if each parameter of the module has one, but for those of modules within it that are apart."""
        path = self._path(module)
        names = [f"{path}.{name}" if path else name for name in parameter_names(module)]
        missing = [name for name in names if name not in arrays and not name.startswith(tuple(f"{a}." for a in apart))]
        if missing:
            raise SourceError(
                "parameter without a tensor",
                where=missing[0],
                found=f"{len(arrays)} others of {path or 'the model'}",
                remedy="fetch config.json and the shards of one revision",
            )
        return arrays

    def _fill(self, arrays: Mapping[str, mx.array]) -> None:
        """Give modules their weights: decoded ones those that are decoded, as stored the others."""
        by_module: dict[str, dict[str, mx.array]] = {}
        for full, array in arrays.items():
            path, _, name = full.rpartition(".")
            by_module.setdefault(path, {})[name] = array
        others: list[tuple[str, mx.array]] = []
        for path, own in by_module.items():
            module: Any = self._modules.get(path)
            if isinstance(module, DECODED):
                weight = decode(own, self._formats.get(path))
                module.weight = weight if self.change is None else self.change(path, self._expert, weight)
                if "bias" in own:
                    module.bias = own["bias"]
            else:
                others += [(f"{path}.{name}" if path else name, array) for name, array in own.items()]
        self._model.update(tree_unflatten(others))
        mx.eval(*(self._modules[path].weight for path in by_module if isinstance(self._modules.get(path), DECODED)))

    def _empty(self, names: Sequence[str]) -> None:
        """Take weights away again."""
        for path in {name.rpartition(".")[0] for name in names}:
            module: Any = self._modules.get(path)
            for name in ("weight", "scales", "biases", "bias") if module is not None else ():
                if name in module:
                    module[name] = _NOTHING

    def _embed(self, module: nn.Module, tokens: mx.array) -> mx.array:
        """Vectors of tokens: rows of the embedding that were not needed before are read."""
        path = self._path(module)
        wanted = np.unique(np.array(tokens))
        known = self._vectors.get(path)
        if known is None or not np.isin(wanted, known[0]).all():
            wanted = self._wanted if np.isin(wanted, self._wanted).all() else wanted
            self._vectors[path] = known = (wanted, self._read_rows(path, wanted))
        return known[1][mx.array(np.searchsorted(known[0], np.array(tokens)))]

    def _read_rows(self, path: str, rows: npt.NDArray[np.intp]) -> mx.array:
        arrays = self._read(self._names(path), [int(row) for row in rows])
        own = {name.rpartition(".")[2]: array for name, array in arrays.items()}
        return decode(own, self._formats.get(path), rounded=True)

    def _on_input(self, module: nn.Module, x: mx.array) -> None:
        """Show the observer what a matrix multiplies, but not twice what is computed twice."""
        if self.observe is not None and id(module) not in self._seen:
            self._seen.add(id(module))
            self.observe(self._path(module), self._expert, x)


_NOTHING = mx.zeros((0,))


def _parted(returned: Returned) -> list[mx.array]:
    return [returned] if isinstance(returned, mx.array) else list(returned)


def _joined(arrays: Sequence[mx.array]) -> Returned:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)
