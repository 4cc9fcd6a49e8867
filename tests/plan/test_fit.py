"""Recipes for a budget: within it, never worse than another choice of the same size, and deterministic."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest

from hubtool.checkpoint.open import open_source
from hubtool.errors import UsageError
from hubtool.models import Component, Model, read_model
from hubtool.plan.fit import Budget, Costs, fit_recipe
from hubtool.plan.parts import Part, parts_of
from hubtool.plan.plan import Plan, make_plan
from hubtool.plan.recipe import parse_recipe
from tests.fixtures import Samples


@pytest.fixture(scope="module")
def model(sample: Samples) -> Model:
    """The `mini` sample: FP4 experts, FP8 attention."""
    source = open_source(str(sample("mini")))
    return read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})


def made_up_costs(model: Model, seed: int = 0) -> Costs:
    """A cost for each format that falls by four with each bit, of parts that differ by magnitudes."""
    random = np.random.default_rng(seed)
    costs = {}
    for part in parts_of(model):
        need = float(np.exp(2 * random.standard_normal()))
        for candidate in part.candidates(last_resort=True):
            costs[part.name, candidate.name] = need * 4.0**-candidate.bits * (1 + candidate.group_sizes[0] / 256)
    return costs


def planned(model: Model, costs: Costs, nbytes: int, floors: dict[Component, int] | None = None) -> Plan:
    text = fit_recipe(model, costs, Budget(nbytes, f"{nbytes} bytes"), floors or {})
    assert text == fit_recipe(
        model, dict(reversed(list(costs.items()))), Budget(nbytes, f"{nbytes} bytes"), floors or {}
    )
    return make_plan(model, parse_recipe(text, "fit.toml"))


def cost_of(plan: Plan, costs: Costs) -> float:
    """What a plan's formats cost by what was measured."""
    stored = {step.parameter.path: step.format for step in plan.steps}
    total = 0.0
    for part in parts_of(plan.model):
        form = stored[part.parameters[0].path]
        (candidate,) = (each for each in part.candidates(last_resort=True) if each.format(part.columns) == form)
        if not all(candidate.keeps(parameter) for parameter in part.parameters):
            total += costs[part.name, candidate.name]
    return total


def bounds(model: Model, costs: Costs) -> tuple[int, int]:
    """Bytes of the smallest and the best recipe."""
    best = planned(model, costs, 1 << 50).nbytes
    with pytest.raises(UsageError) as refused:
        planned(model, costs, 1)
    least = int(str(refused.value.expected).split(" bytes")[0].removeprefix("at least ").replace(",", ""))
    return least, best


def test_budget_is_kept_and_every_byte_lowers_the_cost(model: Model) -> None:
    costs = made_up_costs(model)
    least, best = bounds(model, costs)
    assert planned(model, costs, least).nbytes == least
    with pytest.raises(UsageError, match="no recipe is within the budget"):
        planned(model, costs, least - 1)
    sizes = np.linspace(least, best, 12).astype(int)
    plans = [planned(model, costs, int(size)) for size in sizes]
    for size, plan in zip(sizes, plans, strict=True):
        assert plan.nbytes <= size
    two_bits = [any(step.format.bits == 2 for step in plan.steps) for plan in plans]
    assert two_bits == sorted(two_bits, reverse=True)  # taken only where nothing else fits
    assert two_bits[0] > two_bits[-1]
    for last_resort in (True, False):
        spent = [cost_of(plan, costs) for plan, two in zip(plans, two_bits, strict=True) if two is last_resort]
        assert all(later < earlier for earlier, later in itertools.pairwise(spent))
        assert spent[-1] < spent[0] / 4


def test_choice_is_near_the_best_of_all(model: Model) -> None:
    costs = made_up_costs(model, seed=3)
    least, best = bounds(model, costs)
    for share in (0.4, 0.6, 0.9):
        plan = planned(model, costs, int(least + share * (best - least)))
        chosen = cost_of(plan, costs)
        # No single exchange of two parts' formats within the bytes makes it cheaper by a tenth.
        current: dict[str, tuple[Part, int, float]] = {}
        stored = {step.parameter.path: step.format for step in plan.steps}
        for part in parts_of(model):
            form = stored[part.parameters[0].path]
            candidate = next(each for each in part.candidates(last_resort=True) if each.format(part.columns) == form)
            kept = all(candidate.keeps(parameter) for parameter in part.parameters)
            current[part.name] = (
                part,
                candidate.nbytes(part.parameters),
                0 if kept else costs[part.name, candidate.name],
            )
        allowed = any(step.format.bits == 2 for step in plan.steps)
        for (a, size_a, cost_a), (b, size_b, cost_b) in itertools.permutations(current.values(), 2):
            for x, y in itertools.product(a.candidates(last_resort=allowed), b.candidates(last_resort=allowed)):
                if x.nbytes(a.parameters) + y.nbytes(b.parameters) > size_a + size_b:
                    continue
                new = [
                    0 if all(map(each.keeps, part.parameters)) else costs[part.name, each.name]
                    for part, each in ((a, x), (b, y))
                ]
                assert chosen + sum(new) - cost_a - cost_b > 0.9 * chosen


def test_floors_hold_and_the_recipe_says_why(model: Model) -> None:
    costs = made_up_costs(model)
    least, best = bounds(model, costs)
    floors = {Component.ATTENTION: 6, Component.EMBEDDINGS: 8}
    text = fit_recipe(model, costs, Budget(best, "1MB"), floors)
    plan = make_plan(model, parse_recipe(text, "fit.toml"))
    for step in plan.steps:
        if step.parameter.component in floors and step.format.quantized:
            assert step.format.bits >= floors[step.parameter.component], step.parameter.path
    assert "made for 1MB" in tomllib.loads(text)["summary"]
    assert "measured change" in text
    with pytest.raises(UsageError, match="at least"):
        planned(model, costs, least, {Component.ATTENTION: 8})


def test_fp4_is_kept_before_anything_else_is_tried(model: Model) -> None:
    costs = made_up_costs(model)
    plan = planned(model, costs, 1 << 50)
    experts = [step for step in plan.steps if step.parameter.component is Component.ROUTED_EXPERTS]
    assert {step.how for step in experts} == {"repack"}
    for part in parts_of(model):
        if part.component is Component.ROUTED_EXPERTS:
            assert [each.name for each in part.candidates()] == ["mxfp4", "affine-3-128"]


def test_costs_that_were_not_measured_are_refused(model: Model, tmp_path: Path) -> None:
    costs = made_up_costs(model)
    part = parts_of(model)[0]
    missing = {key: cost for key, cost in costs.items() if key[0] != part.name}
    with pytest.raises(UsageError, match=r"calibrate --sensitivity"):
        planned(model, missing, 1 << 50)
