"""What a method is: the branches it builds, what it shares, its local step, and how it merges.

A method is one file in this folder with a `METHOD`; docs/method.md and the registry name them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pfedsam.config import Config
from pfedsam.model.partition import Declaration, Partition, partition
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.loop import LossOf


@dataclass(frozen=True)
class Method:
    """One federated method.

    Attributes:
        build: the branches, from the global branch as `model.build.segmenter` returns it.
        declare: shared, private or frozen, by branch and kind; may depend on the configuration.
        loss: the local step's losses, summed and minimised together.
        merge: called when a round's shared tensors have been loaded; brings the private part in
            line with them. Its last argument says whether the site has no private part yet.
        personal: the branch this method predicts with at its own site.
        global_: the branch it offers to a site it has never seen.
    """

    build: Callable[[Segmenter, Config], Branches]
    declare: Callable[[Config], Declaration]
    loss: LossOf
    merge: Callable[[Branches, Config, bool], None]
    personal: str
    global_: str

    def partition(self, model: Branches, config: Config) -> Partition:
        """Which parameter of `model` is shared, private or frozen under `config`."""
        return partition(model, self.declare(config), config.model.decoder)
