"""Bounds on each site's contribution, whatever the rule makes of them: its weight and its length."""

import math
from dataclasses import replace
from statistics import median

from pfedsam.config import Config
from pfedsam.exchange.change import A, B, change_of, paired
from pfedsam.exchange.server import Contribution, Given, ServerState
from pfedsam.files import Tensors

MAJORITY = 3  # sites from which on one of them can be outvoted
FAR = 3.0  # times the round's median, from which on an update is left out
KINDS = ("product", "a", "b", "rest")  # of `Change.sizes`


def fair(given: Given, most: float) -> Given:
    """The contributions, none with a weight of more than `most` equal shares. From three sites on.

    A weight above that becomes that. The others keep their proportions. Two sites cannot outvote each other.

    Args:
        most: in parts of 1 / n, at least 1.
    """
    bound = most / len(given) if given else 1.0
    if len(given) < MAJORITY or bound >= 1:
        return given
    samples = {site: float(one.samples) for site, one in given.items()}
    capped: set[str] = set()
    while True:  # each turn caps at least one site more
        free = sum(n for site, n in samples.items() if site not in capped)
        left = 1 - bound * len(capped)
        over = {s for s, n in samples.items() if s not in capped and free and n / free * left > bound * (1 + 1e-9)}
        if not over:
            break
        capped |= over
    each = free / left * bound if left > 0 and free else 1.0
    return {site: replace(one, samples=each if site in capped else one.samples) for site, one in given.items()}


def left_out(state: ServerState, given: Given, config: Config) -> dict[str, str]:
    """The sites whose update is no honest one's, with the reason: it is `FAR` times as long as the round's median.

    Both the norm itself and the norm for each step that its samples allow must be that long, because a site with many
    more images may move further, and one with few images moves further in each step. From three sites on. Our choice:
    honest updates of three federations of hospitals were at most 1.5 times as long as the median.
    """
    if len(given) < MAJORITY:
        return {}
    sizes = {site: change_of(state.model_of(site), one.update).sizes() for site, one in given.items()}
    works = {site: _work(one.samples, config) for site, one in given.items()}
    found: dict[str, str] = {}
    for kind in KINDS:
        usual = median(size[kind] for size in sizes.values())
        a_step = median(sizes[site][kind] / works[site] for site in given)
        for site, size in sizes.items():
            if size[kind] > FAR * usual and size[kind] / works[site] > FAR * a_step:
                found.setdefault(site, _too_long(size[kind] / usual if usual else math.inf))
    return found if 2 * len(found) < len(given) else {}  # nobody knows who of so many is honest; all are cut


def _too_long(times: float) -> str:
    return f"expected an update of about the others' length, came one {times:.3g} times as long as their median"


def _work(samples: float, config: Config) -> float:
    """What a round's steps are in proportion to: a site's samples, up to those of `train.max_steps`."""
    train = config.train
    most = math.inf if train.max_steps is None else train.max_steps * train.batch_size / train.epochs
    return max(1.0, min(samples, most))


def clipped(state: ServerState, given: Given) -> Given:
    """The contributions, none with an update longer than the round's median. From three sites on.

    LoRA's update is scaled as a whole by the least of three ratios: of the product's norm and of both factors' norms
    to their medians. The rest has a ratio of its own. The bound is our choice; norm bounding is of Sun et al. 2019.
    """
    if len(given) < MAJORITY:
        return given
    sizes = {site: change_of(state.model_of(site), one.update).sizes() for site, one in given.items()}
    bounds = {kind: median(size[kind] for size in sizes.values()) for kind in KINDS}
    return {site: _shortened(one, sizes[site], bounds) for site, one in given.items()}


def _shortened(one: Contribution, size: dict[str, float], bounds: dict[str, float]) -> Contribution:
    ratio = {kind: bounds[kind] / size[kind] if size[kind] > bounds[kind] else 1.0 for kind in size}
    lora = min(ratio["product"], ratio["a"], ratio["b"])
    if lora == ratio["rest"] == 1.0:
        return one
    return replace(one, opened=lambda: _scaled(one.opened(), lora, ratio["rest"]))


def _scaled(update: Tensors, lora: float, rest: float) -> Tensors:
    pairs = {name.removesuffix(end) for end in (A, B) for name in update if name.endswith(end)}
    whole = {stem for stem in pairs if stem + A in update and stem + B in update}
    return {name: tensor * (lora if paired(name, whole) else rest) for name, tensor in update.items()}
