"""A model to run layer by layer: the source as published, or a finished folder."""

from hubtool.checkpoint.source import LocalSource, Source
from hubtool.plan.plan import plan_source
from hubtool.worker.build import build_model
from hubtool.worker.events import PUBLISHED
from hubtool.worker.forward import Forward, Observe
from hubtool.worker.tensors import PlannedTensors, StoredTensors, Tensors


def open_published(source: Source, observe: Observe | None = None) -> Forward:
    """A published checkpoint, decoded exactly as its layers are read.

    Raises:
        SourceError: hubtool or mlx-lm has no such model, or the checkpoint contradicts itself.
    """
    return Forward(build_model(source.config), published_tensors(source), source.config, observe)


def published_tensors(source: Source) -> Tensors:
    """A published checkpoint's tensors under MLX's names."""
    (plan,) = plan_source(source, [PUBLISHED])
    return PlannedTensors(source, plan)


def open_finished(source: Source, observe: Observe | None = None) -> Forward:
    """A finished folder, or another that stock mlx-lm loads as it is.

    Raises:
        SourceError: mlx-lm has no such model, or a parameter has no tensor.
    """
    file = source.config.get("model_file")
    code = source.folder / str(file) if file is not None and isinstance(source, LocalSource) else None
    return Forward(build_model(source.config, code), StoredTensors(source), source.config, observe)
