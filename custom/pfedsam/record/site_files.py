"""What a site keeps of a finished job on its own disk: its model, scores per case, what pictures are drawn from."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from pfedsam.config import Config
from pfedsam.files import Tensors, write_atomic, write_json
from pfedsam.layout import CASES, PICTURES
from pfedsam.record.cards import write_part
from pfedsam.record.pictures import Gallery, packed
from pfedsam.record.scores import CaseScore


@dataclass(frozen=True)
class Tested:
    """A site at the end of its final test.

    Attributes:
        stamp: what the model is of: `site`, `run`, and the digests `config` and `base`.
        trained: the run, and the round in which the private part was last trained.
        shared, private: the parts of the tested model.
        files: of each case its image and its mask, from the datalist's folder.
        patients: of each case.
        scores: by role, the classes of the first case, of the second, and so on.
        gallery: of a few cases; no picture where none was scored.
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

    Nothing of this is sent: images and case names stay at the site. The shared part is what came from the
    server, so that the site can export its model without asking for it again.
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
    """Of cases, their images; with the mask where an image has several."""
    masks = Counter(image for image, _ in pairs)
    return [f"{image} ({mask})" if masks[image] > 1 else image for image, mask in pairs]
