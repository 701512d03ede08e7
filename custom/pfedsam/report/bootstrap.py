"""Intervals from drawing patients again, and seeds if there are several."""

import statistics as st
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from pfedsam.record.cases import Classes, Groups

DRAWS = 5000


def mean_of(sites: dict[str, Classes]) -> float:
    """The mean over cases within a class, then over classes, then over sites, as in results.json."""
    return st.mean(st.mean(st.mean(chain(*groups.values())) for groups in classes) for classes in sites.values())


def interval(runs: Sequence[dict[str, Classes]], seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean of `mean_of` over runs, with patients and runs drawn again.

    Each site's patients are drawn, the same for all runs, then the runs. Each draw has one less than there are. The
    variance is then that of the mean (McCarthy and Snowden 1985) instead of (n - 1) / n of it, which is half with
    two patients. A site with one patient, or a single run, adds no width, because its spread is unknown.
    If no drawn patient has a class, that draw's mean leaves the class out.

    Args:
        runs: one per seed, with the same sites.
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
    """The indices out of `count` in each draw, (DRAWS, count - 1)."""
    return rng.integers(0, count, (DRAWS, max(1, count - 1)))


def _drawn(groups: Groups, patients: list[str], picks: npt.NDArray[np.int64]) -> Any:
    """One class's mean in each draw, (DRAWS,); NaN if no drawn patient has the class."""
    sums, counts = (np.array([fold(groups.get(patient, [])) for patient in patients]) for fold in (sum, len))
    with np.errstate(invalid="ignore"):
        return sums[picks].sum(1) / counts[picks].sum(1)
