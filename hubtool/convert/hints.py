"""What a quantizer may know of a matrix beside its values."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Hints:
    """What calibration and the source say of some rows of a matrix.

    Attributes:
        moments: What each input channel is worth: the mean square of its inputs, float32 [in]; None if not known.
        from_fp4: Whether the source stores the rows in FP4.
    """

    moments: npt.NDArray[np.float32] | None = None
    from_fp4: bool = False
