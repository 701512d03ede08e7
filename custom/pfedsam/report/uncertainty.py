"""Intervals and p values of means over patients, and over seeds if there are several."""

import math
import statistics as st
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy import stats

from pfedsam.record.cases import Classes, Groups

DRAWS = 5000
COVERED = 0.95


def mean_of(sites: dict[str, Classes]) -> float:
    """The mean over cases within a class, then over classes, then over sites, as in results.json."""
    return st.mean(st.mean(st.mean(chain(*groups.values())) for groups in classes) for classes in sites.values())


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty, of parts that are independent: each site's patients, and the seeds.

    Attributes:
        mean: over runs.
        parts: the variance of the mean that each part contributes, and its degrees of freedom.
    """

    mean: float
    parts: tuple[tuple[float, int], ...]

    @cached_property
    def error(self) -> float:
        """The standard error; 0 if no part's spread is known."""
        return math.sqrt(sum(variance for variance, _ in self.parts))

    @cached_property
    def freedom(self) -> float:
        """The degrees of freedom (Satterthwaite 1946): few where the widest part has few patients or seeds."""
        return float(self.error**4 / sum(variance**2 / free for variance, free in self.parts))


def estimate(runs: Sequence[dict[str, Classes]], seed: int = 0) -> Estimate:
    """The mean of `mean_of` over runs, and where its uncertainty comes from.

    A site's part is the variance over draws of its patients, the same for all runs. Each draw has one less than there
    are. Its variance is then that of the mean (McCarthy and Snowden 1985) instead of (n - 1) / n of it, which is half
    with two patients. If no drawn patient has a class, that draw's mean leaves the class out. The runs' part is the
    variance of their means. A site with one patient, or a single run, has no part, because its spread is unknown.

    Args:
        runs: one per seed, with the same sites.
    """
    rng, parts = np.random.default_rng(seed), []
    for site in runs[0]:
        patients = list(dict.fromkeys(patient for run in runs for groups in run[site] for patient in groups))
        if len(patients) > 1:
            picks = rng.integers(0, len(patients), (DRAWS, len(patients) - 1))
            of_runs = [np.nanmean([_drawn(groups, patients, picks) for groups in run[site]], 0) for run in runs]
            parts.append((float(np.mean(of_runs, 0).var()) / len(runs[0]) ** 2, len(patients) - 1))
    means = [mean_of(run) for run in runs]
    if len(runs) > 1:
        parts.append((st.variance(means) / len(runs), len(runs) - 1))
    return Estimate(st.mean(means), tuple(part for part in parts if part[0] > 0))


def interval(
    runs: Sequence[dict[str, Classes]], seed: int = 0, *, within: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float]:
    """The 95 % interval of the mean, by Student's t with the degrees of freedom of `Estimate`.

    Percentiles of draws are too narrow with a handful of patients or seeds: docs/research.md has the figures.
    It is the mean alone if no part's spread is known.

    Args:
        runs: as for `estimate`.
        within: the values' range, which cuts it off. By default that of a difference in Dice.
    """
    found, (least, most) = estimate(runs, seed), within
    reach = float(stats.t.ppf((1 + COVERED) / 2, found.freedom)) * found.error if found.parts else 0.0
    return max(least, found.mean - reach), min(most, found.mean + reach)


def chance(runs: Sequence[dict[str, Classes]], seed: int = 0) -> float:
    """The two-sided p value of a mean difference by the same t. It is 1 if no part's spread is known."""
    found = estimate(runs, seed)
    return 2 * float(stats.t.sf(abs(found.mean) / found.error, found.freedom)) if found.parts else 1.0


def holm(chances: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, never less."""
    found, least = [0.0] * len(chances), 0.0
    for done, i in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        found[i] = least = max(least, min(1.0, chances[i] * (len(chances) - done)))
    return found


def _drawn(groups: Groups, patients: list[str], picks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One class's mean in each draw, (DRAWS,); NaN if no drawn patient has the class."""
    sums, counts = (np.array([fold(groups.get(patient, [])) for patient in patients]) for fold in (sum, len))
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = sums[picks].sum(1) / counts[picks].sum(1)
    return found
