"""Intervals by drawing patients anew."""

import statistics as st
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

DRAWS = 5000
Groups = dict[str, list[float]]  # by patient (group): the values of its cases
Classes = list[Groups]  # of each class that was scored


def mean_of(sites: dict[str, Classes]) -> float:
    """Over cases within a class, then over classes, then over sites: as results.json has it."""
    return st.mean(st.mean(st.mean(chain(*groups.values())) for groups in classes) for classes in sites.values())


def interval(sites: dict[str, Classes], seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of `mean_of` when each site's patients are drawn anew.

    A class that none of a draw's patients has is left out of that draw's mean.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(DRAWS)
    for classes in sites.values():
        patients = list(dict.fromkeys(patient for groups in classes for patient in groups))
        picks = rng.integers(0, len(patients), (DRAWS, len(patients)))
        total += np.nanmean([_drawn(groups, patients, picks) for groups in classes], 0)
    low, high = np.percentile(total / len(sites), [2.5, 97.5])
    return float(low), float(high)


def _drawn(groups: Groups, patients: list[str], picks: npt.NDArray[np.int64]) -> Any:
    """One class's mean in each draw, (DRAWS,); not a number where no drawn patient has the class."""
    sums, counts = (np.array([fold(groups.get(patient, [])) for patient in patients]) for fold in (sum, len))
    with np.errstate(invalid="ignore"):
        return sums[picks].sum(1) / counts[picks].sum(1)
