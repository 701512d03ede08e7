"""pfedsam export: write a run's model as one file, with its card, and optionally as ONNX and MONAI bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfedsam.cli.console import say, show, tracked
from pfedsam.errors import UserFault

if TYPE_CHECKING:
    from pfedsam.export.signature import Signer
    from pfedsam.inference.facts import ModelFacts
    from pfedsam.model.backbones import Backbone

HELP = "write a run's model as one file with its card, and optionally as ONNX and as a MONAI bundle"
EXAMPLE = "pfedsam export runs/pfedsam --site site-1 --out model.safetensors"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=Path(), help="a simulator's workspace, a run folder, a downloaded job")
    add("--out", type=Path, required=True, metavar="FILE", help="the model file to write; its card goes beside it")
    add("--site", default="", help="the site whose private part to include; default: the folder's site")
    add("--global-only", action="store_true", help="leave the private part out, to give the model to others")
    add(
        "--shared",
        type=Path,
        metavar="FILE",
        help="another file of shared tensors, such as models/shared.best.safetensors",
    )
    add(
        "--store",
        type=Path,
        metavar="DIR",
        help="take the private part from this site store, as the run last trained it",
    )
    add("--settings", type=Path, metavar="FILE", help="the job's pfedsam.json, if the run's files do not include it")
    add("--with-base", action="store_true", help="include the base: large, but loads without a weight file")
    add("--weights", type=Path, metavar="DIR", help="the folder of pretrained weight files; default: PFEDSAM_WEIGHTS")
    add("--branch", choices=("global", "personal"), help="of --onnx and --bundle; default: personal, if included")
    add("--onnx", type=Path, metavar="FILE", help="also write one branch as an ONNX graph")
    add("--bundle", type=Path, metavar="DIR", help="also write a MONAI bundle; the folder must not exist")
    add("--sign", type=Path, metavar="KIT", help="sign the model and the ONNX graph with the key of this startup kit")
    add("--overwrite", action="store_true", help="replace existing files, also a card that was filled in")
    add("--json", action="store_true", help="print as JSON what was written")


def serve(options: argparse.Namespace) -> None:
    """Write the requested files."""
    from pfedsam.certificates import now
    from pfedsam.export.signature import signer_of
    from pfedsam.export.single import card_beside, write_single
    from pfedsam.export.source import Place, gather

    _check_free(options)
    signer = signer_of(options.sign, now()) if options.sign else None
    given = options.folder, options.site, options.shared, options.store, options.settings
    source = gather(Place(*given, alone=options.global_only))
    branch = options.branch or source.facts.branches[-1]
    _check_more(options, source.facts.branches, branch)
    base = _base(options, source.facts)
    text = write_single(source, options.out, options.folder, base=base)
    del base
    wrote = {"model": str(options.out), "card": str(card_beside(options.out)), "branches": source.facts.branches}
    wrote |= _more(options, branch, text) | _signatures(options, signer)
    say(wrote) if options.json else _tell(wrote)


def _check_free(options: argparse.Namespace) -> None:
    """Refuse to replace existing files, before anything is written: a card may have been filled in."""
    from pfedsam.export.single import card_beside

    files = [options.out, card_beside(options.out), options.onnx]
    _check_apart([path for path in files if path], options.bundle)
    taken = [path for path in files if path and path.exists() and not options.overwrite]
    taken += [options.bundle] * bool(options.bundle and options.bundle.exists())
    if taken:
        do = "name another, or remove it" + ", or add --overwrite" * (taken[0] != options.bundle)
        raise UserFault(expected=f"no {taken[0]} yet", came="an existing one", do=do)


def _check_apart(files: list[Path], bundle: Path | None) -> None:
    """Refuse files of which one would replace another or its signature, or would lie in the bundle's folder."""
    from pfedsam.export.signature import beside

    places = [place.resolve() for path in files for place in (path, beside(path))]
    twice = next((place for place in places if places.count(place) > 1), None)
    folder = bundle.resolve() if bundle else None
    if inside := twice or next((place for place in places if folder and place.is_relative_to(folder)), None):
        raise UserFault(
            expected="different names for the model, its card, --onnx and --bundle",
            came=f"{inside} {'twice' if twice else 'in the folder of --bundle'}",
            do="give each its own",
        )


def _check_more(options: argparse.Namespace, branches: tuple[str, ...], branch: str) -> None:
    """Refuse a graph or a bundle that cannot be made, before the model and its card are written."""
    from pfedsam.inference.facts import require_branch

    if options.onnx:
        from pfedsam.export.onnx import check_packages

        require_branch(branches, branch)
        check_packages()
    if options.bundle:
        _check_bundle(options.bundle, branches, branch)


def _check_bundle(folder: Path, branches: tuple[str, ...], branch: str) -> None:
    try:
        from pfedsam.export.bundle import check_bundle
    except ModuleNotFoundError as error:
        raise UserFault(
            expected="the packages that a bundle needs", came=f"no {error.name}", do="pip install 'pfedsam[bundle]'"
        ) from None
    check_bundle(branches, folder, branch)


def _base(options: argparse.Namespace, facts: "ModelFacts") -> "Backbone | None":
    """The frozen base, if the file is to hold it. It is checked before anything is written, for --onnx too."""
    from pfedsam.export.onnx import check_size
    from pfedsam.export.single import base_of

    if not (options.with_base or options.onnx):
        return None
    base = base_of(facts, options.weights)
    if options.onnx:
        check_size(base)
    return base if options.with_base else None


def _more(options: argparse.Namespace, branch: str, text: str) -> dict[str, Any]:
    """Write the ONNX graph and the bundle, if requested."""
    done: dict[str, Any] = {}
    works = [name for name in ("onnx", "bundle") if getattr(options, name)]
    for work in tracked(works, "exporting") if works else ():
        if work == "onnx":
            from pfedsam.export.onnx import export_onnx
            from pfedsam.inference.predictor import load_model

            model = load_model(options.out, options.weights, device="cpu", precision="fp32")
            deviation = export_onnx(model, options.onnx, branch)
            done |= {"onnx": str(options.onnx), "onnx_branch": branch, "onnx_deviation": deviation}
        else:
            from pfedsam.export.bundle import write_bundle

            write_bundle(options.out, options.bundle, branch, text)
            done["bundle"] = str(options.bundle)
    return done


def _signatures(options: argparse.Namespace, signer: "Signer | None") -> dict[str, Any]:
    """Sign what was written. Without a signer, take away the signatures of the files that were replaced."""
    from pfedsam.certificates import name_of, now
    from pfedsam.export.signature import beside, sign

    files = [path for path in (options.out, options.onnx) if path]
    if signer is None:
        for path in files:
            beside(path).unlink(missing_ok=True)
        return {}
    return {"signatures": [str(sign(path, signer, now())) for path in files], "signer": name_of(signer.own)}


def _tell(wrote: dict[str, Any]) -> None:
    show(f"wrote {wrote['model']} ({', '.join(wrote['branches'])}) and its card {wrote['card']}")
    if "personal" not in wrote["branches"]:
        show("it contains no private part: --site NAME adds a site's")
    if "onnx" in wrote:
        deviation = f"{wrote['onnx_deviation']:.0e}"
        show(f"wrote {wrote['onnx']} ({wrote['onnx_branch']} branch; onnxruntime is within {deviation} of torch)")
    for path in wrote.get("signatures", ()):
        show(f"wrote {path}, signed by {wrote['signer']}; pfedsam verify FILE --by ROOT checks it")
    if "bundle" in wrote:
        show(f"wrote {wrote['bundle']}; its docs/README.md says how to run it")
