"""The first rung: the bytes on disk, without MLX. Headers, index, config and hashes, and that all scales are finite."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubtool.checkpoint.measure import measure, read_packings
from hubtool.checkpoint.source import CONFIG_FILE
from hubtool.checkpoint.tensors import StoredTensor, read_header
from hubtool.errors import HubtoolError, SourceError
from hubtool.files.read import HASH_BLOCK_NBYTES
from hubtool.progress import Advance
from hubtool.record import FileRecord, Record, files_digest, is_derived
from hubtool.units import format_count
from hubtool.validate.finding import Finding
from hubtool.validate.stamps import compare_stamps, forget, remember, take_stamps

EXPONENTS: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}
"""Exponent bits of each float, which are all set in infinities and NaNs and only there (IEEE 754)."""

SCALE_NANS: Mapping[str, tuple[int, ...]] = {"mxfp4": (0xFF,), "mxfp8": (0xFF,), "nvfp4": (0x7F, 0xFF)}
"""The bytes that are NaN in a mode's uint8 scales: E8M0, and E4M3 for nvfp4 (OCP MX and FP8 specifications 1.0)."""


@dataclass(frozen=True)
class Integrity:
    """What the bytes are.

    Attributes:
        finding: The rung's outcome.
        subject: Digest of the files as they are, by the rule of `Record.subject`.
    """

    finding: Finding
    subject: str


def check_integrity(folder: Path, record: Record, advance: Advance) -> Integrity:
    """Hold every byte of a folder against its record, in one pass over the shards and a few megabytes of memory.

    A finding names the tensor where the bytes tell which it is: one that is not finite, missing, of another shape than
    config.json or the index says. A hash tells only the file.

    Args:
        folder: A finished folder.
        record: What it should hold.
        advance: Counts the bytes that were read.
    """
    problems: list[str] = []
    hashes: dict[str, str] = {}
    before = take_stamps(folder)
    modes = _scale_modes(folder, problems)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            reading = _Reading(path, modes, advance)
            problems.extend(reading.check())
            hashes[path.name] = reading.digest.hexdigest()
        except SourceError as error:
            problems.append(str(error))
    files: tuple[FileRecord, ...] = ()
    figures: dict[str, int | float | str] = {}
    try:
        measurement = measure(folder, record, hashes)
        problems.extend(measurement.disagreements)
        files = tuple(file for file in measurement.files if not is_derived(file.name))
        figures = {"tensors": measurement.facts.tensors, "files": len(files)}
    except HubtoolError as error:
        problems.append(str(error))
    problems += [f"{name}: touched while it was read" for name in compare_stamps(before, take_stamps(folder))]
    problems = list(dict.fromkeys(problems))
    subject = files_digest({file.name: file.sha256 for file in files})
    if problems:
        forget(folder)
    else:
        remember(folder, record, before)
    return Integrity(Finding("failed" if problems else "passed", _detail(record, problems), figures), subject)


def _scale_modes(folder: Path, problems: list[str]) -> Mapping[str, str]:
    """Quantization mode of each module that config.json lists."""
    try:
        raw = (folder / CONFIG_FILE).read_bytes()
    except OSError:
        problems.append(f"{CONFIG_FILE}: cannot be read")
        return {}
    packings = read_packings(raw, problems)
    return {module: packing.mode for module, packing in packings.modules.items() if packing}


class _Reading:
    """One pass over a shard: its hash, and where it holds numbers that are not."""

    def __init__(self, path: Path, modes: Mapping[str, str], advance: Advance) -> None:
        self._path = path
        self._modes = modes
        self._advance = advance
        self._buffer = bytearray(HASH_BLOCK_NBYTES)  # a multiple of every dtype's size
        self.digest = hashlib.sha256()

    def check(self) -> Iterator[str]:
        """Sentences that name the tensors whose values are not finite."""
        header = read_header(self._path)
        with self._path.open("rb", buffering=0) as file:
            for _ in self._blocks(file.fileno(), header.nbytes):
                pass
            for tensor in header.tensors:
                bad, position, begun = 0, 0, 0
                for block in self._blocks(file.fileno(), tensor.nbytes):
                    found = np.flatnonzero(self._not_finite(tensor, block))
                    if found.size and not bad:
                        position = begun + int(found[0])
                    bad += found.size
                    begun += len(block) * tensor.spec.size // tensor.nbytes
                if bad:
                    yield _describe(tensor, bad, position)

    def _blocks(self, descriptor: int, nbytes: int) -> Iterator[memoryview]:
        view = memoryview(self._buffer)
        while nbytes:
            count = os.readv(descriptor, [view[: min(nbytes, len(view))]])
            # A short read may end inside a number: the rest of it is read before anyone looks.
            while count < min(nbytes, len(view)):
                more = os.readv(descriptor, [view[count : min(nbytes, len(view))]])
                if not more:
                    raise SourceError("file ends early", where=self._path.name, remedy="convert again")
                count += more
            self.digest.update(view[:count])
            self._advance(count, self._path.name)
            yield view[:count]
            nbytes -= count

    def _not_finite(self, tensor: StoredTensor, block: memoryview) -> npt.NDArray[np.bool_]:
        spec = tensor.spec
        if spec.dtype in EXPONENTS:
            dtype, exponent = EXPONENTS[spec.dtype]
            bits = np.frombuffer(block, dtype)
            every: npt.NDArray[np.bool_] = (bits & dtype(exponent)) == exponent
            return every
        module, _, name = spec.name.rpartition(".")
        nans = SCALE_NANS.get(self._modes.get(module, "")) if name == "scales" and spec.dtype == "U8" else None
        return np.isin(np.frombuffer(block, np.uint8), nans) if nans else np.zeros(0, np.bool_)


def _describe(tensor: StoredTensor, bad: int, position: int) -> str:
    index = [int(i) for i in np.unravel_index(position, tensor.spec.shape)]
    count = f"{format_count(bad)} of {format_count(tensor.spec.size)} values"
    return f"{tensor.file}: {tensor.spec.name}: {count} not finite, the first at {index}"


def _detail(record: Record, problems: list[str]) -> str:
    if problems:
        shown, more = problems[:8], len(problems) - 8
        return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    text = "hashes, headers, index and config are those of the record, and every scale and bias is finite"
    if record.weight_error and record.weight_error.tensors:
        errors = record.weight_error.tensors
        worst = max(errors, key=lambda name: errors[name])
        text += f"; the relative squared error of the weights is at most {errors[worst]:.3g}, in {worst}"
    return text
