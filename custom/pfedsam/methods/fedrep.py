"""FedRep (Collins et al. 2021, algorithm 1): FedPer's split. A round trains the private head, then the shared body.

Each gets half of the steps, so that all methods have the same budget: our choice. The paper gives the body one epoch.
If a round has only one step, it trains both, our choice too. Otherwise the body would never be trained, and its zero
update would count in the mean with full weight.
"""

from dataclasses import replace

from pfedsam.methods import fedper
from pfedsam.model.partition import Part
from pfedsam.train.loop import always


def phase(done: int, steps: int) -> frozenset[Part]:
    """The private part in the first half of the round's steps, the shared part in the second. Both in a single step."""
    if steps == 1:
        return always(done, steps)
    return frozenset({Part.PRIVATE if done < steps / 2 else Part.SHARED})


METHOD = replace(fedper.METHOD, phase=phase)
