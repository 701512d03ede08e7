"""The hospital's own policy: a filter in local/privacy.json. It runs before the job's filters, whatever they are."""

import json
import math
from collections.abc import Callable

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from pfedsam import log, methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.flare.filters import OnlySharedLeaves, parts
from pfedsam.flare.steps import masked
from pfedsam.train.loop import sharing, steps_of

MOST_EPSILON = 50.0  # of a job whose rounds draw their patients by chance, unless the administrator says another


class SitePolicy(OnlySharedLeaves):
    """On results: only shared tensors, numbers and short texts leave, up to the size that the administrator set, and
    only of a round with enough images and steps.

    FLARE applies it to every job of the scope, before the job's filters. A job cannot leave it out, nor the line in
    the ledger. It holds for jobs of the installed package. A job that brings code can do whatever the site's process
    can. A site that permits that trusts the submitter.

    With `privacy.unit` patient chance draws the images of each step, so `least_images` and `least_patients` count all
    that could be drawn. Instead the job's budget must be small (`require_privacy`).

    Args:
        max_megabytes: the largest message, tensors and facts together, in MB.
        least_images, least_steps: the fewest training images and steps of a round whose update may leave. After one
            step on one image, the update's signs are those of one patient's gradient. The defaults are our choice.
            Counted are the steps that train the shared part, and the images that they see. Images without a label do
            not count beside others with one: all that an update shows may come from these.
        least_patients: the fewest patients of these images. A job may leave all but one image out, and an image may be
            a volume of many slices. The default is our choice: no update of one patient leaves.
        least_tested: the fewest patients of a test or validation split whose scores may leave, counted for the class
            that the fewest of them show. The default lets all leave, because a small hospital may have one.
        most_epsilon: the largest privacy budget (`privacy.epsilon`) of a job whose update may leave. None: jobs
            without differential privacy are welcome too, and with `privacy.unit` patient `MOST_EPSILON` holds.
        most_delta: the largest `privacy.delta` of such a job.
        masked: whether only masked updates may leave, so that no job can have this site's update in plain.
        derived: whether values that a method makes of images themselves may leave (`Method.derived`), to all sites.
            No job says how many: `hold_derived` of the method's settings has the limits.
    """

    def __init__(
        self,
        max_megabytes: float = 64.0,
        least_images: int = 8,
        least_steps: int = 4,
        most_epsilon: float | None = None,
        masked: bool = False,
        most_delta: float = 1e-5,
        derived: bool = False,
        least_patients: int = 2,
        least_tested: int = 1,
    ) -> None:
        super().__init__()
        self.most_epsilon, self.most_delta = most_epsilon, most_delta
        self.max_megabytes = max_megabytes
        self.least_images, self.least_steps, self.masked = least_images, least_steps, masked
        self.derived, self.least_patients, self.least_tested = derived, least_patients, least_tested

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A message of the checked parts. If it may not leave, it raises and logs the reason at the site."""
        try:
            return super().process(shareable, fl_ctx)
        except ContentBlockedException as fault:
            log.error("[%s] site policy: %s. Nothing was sent", fl_ctx.get_identity_name(), fault)
            raise

    def _allow(self, dxo: DXO, config: Config) -> None:
        if dxo.data_kind == DataKind.WEIGHT_DIFF:
            self.require(config, dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND))
        tensors, facts = parts(dxo)
        size = payload_bytes(tensors) + len(json.dumps(facts))
        if size > self.max_megabytes * 1e6:
            raise ContentBlockedException(
                f"expected at most {self.max_megabytes:g} MB to leave at once, came {size / 1e6:.1f} MB"
            )

    def require(self, config: Config, images: int) -> None:
        """Raise if no update of a round of the job may leave. `images`: that it could learn from, if it took all."""
        if self.masked and not masked(config):
            raise ContentBlockedException("expected a job with server.secure masks, came one with plain updates")
        self._enough(images, config)
        self.require_privacy(config)
        self.require_model_only(config)

    def _enough(self, images: int, config: Config) -> None:
        steps = len(sharing(methods.get(config.method).phase, steps_of(images, config.train)))
        seen = min(images, steps * config.train.batch_size)  # train.max_steps may end the round before all were seen
        if seen < self.least_images or steps < self.least_steps:
            raise ContentBlockedException(
                f"expected an update of at least {self.least_images} training images and {self.least_steps} steps,"
                f" came {seen} and {steps}: fewer could show a patient's image"
            )

    def require_seen(self, images: int, patients: int) -> None:
        """Raise if a round's steps see too few images or patients for its update to leave."""
        if images < self.least_images:
            raise ContentBlockedException(
                f"expected an update of at least {self.least_images} training images, came {images} that the round's"
                " steps see. Beside images with a label, those without do not count"
            )
        if patients < self.least_patients:
            raise ContentBlockedException(
                f"expected an update of at least {self.least_patients} patients, came {patients}:"
                " fewer could show a patient's image"
            )

    def require_tested(self, tested: Callable[[], int]) -> None:
        """Raise if scores are of too few patients to leave.

        Args:
            tested: says the fewest patients that show a class in a split, 0 if nothing is scored. It reads all masks,
                so it is only called if the limit asks for more than one.
        """
        if self.least_tested > 1 and 0 < (shown := tested()) < self.least_tested:
            raise ContentBlockedException(
                f"expected scores of at least {self.least_tested} patients with each class in each split, came {shown}:"
                " fewer could show a patient's mask"
            )

    def require_privacy(self, config: Config) -> None:
        """Raise if the job has less differential privacy than the administrator asks for.

        With `privacy.unit` patient a budget is needed in any case, in place of the floors. There chance may draw one
        image in a round, and to refuse that round would tell what was drawn. Epsilon bounds what all updates together
        tell of a patient: 50 is about 72 bits (50 / ln 2), far less than an image has. Delta must be small too, because
        no epsilon bounds what is told of a patient whom a round draws with a smaller chance than delta.
        """
        unit, delta = config.privacy.unit, config.privacy.delta
        if self.most_epsilon is None and unit != "patient":
            return
        most = MOST_EPSILON if self.most_epsilon is None else self.most_epsilon
        asked = math.inf if unit == "none" else config.privacy.epsilon
        if asked > most or delta > self.most_delta:
            units = "patient" if self.most_epsilon is None else "patient or site"
            raise ContentBlockedException(
                f"expected a job with privacy.unit {units},"
                f" privacy.epsilon of at most {most:g} and privacy.delta of at most {self.most_delta:g},"
                f" came unit {unit}, epsilon {asked:g} and delta {delta:g}"
            )

    def require_model_only(self, config: Config) -> None:
        """Raise if the job's method sends values that are made of images, and the administrator does not permit it.

        Or more of them than the method's own limit, which the job cannot raise.
        """
        if not (made := methods.get(config.method).derived):
            return
        if not self.derived:
            raise ContentBlockedException(
                f"expected a method that sends nothing made of images, came {config.method} with"
                f" {', '.join(sorted(made))}: set derived true in the fence to permit it"
            )
        hold: Callable[[Config], None] = getattr(config.method_settings, "hold_derived", _unlimited)
        try:
            hold(config)
        except UserFault as fault:
            raise ContentBlockedException(f"{fault}. No fence lets more out that is made of images") from None


def _unlimited(config: Config) -> None:
    """What holds for a method that says no limit."""
    wanted, do = "a method that limits what it makes of images (hold_derived)", "ask its authors for limits"
    raise UserFault(expected=wanted, came=config.method, do=do)


def fences(fl_ctx: FLContext) -> list[SitePolicy]:
    """The fences of the hospital. They are asked before a task is served, because a round that hides patients is paid
    before it trains."""
    scope = fl_ctx.get_prop(FLContextKey.SCOPE_OBJECT)
    return [one for one in (scope.task_result_filters[FilterKey.OUT] if scope else []) if isinstance(one, SitePolicy)]


def ask_fences(
    fl_ctx: FLContext, config: Config, *, images: int, seen: int, patients: int, tested: Callable[[], int]
) -> None:
    """Raise ContentBlockedException if a fence of the hospital would not let the round's update out."""
    for fence in fences(fl_ctx):
        fence.require(config, images)
        fence.require_seen(seen, patients)
        fence.require_tested(tested)
