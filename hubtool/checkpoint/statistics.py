"""Statistics: what calibration measured of each module's input, in one safetensors file.

For each input K there are `K.count`, int64 [blocks], the tokens that were seen, and `K.squares`, float32
[blocks, channels], the sums of squares; where there is more than one block, as of the experts of a stack, which share
the rows of a weight equally, also `K.total`, float32 [channels], their sum. `__metadata__` has `inputs`, a JSON object
that gives each module its K (modules that read the same input share it), `calibration`, a JSON `Calibration`, and
`costs`, if they were measured: by name of a part of the model and name of a format, what that does to a layer's output.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from hubtool.checkpoint.tensors import Header, TensorSpec, encode_header, read_header
from hubtool.errors import SourceError
from hubtool.files.read import file_sha256, pread_into
from hubtool.files.whole import write_beside
from hubtool.record import Calibration

Double = npt.NDArray[np.float64]

FORMAT = "hubtool statistics 1"

PRIOR_ROWS = 64
"""Tokens that the mean over a stack counts beside those that one of its blocks saw: with 16 tokens and this prior the
weighted error is 0.379 of `mx.quantize`'s on SmolLM2-135M, with 4,096 it is 0.373."""

FEW_TOKENS = 1000
"""Below so many tokens a channel that was near zero in all of them may not stay so."""

LEAST_WORTH, LEAST_WORTH_OF_FEW = 1e-12, 1e-6
"""The least that a channel is worth beside the mean of all."""

_REMEDY = "run `hubtool calibrate` again, or fetch the file again"


@dataclass(frozen=True)
class Sums:
    """What was summed up of one input.

    Attributes:
        count: Tokens that were seen, int64 [blocks].
        squares: Sums of their squares, float64 [blocks, channels].
    """

    count: npt.NDArray[np.int64]
    squares: Double

    def moments(self) -> npt.NDArray[np.float32]:
        """What each channel is worth to each block: see `moments`."""
        stacked = len(self.count) > 1
        mean = self.squares.sum(axis=0, keepdims=True) / max(int(self.count.sum()), 1) if stacked else None
        return moments(self.squares, self.count, mean)


@dataclass(frozen=True)
class Inputs:
    """What is known of a module's input, and where: it can be read in any process that has the file.

    Attributes:
        digest: SHA-256 of the file.
        count: Tokens that each block saw.
        tokens: Tokens that all blocks of the stack saw.
        channels: Its width.
        path: The file.
        squares: Where the sums of the first block begin, in bytes.
        total: Where those of all blocks begin, None if there is only one.
    """

    digest: str
    count: tuple[int, ...]
    tokens: int
    channels: int
    path: str
    squares: int
    total: int | None

    def narrowed(self, first: int, blocks: int) -> "Inputs":
        """The same for some of its blocks."""
        count = self.count[first : first + blocks]
        return replace(self, count=count, squares=self.squares + 4 * first * self.channels)

    def moments(self, first: int, last: int) -> npt.NDArray[np.float32]:
        """What each channel is worth to blocks `first` to `last`: the mean square, float32 [last - first, channels].

        Blocks of several are mixed with the mean over all of them, which counts as `PRIOR_ROWS` tokens.

        Raises:
            SourceError: The file cannot be read.
        """
        start = self.squares + 4 * first * self.channels
        squares = self._read(start, (last - first, self.channels)).astype(np.float64)
        total = None if self.total is None else self._read(self.total, (1, self.channels)).astype(np.float64)
        return moments(
            squares, np.array(self.count[first:last]), None if total is None else total / max(self.tokens, 1)
        )

    def _read(self, offset: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        values = np.empty(shape, "<f4")
        _read_into(Path(self.path), offset, values)
        return values


def moments(squares: Double, count: npt.NDArray[np.int64], mean: Double | None) -> npt.NDArray[np.float32]:
    """What each channel is worth, float32 [blocks, channels], by sums of squares over so many tokens.

    Args:
        squares: [blocks, channels].
        count: [blocks].
        mean: The mean square over the whole stack, which counts as `PRIOR_ROWS` tokens; None where there is none.
    """
    tokens = count.astype(np.float64)[:, None]
    if mean is not None:
        squares, tokens = squares + PRIOR_ROWS * mean, tokens + PRIOR_ROWS
    worth = squares / np.maximum(tokens, 1)
    least = np.where(tokens < FEW_TOKENS, LEAST_WORTH_OF_FEW, LEAST_WORTH)
    floored: Double = np.maximum(worth, least * worth.mean(axis=1, keepdims=True))
    return floored.astype(np.float32)


def _read_into(path: Path, offset: int, values: npt.NDArray[Any]) -> None:
    """Fill an array from a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise SourceError("statistics cannot be read", where=path, found=error.strerror, remedy=_REMEDY) from error
    try:
        pread_into(descriptor, offset, values.data.cast("B"), path.name)
    finally:
        os.close(descriptor)


class Statistics:
    """A file of statistics, read strictly; the sums themselves are read when they are needed.

    Args:
        path: The file.

    Attributes:
        path: As given.
        digest: Its SHA-256.
        calibration: How it was made.
        inputs: By path of the module.
        costs: By name of a part and name of a format: see hubtool.plan.parts.

    Raises:
        SourceError: The file is not one that `write_statistics` writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise SourceError(
                "no such file",
                where=path,
                found="nothing",
                expected="statistics of `hubtool calibrate`",
                remedy=_REMEDY,
            )
        header = read_header(path)
        if header.metadata.get("format") != FORMAT:
            found = header.metadata.get("format", "no format")
            raise SourceError("not statistics", where=path, found=found, expected=FORMAT, remedy=_REMEDY)
        try:
            self.calibration = msgspec.json.decode(header.metadata["calibration"], type=Calibration)
            modules = msgspec.json.decode(header.metadata["inputs"], type=dict[str, str])
            costs = msgspec.json.decode(header.metadata.get("costs", "{}"), type=dict[str, dict[str, float]])
        except (KeyError, msgspec.DecodeError) as error:
            raise SourceError(
                "statistics that cannot be used", where=path, found=str(error), expected=FORMAT, remedy=_REMEDY
            ) from error
        self.costs = {(part, name): cost for part, found in costs.items() for name, cost in found.items()}
        self.digest = file_sha256(path)
        inputs = _read_inputs(path, header, self.digest)
        for module, key in modules.items():
            if key not in inputs:
                raise SourceError(
                    "a module without its statistics",
                    where=path,
                    found=module,
                    expected=f"{key}.squares",
                    remedy=_REMEDY,
                )
        self.inputs: Mapping[str, Inputs] = {module: inputs[key] for module, key in modules.items()}


def _read_inputs(path: Path, header: Header, digest: str) -> Mapping[str, Inputs]:
    """What the file has, by its key there."""
    tensors = {tensor.spec.name: tensor for tensor in header.tensors}
    inputs = {}
    for name, counted in tensors.items():
        key = name.removesuffix(".count")
        if key == name:
            continue
        squares, total = tensors.get(f"{key}.squares"), tensors.get(f"{key}.total")
        blocks = counted.spec.shape[0] if counted.spec.shape else 0
        fits = (
            squares is not None
            and (counted.spec.dtype, squares.spec.dtype) == ("I64", "F32")
            and len(squares.spec.shape) == 2
            and squares.spec.shape[0] == blocks > 0
            and (total.spec.shape if total else None) == (squares.spec.shape[1:] if blocks > 1 else None)
        )
        if squares is None or not fits:
            raise SourceError("statistics that contradict themselves", where=f"{path}: {key}", remedy=_REMEDY)
        count = np.empty(blocks, "<i8")
        _read_into(path, counted.offset, count)
        counts, where = tuple(map(int, count)), total.offset if total else None
        channels = squares.spec.shape[1]
        inputs[key] = Inputs(digest, counts, sum(counts), channels, str(path.absolute()), squares.offset, where)
    return inputs


def write_statistics(
    path: Path, calibration: Calibration, sums: Mapping[str, Sums], costs: Mapping[tuple[str, str], float] = {}
) -> None:
    """Write the sums of each module's input, in this order, whole or not at all; equal ones are stored once.

    Raises:
        OutputError: The disk is full or fails.
    """
    keys: dict[tuple[bytes, bytes], str] = {}
    modules: dict[str, str] = {}
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for module, each in sums.items():
        same = each.count.tobytes(), each.squares.tobytes()
        modules[module] = keys.setdefault(same, module)
        if modules[module] != module:
            continue
        arrays[f"{module}.count"] = each.count.astype("<i8")
        arrays[f"{module}.squares"] = each.squares.astype("<f4")
        if len(each.count) > 1:
            arrays[f"{module}.total"] = each.squares.sum(axis=0).astype("<f4")
    metadata = {
        "format": FORMAT,
        "calibration": msgspec.json.encode(calibration).decode(),
        "inputs": msgspec.json.encode(modules).decode(),
    }
    if costs:
        by_part: dict[str, dict[str, float]] = {}
        for (part, name), cost in costs.items():
            by_part.setdefault(part, {})[name] = cost
        metadata["costs"] = msgspec.json.encode(by_part).decode()
    dtypes = {"<i8": "I64", "<f4": "F32"}
    specs = [TensorSpec(name, dtypes[array.dtype.newbyteorder("<").str], array.shape) for name, array in arrays.items()]
    write_beside(path, encode_header(specs, metadata) + b"".join(array.tobytes() for array in arrays.values()))
