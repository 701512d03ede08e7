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
    If no drawn patient has a class, that draw's mean leaves the class out. Patients with many cases pull a draw's mean:
    the interval then lies beside the mean, but holds the truth more often than one that is centred (docs/research.md).

    Args:
        runs: one per seed, with the same sites.
    """
    low, high = np.percentile(means(runs, seed), [2.5, 97.5])
    return float(low), float(high)


def chance(runs: Sequence[dict[str, Classes]], seed: int = 0) -> float:
    """The two-sided p value of a mean difference, from the same draws: twice the share on the rarer side of zero.

    It is 1 if all draws are equal, as with one patient a site: the spread is unknown then, and not zero.
    """
    drawn = means(runs, seed)
    if drawn.min() == drawn.max():
        return 1.0
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return min(1.0, 2 * (float(rarer) + 1) / (DRAWS + 1))


def holm(chances: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, never less."""
    found, least = [0.0] * len(chances), 0.0
    for done, i in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        found[i] = least = max(least, min(1.0, chances[i] * (len(chances) - done)))
    return found


def means(runs: Sequence[dict[str, Classes]], seed: int = 0) -> Any:
    """The mean of each draw, (DRAWS,). The arguments are those of `interval`, which says how it draws."""
    rng = np.random.default_rng(seed)
    found = np.zeros((len(runs), DRAWS))
    for site in runs[0]:
        patients = list(dict.fromkeys(patient for run in runs for groups in run[site] for patient in groups))
        picks = _picks(rng, len(patients))
        found += [np.nanmean([_drawn(groups, patients, picks) for groups in run[site]], 0) for run in runs]
    return np.take_along_axis(found.T / len(runs[0]), _picks(rng, len(runs)), 1).mean(1)


def _picks(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """The indices out of `count` in each draw, (DRAWS, count - 1)."""
    return rng.integers(0, count, (DRAWS, max(1, count - 1)))


def _drawn(groups: Groups, patients: list[str], picks: npt.NDArray[np.int64]) -> Any:
    """One class's mean in each draw, (DRAWS,); NaN if no drawn patient has the class."""
    sums, counts = (np.array([fold(groups.get(patient, [])) for patient in patients]) for fold in (sum, len))
    with np.errstate(invalid="ignore"):
        return sums[picks].sum(1) / counts[picks].sum(1)
