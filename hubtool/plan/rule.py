"""A rule of a recipe: which parameters it is for, and how they are stored."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hubtool.models import Component, Parameter
from hubtool.plan.format import Format
from hubtool.plan.glob import compile_glob

LayerSelector = Literal["sensitive"]
Fit = Literal["nearest", "weighted"]
"""How codes, scales and biases are found: as `mx.quantize` does, or fitted to what calibration says of the inputs."""


@dataclass(frozen=True)
class Rule:
    """One rule of a recipe: which parameters it is for, and how they are stored.

    Attributes:
        number: Its place in the recipe, from 1.
        format: What it does; of `group_sizes`, it names the first.
        patterns: Module paths; `*` stands for one or part of one name between dots, `**` for any number of them. None
            is for any path.
        components: Parts of the model; none is for any.
        layers: Restricts it to a set of layers.
        without: Restricts it to models that have no such component.
        group_sizes: In order of preference: the first that divides a row is taken.
        lenient: Whether what no group size divides stays as published; else it is an error.
        overrule: Whether it holds even where the model's own class asks for another format.
        optional: Whether it may match nothing.
        note: Why, in the recipe author's words.
        fit: How scales are found, None if that depends on whether there are statistics.
    """

    number: int
    format: Format
    patterns: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()
    layers: LayerSelector | None = None
    without: Component | None = None
    group_sizes: tuple[int, ...] = ()
    lenient: bool = False
    overrule: bool = False
    optional: bool = False
    note: str = ""
    fit: Fit | None = None

    def matches(self, parameter: Parameter, num_layers: int, components: Collection[Component]) -> bool:
        """Whether the rule is for a parameter of a model of `num_layers` layers that has these `components`."""
        layer = parameter.layer
        if self.layers and (layer is None or not LAYER_SELECTORS[self.layers](layer, num_layers)):
            return False
        if self.without in components or (self.components and parameter.component not in self.components):
            return False
        subject = parameter.subject
        return not self.patterns or any(matches(subject) for matches in self._matchers)

    @cached_property
    def _matchers(self) -> tuple[Callable[[str], bool], ...]:
        return tuple(compile_glob(pattern) for pattern in self.patterns)

    @property
    def selection(self) -> str:
        """What it is for, as people say it: `routed experts, **.down_proj`."""
        return ", ".join([*self.components, *self.patterns])

    @property
    def scope(self) -> str:
        """To which layers and models it is restricted, empty if to none: `sensitive layers`."""
        limits = [f"{self.layers} layers"] if self.layers else []
        return ", ".join([*limits, f"without {self.without}"] if self.without else limits)

    @property
    def stored_as(self) -> str:
        """Its format with all group sizes that may be taken: `affine 3-bit, group 128, 64 or 32`."""
        *others, last = self.group_sizes or (0,)
        if not others:
            return str(self.format)
        return f"{self.format.mode} {self.format.bits}-bit, group {', '.join(map(str, others))} or {last}"

    def __str__(self) -> str:
        """As messages name it: `rule 3 (lm_head)`."""
        return f"rule {self.number} ({', '.join(filter(None, [self.selection, self.scope]))})"


def is_sensitive(layer: int, num_layers: int) -> bool:
    """Whether a layer's `down_proj` gets the high bits of a mixed recipe.

    The first and last eighth and every third layer between, as mlx-lm's mixed recipes choose them
    (`use_more_bits` of mlx_lm/convert.py, which follows llama.cpp).
    """
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


LAYER_SELECTORS: Mapping[LayerSelector, Callable[[int, int], bool]] = {"sensitive": is_sensitive}
