"""Intervals by drawing patients anew."""

import numpy as np

DRAWS = 5000
Groups = dict[str, list[float]]  # by patient (group): the values of its cases


def interval(sites: dict[str, Groups], seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean over sites when each site's patients are drawn anew."""
    rng = np.random.default_rng(seed)
    total = np.zeros(DRAWS)
    for of_site in sites.values():
        sums, counts = (np.array([fold(group) for group in of_site.values()]) for fold in (sum, len))
        picks = rng.integers(0, len(sums), (DRAWS, len(sums)))
        total += sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(total / len(sites), [2.5, 97.5])
    return float(low), float(high)
