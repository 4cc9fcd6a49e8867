"""The guarded part of `hubtool calibrate`: a source reads texts, and what goes into its matrices is summed up."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import numpy.typing as npt

import hubtool
from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import Source
from hubtool.checkpoint.statistics import Sums, write_statistics
from hubtool.convert.device import require_backend
from hubtool.files.whole import write_beside
from hubtool.guard.machine import versions
from hubtool.models import Model, read_model
from hubtool.plan.parts import parts_of
from hubtool.record import Calibration, TextRecord
from hubtool.worker.capture import Capture, load_sums, save_sums
from hubtool.worker.events import Calibrated, CalibrateTask, Event, LayerDone
from hubtool.worker.forward import Forward, Lane
from hubtool.worker.keep import Budget
from hubtool.worker.layers import Chosen, LayerRun, Reader, State
from hubtool.worker.open import open_published
from hubtool.worker.quality import load_tokenizer
from hubtool.worker.sensitivity import Probe
from hubtool.worker.text import Windows, read_windows

LANE = Lane("source", mx.float32)

Costs = dict[tuple[str, str], float]


def calibrate(task: CalibrateTask, tell: Callable[[Event], None]) -> None:
    """Run a calibration to its end, going on from where an earlier one of the same was ended."""
    mx.set_cache_limit(0)  # what was read for one layer must not be kept for the next
    source = open_source(task.source, task.base_model)
    windows = _read_texts(task, source)
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    capture = Capture(
        lambda path: forward.tensors.specs[f"{path}.weight"].shape[0],
        # DeepSeek-V4's first output projection: each group of heads meets rows of its own.
        lambda path: "o_groups" in source.config and path.endswith(".wo_a"),
    )
    forward = open_published(source, capture)
    state = State(Path(task.state), _identity(task, source, windows), Budget(task.keep_nbytes))
    run = LayerRun([Reader(forward, (LANE,))], windows.tokens, task.together, state)
    kept = _Layers(state.folder)
    probed = run.batches[: -(-task.sensitivity // (task.context * task.together))]

    probe = Probe(forward, LANE, probed, run.room)
    if run.done >= 0:
        probe.follow(run.done)

    def on_layer(layer: int, _: Chosen) -> None:
        sums = capture.take()
        costs: Costs = {}
        if probed:
            parts = [part for part in parts_of(model) if part.layer == layer]
            costs = probe.costs(layer, parts, sums)
        kept.save(layer, sums, costs)
        tell(LayerDone(number=layer + 1, layers=run.layers, read_nbytes=forward.tensors.read_nbytes))

    tell(LayerDone(number=run.done + 1, layers=run.layers, read_nbytes=0))
    run.run(on_layer)
    found, costs = kept.load(run.layers)
    found |= _head_sums(forward, run, capture)
    sums = {each.module: found[each.module] for each in model.parameters if each.quantizable and each.module in found}
    write_statistics(Path(task.out), _calibration(task, source, model, windows), sums, costs)
    tell(_summary(sums, windows, costs))
    run.close()


def _read_texts(task: CalibrateTask, source: Source) -> Windows:
    tokenizer = load_tokenizer(source)
    read = [read_windows(Path(text.path), tokenizer, text.tokens, task.context).tokens for text in task.texts]
    return Windows(np.concatenate(read))


class _Layers:
    """What was found layer by layer, in files: layers that are done are not run again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sums"

    def save(self, layer: int, sums: Mapping[str, Sums], costs: Costs) -> None:
        """Keep what a layer came to."""
        self._folder.mkdir(exist_ok=True)
        save_sums(self._folder / f"{layer}.safetensors", sums)
        write_beside(self._folder / f"{layer}.json", msgspec.json.encode([(*key, cost) for key, cost in costs.items()]))

    def load(self, layers: int) -> tuple[dict[str, Sums], Costs]:
        """What all layers came to."""
        sums: dict[str, Sums] = {}
        costs: Costs = {}
        for layer in range(layers):
            sums |= load_sums(self._folder / f"{layer}.safetensors")
            found = msgspec.json.decode(
                (self._folder / f"{layer}.json").read_bytes(), type=list[tuple[str, str, float]]
            )
            costs |= {(part, name): cost for part, name, cost in found}
        return sums, costs


def _head_sums(forward: Forward, run: LayerRun, capture: Capture) -> Mapping[str, Sums]:
    """What the head multiplies; nothing where it is the embedding, whose rows are vectors too."""
    if forward.head is not None:
        for batch, tokens in enumerate(run.batches):
            capture(forward.head, None, forward.head_inputs(LANE, batch, tokens, run.room))
    return capture.take()


def _calibration(task: CalibrateTask, source: Source, model: Model, windows: Windows) -> Calibration:
    lengths = [text.tokens // task.context * task.context for text in task.texts]
    return Calibration(
        repo=source.identity.repo,
        commit=source.identity.commit,
        model_type=model.model_type,
        texts=tuple(
            TextRecord(name=text.name, commit=text.commit, sha256=text.sha256, tokens=tokens)
            for text, tokens in zip(task.texts, lengths, strict=True)
        ),
        tokens=windows.tokens.size,
        window=task.context,
        tokens_sha256=windows.sha256,
        versions={
            "hubtool": hubtool.__version__,
            **versions(("mlx", "mlx-lm", "numpy")),
            "mlx backend": require_backend(),
        },
    )


def _summary(sums: Mapping[str, Sums], windows: Windows, costs: Costs) -> Calibrated:
    counts: list[npt.NDArray[np.int64]] = [each.count for each in sums.values()]
    stacks = [count for count in counts if len(count) > 1 and len(set(count.tolist())) > 1] or counts
    return Calibrated(
        inputs=len(sums),
        tokens=windows.tokens.size,
        least_tokens=min(int(count.min()) for count in stacks),
        unseen=sum(int((count == 0).sum()) for count in counts),
        costs=len(costs),
    )


def _identity(task: CalibrateTask, source: Source, windows: Windows) -> str:
    """A digest of what decides the sums: model, tokens, libraries."""
    stamps = {file: source.stamp(file) for file in source.shards}
    decides = [source.name, stamps, windows.sha256, task.context, task.together, task.sensitivity, require_backend()]
    libraries = versions(("mlx", "mlx-lm", "numpy"))
    return hashlib.sha256(msgspec.json.encode([*decides, hubtool.__version__, libraries])).hexdigest()
