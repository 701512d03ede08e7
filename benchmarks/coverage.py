"""How often the tables' intervals hold a difference of zero, and how small p then is: benchmarks/coverage.py [--keep].

Patients, seeds and rest are normal. A site's patients differ from each other by a standard deviation of 1, a patient's
values between seeds by 0.3. Beside the intervals stand percentiles of a bootstrap, which the tables had before.
"""

import argparse

import numpy as np
from machine import Table, keepable, publish
from numpy.random import Generator
from numpy.typing import NDArray

from pfedsam.record.cases import Classes
from pfedsam.report.uncertainty import chance, interval

DESIGNS = {  # test patients of each site, number of seeds, deviation of the seeds
    "nuclei_he": ((2, 2, 2, 2, 2, 4), 3, 0.4),
    "nuclei_he, seeds far apart": ((2, 2, 2, 2, 2, 4), 3, 1.5),
    "brain_mri": ((2, 9, 6), 3, 0.4),
    "breast_us": ((7, 13, 8, 6), 3, 0.4),
    "polyp_hospitals": ((14, 4, 4, 60), 3, 0.4),
    "one site, two seeds": ((6,), 2, 0.4),
    "one site, one seed": ((4,), 1, 0.0),
}
ROWS = 15  # of a table
RARE = 0.05 / ROWS  # what Holm asks of the first of them
REST = 0.3
Runs = list[dict[str, Classes]]


def main() -> None:
    """Draw, count, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000)
    options = keepable(parser).parse_args()
    rng = np.random.default_rng(0)
    rows = [[name, *counted(rng, *design, options.tries)] for name, design in DESIGNS.items()]
    names = [f"{what}, {way}" for what in ("holds 0", f"p < 0.05 / {ROWS}") for way in ("t", "percentiles")]
    note = f"{options.tries} made differences a row, all zero in truth. Right would be 95 % and {5 / ROWS:.1f} %."
    table = Table({"as": "", **dict.fromkeys(names, ".1%")}, rows)
    publish("How often intervals hold the truth", table, notes=[note], keep=options.keep)


def counted(rng: Generator, sites: tuple[int, ...], seeds: int, apart: float, tries: int) -> list[str | float]:
    """The shares under the columns."""
    found = []
    for _ in range(tries):
        runs = made(rng, sites, seeds, apart)
        low, high = interval(runs, within=(-np.inf, np.inf))
        draws = bootstrapped(rng, runs)
        least, most = np.percentile(draws, [2.5, 97.5])
        rarer = 2 * min((draws <= 0).mean(), (draws >= 0).mean())
        found.append((low <= 0 <= high, least <= 0 <= most, chance(runs) < RARE, rarer < RARE))
    return [float(share) for share in np.mean(found, 0)]


def made(rng: Generator, sites: tuple[int, ...], seeds: int, apart: float) -> Runs:
    """A paired difference of each seed whose true mean is zero."""
    own = [rng.normal(size=count) for count in sites]
    shifts = apart * rng.normal(size=seeds)
    return [
        {
            str(i): [{str(j): [value + shift + REST * rng.normal()] for j, value in enumerate(values)}]
            for i, values in enumerate(own)
        }
        for shift in shifts
    ]


def bootstrapped(
    rng: np.random.Generator, runs: Runs, draws: int = 1000
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mean in each draw of all but one of the patients of a site, and of all but one of the seeds, (draws,)."""
    means = np.zeros((len(runs), draws))
    for site in runs[0]:
        values = np.array([[value for (value,) in run[site][0].values()] for run in runs])
        count = values.shape[1]
        means += values[:, rng.integers(0, count, (draws, max(1, count - 1)))].mean(-1) / len(runs[0])
    picks = rng.integers(0, len(runs), (draws, max(1, len(runs) - 1)))
    found: NDArray[np.float64] = np.take_along_axis(means.T, picks, 1).mean(1)
    return found


if __name__ == "__main__":
    main()
