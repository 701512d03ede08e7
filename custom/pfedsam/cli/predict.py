"""pfedsam predict: write masks of a site's own images."""

import argparse
import os
from pathlib import Path
from typing import Any

from pfedsam.cli import console
from pfedsam.data.planes import CHOICES
from pfedsam.errors import UserFault

HELP = "write masks of pictures, NIfTI or DICOM, in the same format and geometry"
NAMED = "pfedsam: the DICOM segmentations name their patient, as the standard demands. --anonymous leaves it out"
STOPPED = ". The masks that are written stay; run it again, without --overwrite, and it writes the others"
EXAMPLE = "pfedsam predict /data/new /data/masks --model model.safetensors"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("source", type=Path, help="an image file, or a folder, searched with all its subfolders")
    out = "the folder for the masks; existing masks are kept. A DICOM segmentation names its series' patient"
    add("out", type=Path, help=out)
    add("--model", type=Path, required=True, help="a file that pfedsam export wrote")
    add("--branch", choices=("personal", "global"), help="default: personal, if the model has it")
    add("--plane", choices=CHOICES, help="default: the plane of the training (data.plane); another one gives a warning")
    add("--scale", choices=("uint8", "percentile"), help="default: data.scale of the training")
    add("--names", default="", metavar="A,B", help="the classes' names in order; default: data.classes of the training")
    add("--probabilities", action="store_true", help="also write probability maps")
    anonymous = "DICOM segmentations name no patient and have new UIDs: the basic profile of DICOM PS3.15, Annex E"
    add("--anonymous", action="store_true", help=anonymous)
    add("--weights", type=Path, help="the folder of the base model's weights; default: PFEDSAM_WEIGHTS")
    cache = "a folder that keeps the prepared base, and onnxruntime's graph; this speeds up the next start"
    add("--cache", type=Path, help=cache)
    add("--batch", type=int, default=8, help="slices at a time")
    add("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    runtime = "onnxruntime can be faster on a CPU without bfloat16 hardware; its logits equal torch's to 1e-4"
    add("--runtime", choices=("torch", "onnxruntime"), default="torch", help=runtime)
    add("--overwrite", action="store_true", help="write existing masks again")
    add("--json", action="store_true", help="print one JSON object that lists every file")


def serve(options: argparse.Namespace) -> int:
    """Predict all files. Return 1 if one failed."""
    from pfedsam.export.runtime import load_on
    from pfedsam.predict.masks import usual_way
    from pfedsam.predict.run import predict
    from pfedsam.predict.scans import find_scans
    from pfedsam.predict.segmentation import Classes

    if options.batch < 1:
        raise UserFault(expected="--batch above 0", came=str(options.batch), do="give a number of 1 or more")
    _check_folder(options.out)
    scans = list(console.tracked(find_scans(options.source, options.out), "looking"))
    _tell_masks([scan for scan in scans if not isinstance(scan, UserFault)])
    places = {name: getattr(options, name) for name in ("weights", "cache", "device")}
    model = load_on(options.runtime, options.model, **places)
    data = model.config.data
    if options.plane not in (None, data.plane):
        console.show(f"pfedsam: the model was trained on {data.plane} slices, not {options.plane}", error=True)
    chosen = {name: getattr(options, name) for name in ("branch", "plane", "scale", "batch", "probabilities")}
    way = usual_way(model, **chosen)
    names = options.names.split(",") if options.names else model.config.class_names
    if len(names) != (count := model.config.model.num_classes):
        came = f"{len(names)} ({', '.join(names)})"
        raise UserFault(expected=f"{count} names", came=came, do="give --names one name for each class of the model")
    for branch in console.tracked([way.branch], "making ready"):
        model.ready(branch)
    coded = zip(names, map(data.codes.get, model.config.class_names), strict=True)  # a new name keeps the code
    classes, done = Classes(names, {name: code for name, code in coded if code}, options.anonymous), []
    results, said = predict(model, scans, options.out, way, classes, again=options.overwrite), set()
    for result in console.tracked(results, "predicting", len(scans)):
        if result.fault and str(result.fault) not in said:  # two images that one mask would be of have the same
            console.show(f"pfedsam: {result.fault}", error=True)
            said.add(str(result.fault))
        done.append(_told(result))
    if not options.anonymous and any(entry["kind"] == "dicom" and entry["written"] for entry in done):
        console.show(NAMED, error=True)
    answer = {"branch": way.branch, "classes": {i + 1: n for i, n in enumerate(names)}, "files": done}
    console.say(answer) if options.json else console.show(_summary(done, options.out, way.branch))
    return int(any(entry["fault"] for entry in done))


def _tell_masks(scans: list[Any]) -> None:
    """Say which of the images look like masks by their name or folder."""
    from pfedsam.names import spelling
    from pfedsam.prepare.words import MASK_END, cut, role

    named = {scan: spelling(scan.name.name) for scan in scans}
    found = [s for s, name in named.items() if any(map(role, s.name.parts[:-1])) or cut(name, MASK_END) != name]
    if found and len(found) < len(scans):
        said = f"{len(found)} of {len(scans)} images are named as masks are, such as {found[0].files[0]}"
        console.show(f"pfedsam: {said}. If they are masks, name the folder of the images alone", error=True)


def _check_folder(out: Path) -> None:
    """UserFault if `out` is named as an image is, or if it or a folder above it is a file."""
    from pfedsam.data.volume import kind_of

    there = next(filter(os.path.exists, (out, *out.parents)), Path())
    if there != out and kind_of(out):
        raise UserFault(
            expected="a folder for the masks", came=f"{out}, which is named as a file is", do="name a folder"
        )
    if not there.is_dir():
        raise UserFault(
            expected=f"a folder for the masks at {out}", came=f"the file {there}", do="name a folder, new or old"
        )


def _told(result: Any) -> dict[str, Any]:
    return {
        "source": str(result.scan.files[0]) if result.scan else None,
        "kind": result.scan.kind if result.scan else None,
        "written": [str(file) for file in result.files],
        "pixels": list(result.pixels),
        "fault": str(result.fault) if result.fault else None,
    }


def _summary(done: list[dict[str, Any]], out: Path, branch: str) -> str:
    masks = [entry for entry in done if entry["pixels"]]
    maps = sum(len(entry["written"]) for entry in done) - len(masks)
    faults = sum(bool(entry["fault"]) for entry in done)
    kept, nothing = len(done) - len(masks) - faults, sum(not any(entry["pixels"]) for entry in masks)
    parts = [f"{len(masks)} masks of the {branch} branch written to {out}"]
    parts += [f"{nothing} of them are empty"] * bool(nothing)
    parts += [f"{maps} probability maps written"] * bool(maps)
    parts += [f"{kept} masks existed already (--overwrite writes them again)"] * bool(kept)
    parts += [f"{faults} faults; see the messages above"] * bool(faults)
    return "; ".join(parts)
