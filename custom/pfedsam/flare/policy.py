"""The hospital's own policy: a filter in local/privacy.json. It runs before the job's filters, whatever they are."""

import json
import math

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from pfedsam import log, methods
from pfedsam.config import Config
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.flare.filters import OnlySharedLeaves, parts
from pfedsam.flare.steps import masked
from pfedsam.train.loop import steps_of


class SitePolicy(OnlySharedLeaves):
    """On results: only shared tensors, numbers and short texts leave, up to the size that the administrator set, and
    only of a round with enough images and steps.

    FLARE applies it to every job of the scope, before the job's filters. A job cannot leave it out, nor the line in
    the ledger. It holds for jobs of the installed package. A job that brings code can do whatever the site's process
    can. A site that permits that trusts the submitter.

    Args:
        max_megabytes: the largest message, tensors and facts together, in MB.
        least_images, least_steps: the fewest training images and steps of a round whose update may leave. After one
            step on one image, the update's signs are those of one patient's gradient. The defaults are our choice.
        most_epsilon: the largest privacy budget (`privacy.epsilon`) of a job whose update may leave. None: jobs
            without differential privacy are welcome too.
        masked: whether only masked updates may leave, so that no job can have this site's update in plain.
        derived: whether values that a method makes of images themselves may leave (`Method.derived`), to all sites.
    """

    def __init__(
        self,
        max_megabytes: float = 64.0,
        least_images: int = 8,
        least_steps: int = 4,
        most_epsilon: float | None = None,
        masked: bool = False,
        derived: bool = False,
    ) -> None:
        super().__init__()
        self.most_epsilon = most_epsilon
        self.max_megabytes = max_megabytes
        self.least_images, self.least_steps, self.masked = least_images, least_steps, masked
        self.derived = derived

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A message of the checked parts. If it may not leave, it raises and logs the reason at the site."""
        try:
            return super().process(shareable, fl_ctx)
        except ContentBlockedException as fault:
            log.error("[%s] site policy: %s. Nothing was sent", fl_ctx.get_identity_name(), fault)
            raise

    def _allow(self, dxo: DXO, config: Config) -> None:
        if self.masked and not masked(config) and dxo.data_kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
            raise ContentBlockedException("expected a job with server.secure masks, came one with plain updates")
        tensors, facts = parts(dxo)
        size = payload_bytes(tensors) + len(json.dumps(facts))
        if size > self.max_megabytes * 1e6:
            raise ContentBlockedException(
                f"expected at most {self.max_megabytes:g} MB to leave at once, came {size / 1e6:.1f} MB"
            )
        if dxo.data_kind == DataKind.WEIGHT_DIFF:
            self._enough(dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND), config)
            self.require_privacy(config)
            self.require_model_only(config)

    def _enough(self, images: int, config: Config) -> None:
        steps = steps_of(images, config.train)
        if images < self.least_images or steps < self.least_steps:
            raise ContentBlockedException(
                f"expected an update of at least {self.least_images} training images and {self.least_steps} steps,"
                f" came {images} and {steps}: fewer could show a patient's image"
            )

    def require_privacy(self, config: Config) -> None:
        """Raise if the job has less differential privacy than the administrator asks for."""
        asked = math.inf if config.privacy.unit == "none" else config.privacy.epsilon
        if self.most_epsilon is not None and asked > self.most_epsilon:
            raise ContentBlockedException(
                f"expected a job with privacy.unit patient or site, and privacy.epsilon of at most"
                f" {self.most_epsilon:g}, came unit {config.privacy.unit} and epsilon {asked:g}"
            )

    def require_model_only(self, config: Config) -> None:
        """Raise if the job's method sends values that are made of images, and the administrator does not permit it."""
        if (made := methods.get(config.method).derived) and not self.derived:
            raise ContentBlockedException(
                f"expected a method that sends nothing made of images, came {config.method} with"
                f" {', '.join(sorted(made))}: set derived true in the fence to permit it"
            )
