"""What a person asks for -- a size, bits, or a machine -- in bytes of weights, and the plan that is made for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hubtool import units
from hubtool.checkpoint.source import Source
from hubtool.checkpoint.statistics import Statistics
from hubtool.errors import UsageError
from hubtool.models import Component, Model, architecture_of, read_model
from hubtool.plan.fit import Budget, fit_recipe
from hubtool.plan.plan import Plan, make_plan, plan_source
from hubtool.plan.recipe import parse_recipe

_BITS = re.compile(r"(\d+(?:\.\d+)?)\s*bits?")

ACTIVATION_NBYTES = 2
"""Of bfloat16, which what is quantized computes in: it decides the cache."""


@dataclass(frozen=True)
class Request:
    """A recipe to be made.

    Attributes:
        size: `99GB`, bytes of the weights, or `3.8bits`, effective bits; None for a machine.
        mac: Unified memory of a machine, in the vendor's GB.
        context: Tokens of conversation whose cache has to fit beside the weights of a machine.
        floors: Least bits of some components.
    """

    size: str | None
    mac: int | None = None
    context: int = 32 * 1024
    floors: Mapping[Component, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the recipe is called: `fit_99GB`, `fit_mac128_32k`."""
        if self.size is not None:
            return f"fit_{self.size.replace(' ', '')}"
        return f"fit_mac{self.mac}_{self.context // 1024}k"


def budget_of(request: Request, model: Model) -> Budget:
    """The budget in bytes that a request means for a model.

    Raises:
        UsageError: It is neither a size nor bits, or the model's cache is not known.
    """
    if request.size is None:
        assert request.mac is not None
        cache = architecture_of(model.config).cache_nbytes(model.config, request.context, ACTIVATION_NBYTES)
        if cache is None:
            raise UsageError(
                "the size of this model's cache is not known",
                where="--fit-mac",
                found=model.model_type,
                remedy="give the bytes of the weights with --fit",
            )
        words = f"a Mac with {request.mac} GB and {request.context:,} tokens of context"
        return Budget(units.usable_nbytes(request.mac) - cache, words)
    if match := _BITS.fullmatch(request.size.strip()):
        return Budget(int(float(match[1]) * model.size / 8), f"{match[1]} bits")
    try:
        return Budget(units.parse_nbytes(request.size), request.size)
    except ValueError as error:
        raise UsageError(
            "neither a size nor bits", where="--fit", found=request.size, expected="99GB or 3.8bits, say"
        ) from error


def plan_budget(source: Source, request: Request, statistics: Path | None) -> Plan:
    """The plan of a recipe that is made for a budget, by the costs that calibration measured.

    Raises:
        UsageError: There are no statistics or no costs, or nothing fits.
        SourceError: The checkpoint or the statistics cannot be used.
    """
    opened = Statistics(statistics) if statistics else None
    if opened is None or not opened.costs:
        raise UsageError(
            "what each format costs each layer was not measured",
            where="--fit",
            found="statistics without costs" if opened else "no statistics",
            expected="--statistics FILE of `hubtool calibrate --sensitivity`",
            remedy="calibrate this source so: the errors of weights alone say next to nothing of quality",
        )
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    text = fit_recipe(model, opened.costs, budget_of(request, model), request.floors)
    return make_plan(model, parse_recipe(text, f"{request.name}.toml"), statistics=opened)


def require_choice(recipes: Sequence[str], request: Request | None) -> None:
    """Raise UsageError unless there are recipes or a budget, and not both."""
    if bool(recipes) == (request is not None):
        raise UsageError(
            "needs a recipe or a budget, and not both",
            where="--recipe",
            expected="--recipe NAME, or --fit SIZE, or --fit-mac GB",
        )


def plan_all(
    source: Source, recipes: Sequence[str], request: Request | None, statistics: Path | None
) -> tuple[Plan, ...]:
    """A plan for each recipe, or for the one that is made for a budget: see `plan_source` and `plan_budget`."""
    require_choice(recipes, request)
    return (plan_budget(source, request, statistics),) if request else plan_source(source, recipes, statistics)
