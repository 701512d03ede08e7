"""What the numbers stored in a mask are: whole, however a format carries them, and one value where nobody labelled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = 255  # in a mask that `prepare` wrote or `read_mask` read: a pixel that nobody labelled
CLOSE = 1e-3  # so far from a whole number may a format's slope move a class


def whole_numbers(values: NDArray[Any]) -> NDArray[Any] | None:
    """The values rounded to whole numbers; None if one is further from it than `CLOSE`, or is not finite."""
    if values.dtype.kind != "f":
        return values
    numbers = np.rint(values)
    close = np.isfinite(values).all() and (np.abs(values - numbers) <= CLOSE).all()
    return numbers if close else None
