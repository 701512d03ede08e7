"""What a site keeps of a finished job on its own disk: its model, the scores of each case, and data for pictures."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from pfedsam.config import Config
from pfedsam.files import write_atomic, write_json
from pfedsam.layout import CASES, PICTURES
from pfedsam.record.cards import write_part
from pfedsam.record.pictures import Gallery, packed
from pfedsam.record.scores import CaseScore
from pfedsam.tensors import Tensors


@dataclass(frozen=True)
class Tested:
    """What a site has at the end of its final test.

    Attributes:
        stamp: the model's origin: `site`, `run`, and the digests `config` and `base`.
        trained: the run and the round in which the private part was last trained.
        shared, private: the parts of the tested model.
        files: each case's image and mask, relative to the datalist's folder.
        patients: each case's patient.
        scores: by role: the classes of the first case, then of the second, and so on.
        gallery: pictures of a few cases. Empty if no case was scored.
    """

    config: Config
    stamp: dict[str, str]
    trained: dict[str, str]
    shared: Tensors
    private: Tensors
    files: list[tuple[str, str]]
    patients: list[str]
    scores: dict[str, list[CaseScore]]
    gallery: Gallery


def write_site_files(tested: Tested, folder: Path) -> None:
    """Write both parts of the model with their cards, cases.json and pictures.safetensors below `folder`.

    None of it is sent: images and case names stay at the site. The shared part is the one that the server
    sent. With it the site can export its model later.
    """
    config, stamp, trained = tested.config, tested.stamp, tested.stamp | tested.trained
    parts = {"private": (tested.private, trained), "shared": (tested.shared, stamp)}
    for part, (tensors, facts) in parts.items():
        if tensors:
            write_part(folder / part, part, tensors, config=config, facts=facts)
    patients = list(dict.fromkeys(tested.patients))
    cases = {
        "run": stamp["run"],
        "cases": case_names(tested.files),
        "groups": [patients.index(patient) for patient in tested.patients],
        "scores": {role: [asdict(s) for s in rows] for role, rows in tested.scores.items()},
    }
    write_json(folder / CASES, cases)
    if tested.gallery.pictures:
        write_atomic(folder / PICTURES, packed(tested.gallery))


def case_names(pairs: list[tuple[str, str]]) -> list[str]:
    """The name of each case: its image, and the mask too if an image has several."""
    masks = Counter(image for image, _ in pairs)
    return [f"{image} ({mask})" if masks[image] > 1 else image for image, mask in pairs]
