"""Intervals by drawing patients anew, and seeds where there are several."""

import statistics as st
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from pfedsam.record.cases import Classes, Groups

DRAWS = 5000


def mean_of(sites: dict[str, Classes]) -> float:
    """Over cases within a class, then over classes, then over sites: as results.json has it."""
    return st.mean(st.mean(st.mean(chain(*groups.values())) for groups in classes) for classes in sites.values())


def interval(runs: Sequence[dict[str, Classes]], seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of `mean_of`, averaged over runs, when patients and runs are drawn anew.

    Each site's patients are drawn, the same for all runs, and then the runs: one less of either than there are, so
    that the variance is that of the mean (McCarthy and Snowden 1985) and not (n - 1) / n of it, which at a site with
    two patients is half. A site with one patient, or one run, adds no width: what it would be is not known.
    A class that none of a draw's patients has is left out of that draw's mean.

    Args:
        runs: one a seed, of the same sites.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros((len(runs), DRAWS))
    for site in runs[0]:
        patients = list(dict.fromkeys(patient for run in runs for groups in run[site] for patient in groups))
        picks = _picks(rng, len(patients))
        means += [np.nanmean([_drawn(groups, patients, picks) for groups in run[site]], 0) for run in runs]
    drawn = np.take_along_axis(means.T / len(runs[0]), _picks(rng, len(runs)), 1).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _picks(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Which of `count` are in each draw, (DRAWS, one less)."""
    return rng.integers(0, count, (DRAWS, max(1, count - 1)))


def _drawn(groups: Groups, patients: list[str], picks: npt.NDArray[np.int64]) -> Any:
    """One class's mean in each draw, (DRAWS,); not a number where no drawn patient has the class."""
    sums, counts = (np.array([fold(groups.get(patient, [])) for patient in patients]) for fold in (sum, len))
    with np.errstate(invalid="ignore"):
        return sums[picks].sum(1) / counts[picks].sum(1)
