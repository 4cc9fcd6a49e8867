"""A recipe for a budget of bytes: where precision buys most, by what each format was measured to cost each part.

The cost of a part's format is the change of its decoder layer's output, relative to what the layer adds to, mean over
tokens. On SmolLM2-135M its rank correlation with the divergence that one part alone causes is 0.80; that of the
relative error of the weights is 0.12.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubtool import units
from hubtool.errors import UsageError
from hubtool.models import Component, Model
from hubtool.plan import mlx
from hubtool.plan.parts import Candidate, Part, parts_of
from hubtool.plan.plan import make_plan
from hubtool.plan.recipe import parse_recipe

Costs = Mapping[tuple[str, str], float]
"""What was measured, by name of the part and name of the candidate."""

DEFAULT_BITS: Mapping[Component, int] = {Component.ROUTER: 8}
OTHER_BITS = 6
"""Bits of what is quantized and not measured, embeddings and head above all: what every token passes through."""

FILE = "fit.toml"
"""What the recipe is called until it is written."""

STEPS = 200
"""Halvings of the price of a byte: more than a double has digits for."""


@dataclass(frozen=True)
class Choice:
    """A part and the format that it gets."""

    part: Part
    candidate: Candidate
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Budget:
    """How many bytes the weights may take, and in whose words.

    Attributes:
        nbytes: Tensor bytes.
        words: As the person gave it: `99GB`.
    """

    nbytes: int
    words: str


def fit_recipe(model: Model, costs: Costs, budget: Budget, floors: Mapping[Component, int]) -> str:
    """The TOML text of a recipe whose bytes are within the budget, and whose measured costs are least.

    Parts get their formats by the price of a byte (Lagrange), which is halved until the budget is met; what is left of
    the budget then buys what lowers the cost most for each byte. Two bits are taken only if nothing else fits.

    Args:
        model: The model.
        costs: Of every candidate of every part, but those that lose nothing.
        budget: The most bytes.
        floors: Least bits of some components.

    Raises:
        UsageError: Nothing fits; or costs are missing.
    """
    parts = parts_of(model)
    for last_resort in (False, True):
        options = [_options(part, costs, floors, last_resort=last_resort) for part in parts]
        smallest = [each[0] for each in options]
        least = make_plan(model, parse_recipe(_write(model, smallest, budget, floors), FILE)).nbytes
        others = least - sum(choice.nbytes for choice in smallest)
        if least <= budget.nbytes:
            return _write(model, _choose(options, budget.nbytes - others), budget, floors)
    raise UsageError(
        "no recipe is within the budget",
        where="--fit",
        found=budget.words,
        expected=f"at least {units.format_nbytes(least)}, {units.effective_bits(least, model.size):.3f} bits",
        remedy="raise it, or lower a floor" if floors else "raise it",
    )


def _options(part: Part, costs: Costs, floors: Mapping[Component, int], *, last_resort: bool) -> list[Choice]:
    """The formats that a part may have, the smallest first; of equal sizes the best alone."""
    floor = floors.get(part.component, 0)
    options: dict[int, Choice] = {}
    for candidate in part.candidates(last_resort=last_resort):
        if candidate.bits < floor:
            continue
        lossless = all(candidate.keeps(parameter) for parameter in part.parameters)
        cost = 0.0 if lossless else costs.get((part.name, candidate.name))
        if cost is None:
            raise UsageError(
                "the cost of a format was not measured",
                where=part.name,
                found="nothing",
                expected=candidate.name,
                remedy="run `hubtool calibrate --sensitivity` on this source, and give its file with --statistics",
            )
        choice = Choice(part, candidate, candidate.nbytes(part.parameters), cost)
        before = options.setdefault(choice.nbytes, choice)
        if choice.cost < before.cost:
            options[choice.nbytes] = choice
    if not options:
        raise UsageError(
            "a floor that no format reaches",
            where=f"--floor {part.component}",
            found=floor,
            expected=f"at most {max(each.bits for each in part.candidates())}",
            remedy="lower it",
        )
    return [options[nbytes] for nbytes in sorted(options)]


def _choose(options: Sequence[Sequence[Choice]], nbytes: int) -> list[Choice]:
    """One choice of each part, of the least cost that the bisection finds within so many bytes."""

    def at(price: float) -> list[Choice]:
        return [min(each, key=lambda choice: (choice.cost + price * choice.nbytes, choice.nbytes)) for each in options]

    def size(chosen: Sequence[Choice]) -> int:
        return sum(choice.nbytes for choice in chosen)

    chosen = at(0.0)
    if size(chosen) <= nbytes:
        return chosen
    low, high = 0.0, 1.0
    while size(at(high)) > nbytes:
        high *= 2
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if size(at(middle)) <= nbytes else (middle, high)
    return _spend(options, at(high), nbytes)


def _spend(options: Sequence[Sequence[Choice]], chosen: list[Choice], nbytes: int) -> list[Choice]:
    """Take better formats, the best for each byte first, as long as one fits into what is left."""
    left = nbytes - sum(choice.nbytes for choice in chosen)
    while True:
        better = [
            ((now.cost - choice.cost) / (choice.nbytes - now.nbytes), -index, choice)
            for index, (now, each) in enumerate(zip(chosen, options, strict=True))
            for choice in each
            if now.nbytes < choice.nbytes <= now.nbytes + left and choice.cost < now.cost
        ]
        if not better:
            return chosen
        _, index, choice = max(better, key=lambda each: each[:2])
        left -= choice.nbytes - chosen[-index].nbytes
        chosen[-index] = choice


def _write(model: Model, chosen: Sequence[Choice], budget: Budget, floors: Mapping[Component, int]) -> str:
    """The recipe's text."""
    lines = [
        f'summary = "made for {budget.words}: bits where each layer was measured to need them"',
        'description = """',
        f"Made for a budget of {budget.words}, {units.format_nbytes(budget.nbytes)} of weights. Formats were chosen by",
        "what each costs each layer: the change of the layer's output relative to the residual, mean over the",
        "calibration's tokens.",
        '"""',
    ]
    groups: dict[tuple[Component, int, Candidate], list[Choice]] = defaultdict(list)
    for choice in chosen:
        groups[choice.part.component, choice.part.columns, choice.candidate].append(choice)
    for (component, columns, candidate), choices in groups.items():
        lines += _rule(component, columns, candidate, choices)
    for component in dict.fromkeys(each.component for each in model.parameters if each.quantizable):
        least = max(DEFAULT_BITS.get(component, OTHER_BITS), floors.get(component, 0))
        bits = min(bits for bits in mlx.WIDTHS if bits >= least)
        lines += [
            "",
            f"# What of the {component} was not measured gets {bits} bits.",
            "[[rule]]",
            f'component = "{component}"',
            'mode = "affine"',
            f"bits = {bits}",
            "group_size = [64, 32]",
            "optional = true",
            f'note = "{component}"',
        ]
    lines += ["", "[[rule]]", 'match = "**"', 'mode = "published"', "optional = true", 'note = "the rest"', ""]
    return "\n".join(lines)


def _rule(component: Component, columns: int, candidate: Candidate, choices: Sequence[Choice]) -> list[str]:
    layers = ", ".join(str(choice.part.layer) for choice in choices)
    modules = [parameter.module for choice in choices for parameter in choice.part.parameters]
    costs = [choice.cost for choice in choices]
    spread = "nothing is lost" if not any(costs) else f"measured change {min(costs):.2e} to {max(costs):.2e}"
    lines = [
        "",
        f"# {component}, inputs of {columns}, layers {layers}: {spread}.",
        "[[rule]]",
        "match = [",
        *(f'  "{module}",' for module in modules),
        "]",
        f'mode = "{candidate.mode}"',
    ]
    if candidate.mode == "affine":
        lines += [f"bits = {candidate.bits}", f"group_size = [{', '.join(map(str, candidate.group_sizes))}]"]
    return [*lines, f'note = "{component}, inputs of {columns}"']
