"""The guarded part of `hubtool quality`: source and variants run side by side over the same windows, and compared."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import numpy.typing as npt
from mlx_lm.tokenizer_utils import load as load_files

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import Source
from hubtool.convert.device import require_backend
from hubtool.files.whole import write_beside
from hubtool.guard.machine import versions
from hubtool.worker.compare import Distance
from hubtool.worker.events import Compared, Compares, CompareTask, Event, LayerDone
from hubtool.worker.forward import Lane
from hubtool.worker.head import Heads, Scored
from hubtool.worker.keep import Budget
from hubtool.worker.layers import Chosen, LayerRun, Reader, State
from hubtool.worker.open import open_finished, open_published
from hubtool.worker.text import read_windows

SOURCE, FLOOR = "source", "floor"
"""Names of lanes: the source in float32, and in the dtype that the model was published for."""

AGREEMENT_FILE = "agreement.json"

BUCKETS = 4
"""Parts of the scored half of a window whose divergences are reported separately."""

TOKENIZER_FILES = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template", "config.json")
"""How names of files begin that a tokenizer may need."""


def compare(task: CompareTask, tell: Callable[[Event], None]) -> None:
    """Run a comparison to its end, going on from where an earlier one of the same was ended."""
    mx.set_cache_limit(0)  # what was read for one layer must not be kept for the next
    source = open_source(task.source)
    variants = [open_source(folder) for folder in task.folders]
    windows = read_windows(Path(task.text), load_tokenizer(source), task.tokens, task.context)
    scored = Scored(windows.tokens)
    lanes = [SOURCE, *([FLOOR] if task.floor else []), *(f"variant{i}" for i in range(len(variants)))]
    tell(Compares(windows=scored.shape[0], scored=len(scored.following), stream_sha256=windows.sha256))
    readers = _readers(source, variants, task)
    state = State(Path(task.state), _identity(task, [source, *variants], windows.sha256), Budget(task.keep_nbytes))
    run = LayerRun(readers, windows.tokens, task.together, state)
    agreement = _Agreement(state.folder / AGREEMENT_FILE)

    def on_layer(layer: int, chosen: Chosen) -> None:
        agreement.add(layer, chosen)
        tell(LayerDone(number=layer + 1, layers=run.layers, read_nbytes=_read(readers)))

    tell(LayerDone(number=run.done + 1, layers=run.layers, read_nbytes=0))
    run.run(on_layer)
    heads = Heads(run, scored, lambda: None)
    distances = heads.compare(SOURCE)
    if task.reference is not None:
        heads.save_reference(SOURCE, Path(task.reference))
    tell(_compared(distances, lanes, agreement, scored.first, _read(readers)))
    run.close()


def _readers(source: Source, variants: Sequence[Source], task: CompareTask) -> list[Reader]:
    floor = (Lane(FLOOR, mx.bfloat16),) if task.floor else ()
    readers = [Reader(open_published(source), (Lane(SOURCE, mx.float32), *floor))]
    for number, variant in enumerate(variants):
        readers.append(Reader(open_finished(variant), (Lane(f"variant{number}", mx.float32),)))
    return readers


def load_tokenizer(source: Source) -> Any:
    """A checkpoint's tokenizer, wherever its files are."""
    with TemporaryDirectory(prefix="hubtool-") as folder:
        for name in source.files:
            if name.startswith(TOKENIZER_FILES):
                (Path(folder) / name).write_bytes(source.read_file(name))
        return load_files(Path(folder))


def _read(readers: Sequence[Reader]) -> int:
    return sum(reader.forward.tensors.read_nbytes for reader in readers)


def _identity(task: CompareTask, sources: Sequence[Source], stream: str) -> str:
    """A digest of what decides the numbers: models, tokens, libraries."""
    digest = hashlib.sha256()
    digest.update(msgspec.json.encode([stream, task.together, task.floor, require_backend()]))
    digest.update(msgspec.json.encode(versions(("mlx", "mlx-lm", "numpy"))))
    for source in sources:
        digest.update(msgspec.json.encode([source.name, {file: source.stamp(file) for file in source.shards}]))
    return digest.hexdigest()


class _Agreement:
    """How often lanes choose the source's experts, by layer: kept in a file, as layers are not run again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shares: dict[int, dict[str, float]] = (
            msgspec.json.decode(path.read_bytes(), type=dict[int, dict[str, float]]) if path.is_file() else {}
        )

    def add(self, layer: int, chosen: Chosen) -> None:
        """Take what a layer's tokens chose."""
        if SOURCE in chosen:
            shares = {name: _share(chosen[SOURCE], each) for name, each in chosen.items() if name != SOURCE}
            self._shares[layer] = shares
            write_beside(self._path, msgspec.json.encode(self._shares))

    def of(self, lane: str) -> tuple[tuple[int, float], ...]:
        """Layer and share of the experts that are the same, for layers that have experts."""
        return tuple((layer, shares[lane]) for layer, shares in sorted(self._shares.items()))


def _share(source: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> float:
    """The share of the source's experts, [tokens, k], that the other chose too."""
    return float((source[:, :, None] == other[:, None, :]).any(axis=2).mean())


def _compared(
    distances: Mapping[str, Distance], lanes: Sequence[str], agreement: _Agreement, first: int, read_nbytes: int
) -> Compared:
    return Compared(
        figures={name: distances[name].figures() for name in lanes if name != SOURCE},
        buckets={name: distances[name].by_position(first, BUCKETS) for name in lanes if name != SOURCE},
        experts={name: agreement.of(name) for name in lanes if name != SOURCE},
        read_nbytes=read_nbytes,
    )
