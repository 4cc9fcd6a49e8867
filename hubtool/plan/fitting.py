"""Which weights have their scales fitted, and to what."""

from hubtool.checkpoint.statistics import Inputs, Statistics
from hubtool.errors import RecipeError, SourceError
from hubtool.models import Parameter
from hubtool.plan.format import FITTED_MODES, Format
from hubtool.plan.recipe import Recipe
from hubtool.plan.rule import Fit, Rule


def choose_fit(
    parameter: Parameter, form: Format, rule: Rule | None, recipe: Recipe, statistics: Statistics | None
) -> tuple[Fit, Inputs | None]:
    """How the scales of a parameter that is quantized are found, and what is known of its input.

    A rule that says nothing leaves it to whether there are statistics.

    Raises:
        RecipeError: The rule fits scales, and there are no statistics.
        SourceError: The statistics know the module with another width, or with blocks that do not share its rows.
    """
    asked = rule.fit if rule else None
    if asked == "weighted" and statistics is None:
        raise RecipeError(
            "scales are fitted to statistics, and there are none",
            where=f"{recipe.file}: {rule}",
            remedy="give --statistics FILE, as `hubtool calibrate` writes it",
        )
    inputs = statistics.inputs.get(parameter.module) if statistics else None
    if inputs is None or statistics is None:
        return "nearest", None
    rows, blocks = parameter.size // parameter.shape[-1], len(inputs.count)
    shared = rows % blocks == 0 and (blocks == 1 or blocks % len(parameter.parts) == 0)
    if inputs.channels != parameter.shape[-1] or not shared:
        raise SourceError(
            "statistics of another model",
            where=f"{statistics.path}: {parameter.module}",
            found=f"{blocks} inputs of {inputs.channels} channels",
            expected=f"{parameter.shape[-1]} channels for a weight of {list(parameter.shape)}",
            remedy="calibrate this model",
        )
    fitted = form.mode in FITTED_MODES and asked != "nearest"
    return ("weighted" if fitted else "nearest"), inputs
