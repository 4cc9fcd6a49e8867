"""What a rung finds, before it is known where and when it was found."""

from dataclasses import dataclass, field

from hubtool.record import Outcome


@dataclass(frozen=True)
class Finding:
    """A rung's outcome, a sentence on it, and figures by name with the unit in the name."""

    outcome: Outcome
    detail: str
    figures: dict[str, int | float | str] = field(default_factory=dict)
