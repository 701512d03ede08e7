"""FedRep (Collins et al. 2021, algorithm 1): FedPer's split; a round trains the private head, then the shared body.

Half of the steps each, so that its budget is the others': our choice, the paper gives the body one epoch.
"""

from dataclasses import replace

from pfedsam.methods import fedper
from pfedsam.model.partition import Part


def phase(done: float) -> frozenset[Part]:
    """The private part in the first half of the round, the shared one in the second."""
    return frozenset({Part.PRIVATE if done < 0.5 else Part.SHARED})


METHOD = replace(fedper.METHOD, phase=phase)
