"""FedRep (Collins et al. 2021, algorithm 1): FedPer's split; a round trains the private head, then the shared body.

Half of the steps each, so that its budget is the others': our choice, the paper gives the body one epoch. Ours too:
a round's only step trains both, as the body would otherwise never be trained and its zeros averaged with full weight.
"""

from dataclasses import replace

from pfedsam.methods import fedper
from pfedsam.model.partition import Part
from pfedsam.train.loop import always


def phase(done: int, steps: int) -> frozenset[Part]:
    """The private part in the first half of the round's steps, the shared one in the second; both in an only step."""
    if steps == 1:
        return always(done, steps)
    return frozenset({Part.PRIVATE if done < steps / 2 else Part.SHARED})


METHOD = replace(fedper.METHOD, phase=phase)
