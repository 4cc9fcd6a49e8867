"""What a format of one part of a layer does to the layer's output."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from hubtool.checkpoint.statistics import Sums
from hubtool.convert.hints import Hints
from hubtool.convert.quantize import QUANTIZERS, dequantize
from hubtool.plan.parts import Candidate, Part
from hubtool.worker.forward import Forward, Lane
from hubtool.worker.routed import Room

TINY = 1e-30
"""In place of the norm of an output that is zero."""


class Probe:
    """Measures costs, layer by layer, along a run of the source.

    Args:
        forward: The source.
        lane: Its lane, whose layers' outputs are kept.
        batches: Tokens [B, S]: the first ones of the run, or all.
        room: Where the run keeps things.
    """

    def __init__(self, forward: Forward, lane: Lane, batches: Sequence[mx.array], room: Room) -> None:
        self._forward = forward
        self._lane = lane
        self._changed = Lane("changed", lane.dtype)
        self._batches = batches
        self._room = room

    def costs(self, layer: int, parts: Sequence[Part], sums: Mapping[str, Sums]) -> dict[tuple[str, str], float]:
        """The cost of every candidate of a layer's parts that loses something: see `Part.candidates`.

        It is the norm of the change of the layer's output for a token over the norm of that output, which is the
        residual with what the layer added to it, mean over tokens. All else of the layer is as published.

        Args:
            layer: Which the run has just done; the one before was the last that was followed.
            parts: Of this layer.
            sums: What was captured of the layer's inputs.
        """
        costs: dict[tuple[str, str], float] = {}
        forward = self._forward
        observe, forward.observe = forward.observe, None
        try:
            for part in parts:
                for candidate in part.candidates(last_resort=True):
                    if not all(map(candidate.keeps, part.parameters)):
                        forward.change = _Quantized(part, candidate, sums)
                        forward.advance(layer, [self._changed], self._batches, self._room)
                        costs[part.name, candidate.name] = self._change(layer)
        finally:
            forward.observe, forward.change = observe, None
        self.follow(layer)
        return costs

    def follow(self, layer: int) -> None:
        """Take what a layer returned for the run as what the next is given, whatever becomes of it there."""
        keep = self._room.keep
        for batch in range(len(self._batches)):
            if layer:
                keep.drop(self._changed.key(layer - 1, batch))
            keep.put(self._changed.key(layer, batch), keep.get(self._lane.key(layer, batch)))

    def _change(self, layer: int) -> float:
        """Mean over tokens of the relative change of a layer's output."""
        found = []
        for batch in range(len(self._batches)):
            before, after = (self._room.keep.get(lane.key(layer, batch))[0] for lane in (self._lane, self._changed))
            true = before.astype(mx.float32).reshape(before.shape[0] * before.shape[1], -1)
            lost = after.astype(mx.float32).reshape(true.shape) - true
            share = mx.linalg.norm(lost, axis=-1) / mx.maximum(mx.linalg.norm(true, axis=-1), TINY)
            found.append(np.array(share, dtype=np.float64))
        return float(np.concatenate(found).mean())


class _Quantized:
    """Puts the weights of a part in a format, and leaves all others."""

    def __init__(self, part: Part, candidate: Candidate, sums: Mapping[str, Sums]) -> None:
        self._parameters = {parameter.module: parameter for parameter in part.parameters}
        self._candidate = candidate
        self._moments = {module: sums[module].moments() for module in self._parameters if module in sums}

    def __call__(self, path: str, expert: int | None, weight: mx.array) -> mx.array:
        parameter = self._parameters.get(path)
        if parameter is None:
            return weight
        form = self._candidate.format(weight.shape[-1])
        assert form is not None, path
        rows = weight.reshape(-1, weight.shape[-1]).astype(mx.bfloat16)
        moments = self._moments.get(path)
        if moments is None:
            arrays = QUANTIZERS["nearest"](rows, form, Hints())
            return dequantize(arrays, form, mx.float32).astype(weight.dtype).reshape(weight.shape)
        blocks = moments if expert is None else moments[expert : expert + 1]
        size = len(rows) // len(blocks)
        made = []
        for number, each in enumerate(blocks):
            part = rows[number * size : (number + 1) * size]
            arrays = QUANTIZERS["weighted"](part, form, Hints(each, parameter.encoding == "fp4"))
            made.append(dequantize([arrays[0], *(a.astype(mx.float32) for a in arrays[1:])], form, mx.float32))
        return mx.concatenate(made).astype(weight.dtype).reshape(weight.shape)
