"""What a conversion is to do: a plan and its folder, and how hard to work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hubtool import units
from hubtool.errors import UsageError
from hubtool.plan.plan import Plan, peak_nbytes

ERROR_ROWS = 64
"""By default the error of every 64th row of a piece is measured: less than 2 % of the work of quantizing."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How a conversion works.

    Attributes:
        jobs: Pieces that are made at once, at most.
        memory_limit: Most memory of the process in bytes: fewer jobs are taken, or none.
        error_rows: Every how many-th row's error is measured: 1 for all, 0 for none.
    """

    jobs: int = 2
    memory_limit: int | None = None
    error_rows: int = ERROR_ROWS

    def affordable_jobs(self, plans: Sequence[Plan]) -> int:
        """As many jobs as the memory limit allows.

        Raises:
            UsageError: It does not allow one.
        """
        if self.memory_limit is None:
            return self.jobs
        for jobs in range(self.jobs, 0, -1):
            if peak_nbytes(plans, jobs) <= self.memory_limit:
                return jobs
        raise UsageError(
            "too little memory for one job",
            where="--memory-limit",
            found=units.format_nbytes(self.memory_limit),
            expected=f"at least {units.format_nbytes(peak_nbytes(plans, 1))}",
            remedy="raise it, or convert fewer recipes at once",
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A plan and the folder it is carried out in."""

    plan: Plan
    folder: Path
