"""Bounds on each site's contribution, whatever the rule makes of them: its weight and its length."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean, median

from pfedsam.config import Config
from pfedsam.exchange.change import A, B, change_of, paired
from pfedsam.exchange.server import Contribution, Given, ServerState
from pfedsam.tensors import Tensors

MAJORITY = 3  # sites from which on one of them can be outvoted
FAR = 3.0  # times the round's median, from which on an update is left out
MORE = 10.0  # times the steps of the median site that a site's samples may explain; our choice
KINDS = ("product", "a", "b", "rest")  # of `Change.sizes`
Sizes = Mapping[str, Mapping[str, float]]  # lengths by site and kind


def fair(given: Given, most: float, sites: int = 0) -> Given:
    """The contributions, none with a weight of more than `most` equal shares. In a run of three sites or more.

    Args:
        most: in parts of 1 / n, at least 1.
        sites: of the run, if it has more than answered.
    """
    samples = _capped({site: one.samples for site, one in given.items()}, most, sites)
    return {site: replace(one, samples=samples[site]) for site, one in given.items()}


def shares(weights: Mapping[str, float], *, most: float, sites: int = 0, least: float = 0.0) -> dict[str, float]:
    """The sites' weights scaled to a sum of 1, bounded as in `fair`.

    Args:
        least: a weight's least, in equal shares. 0: none.
    """
    floor = least * sum(weights.values()) / max(len(weights), 1)
    capped = _capped({site: max(weight, floor) for site, weight in weights.items()}, most, sites)
    whole = sum(capped.values())
    return {site: weight / whole for site, weight in sorted(capped.items())}


def with_new(known: Mapping[str, float], given: Given) -> dict[str, float]:
    """The known sites' weights, and for a site that is new as much a sample as those that answered beside it have.

    If none did, the new ones weigh as much as the known ones do in the mean.
    """
    samples = {site: one.samples for site, one in given.items()}
    beside = [site for site in samples if site in known]
    if beside:
        each = sum(known[site] for site in beside) / sum(samples[site] for site in beside)
    else:
        each = fmean(known.values() or [1 / len(samples)]) * len(samples) / sum(samples.values())
    return {**known, **{site: each * count for site, count in samples.items() if site not in known}}


def _capped(weights: Mapping[str, float], most: float, sites: int) -> dict[str, float]:
    """The weights, none above `most` equal shares of their sum.

    A weight above that becomes that. The others keep their proportions, and share alike if they weigh nothing. Two
    sites cannot outvote each other. But if two answer in a run of more, shares are those of three.
    """
    bound = max(most / max(len(weights), MAJORITY), 1 / max(len(weights), 1))
    free = max(len(weights), sites) < MAJORITY or bound >= 1
    rest, left = dict(weights), 1.0
    while True:  # each turn caps at least one site more
        rest = rest if any(rest.values()) else dict.fromkeys(rest, 1.0)
        whole = sum(rest.values())
        over = {site for site, n in rest.items() if not free and n / whole * left > bound * (1 + 1e-9)}
        if not over:
            return {site: rest.get(site, whole / left * bound) for site in weights}
        rest = {site: n for site, n in rest.items() if site not in over}
        left = 1 - bound * (len(weights) - len(rest))


def sizes_of(state: ServerState, given: Given) -> Sizes:
    """The lengths of the updates by site and kind, as `Change.sizes` measures them."""
    return {site: change_of(state.model_of(site), one.update).sizes() for site, one in given.items()}


def noted(state: ServerState, sizes: Sizes, sites: int) -> ServerState:
    """The state that knows how many sites the run has, and how long an update is if enough answered to tell.

    Args:
        sizes: of all that answered, those too that are left out. Empty: lengths are not bounded.
        sites: that the run is known to have.
    """
    return replace(state, sites=sites, usual=_medians(sizes) if len(sizes) >= MAJORITY else state.usual)


def left_out(sizes: Sizes, given: Given, config: Config) -> dict[str, str]:
    """The sites whose update is no honest one's, with the reason: it is `FAR` times as long as the round's median.

    Both the norm itself and the norm for each step that its samples allow must be that long, because a site with many
    more images may move further, and one with few images moves further in each step. No samples allow more than `MORE`
    times the median's steps. From three answers on. Our choice: honest updates of three federations of hospitals were
    at most 1.5 times as long as the median.
    """
    if len(sizes) < MAJORITY:
        return {}
    works = {site: _work(one.samples, config) for site, one in given.items()}
    most = MORE * median(works.values())
    works = {site: min(work, most) for site, work in works.items()}
    found: dict[str, str] = {}
    for kind, usual in _medians(sizes).items():
        a_step = median(sizes[site][kind] / works[site] for site in given)
        for site in given:
            size = sizes[site][kind]
            if size > FAR * usual and size / works[site] > FAR * a_step:
                found.setdefault(site, _too_long(size / usual if usual else math.inf))
    return found if 2 * len(found) < len(given) else {}  # nobody knows who of so many is honest; all are cut


def _medians(sizes: Sizes) -> dict[str, float]:
    return {kind: middle(size[kind] for size in sizes.values()) for kind in KINDS}


def middle(lengths: Iterable[float]) -> float:
    """The median. Of two the shorter: nobody knows who of two is honest, and a short update does no harm."""
    known = sorted(lengths)
    return median(known) if len(known) >= MAJORITY else known[0]


def _too_long(times: float) -> str:
    return f"expected an update of about the others' length, came one {times:.3g} times as long as their median"


def _work(samples: float, config: Config) -> float:
    """What a round's steps are in proportion to: a site's samples, up to those of `train.max_steps`."""
    train = config.train
    most = math.inf if train.max_steps is None else train.max_steps * train.batch_size / train.epochs
    return max(1.0, min(samples, most))


def clipped(state: ServerState, given: Given, sizes: Sizes) -> Given:
    """The contributions, none with an update longer than the round's median. In a run of three sites or more.

    If fewer than three are left in a round, the lengths of the last round count in which three answered. Without one
    the shorter of two counts.

    LoRA's update is scaled as a whole by the least of three ratios: of the product's norm and of both factors' norms
    to their medians. The rest has a ratio of its own. The bound is our choice; norm bounding is of Sun et al. 2019.

    Args:
        state: as `noted` gives it.
        sizes: of these contributions at least.
    """
    if max(len(given), state.sites) < MAJORITY or not given:
        return given
    bounds = state.usual if len(given) < MAJORITY else {}
    bounds = bounds or _medians({site: sizes[site] for site in given})
    return {site: _shortened(one, sizes[site], bounds) for site, one in given.items()}


def _shortened(one: Contribution, size: Mapping[str, float], bounds: Mapping[str, float]) -> Contribution:
    ratio = {kind: bounds[kind] / size[kind] if size[kind] > bounds[kind] else 1.0 for kind in size}
    lora = min(ratio["product"], ratio["a"], ratio["b"])
    if lora == ratio["rest"] == 1.0:
        return one
    return replace(one, opened=lambda: _scaled(one.opened(), lora, ratio["rest"]))


def _scaled(update: Tensors, lora: float, rest: float) -> Tensors:
    pairs = {name.removesuffix(end) for end in (A, B) for name in update if name.endswith(end)}
    whole = {stem for stem in pairs if stem + A in update and stem + B in update}
    return {name: tensor * (lora if paired(name, whole) else rest) for name, tensor in update.items()}
