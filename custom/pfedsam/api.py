"""The Python API: `load` a model and predict with it, `simulate` a federation. Imported as `pfedsam.load` and so on."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray

from pfedsam.bounds import parse_count
from pfedsam.data.geometry import Affine
from pfedsam.data.synthetic import drawn
from pfedsam.errors import UserFault
from pfedsam.export.runtime import load_on
from pfedsam.export.single import write_single
from pfedsam.export.source import Place, gather
from pfedsam.federation import Plan, federate, torch_as_it_was
from pfedsam.inference.facts import ModelFacts
from pfedsam.inference.predictor import Predictor, first_model
from pfedsam.jobs import FACTS, Job, make_job, read_job
from pfedsam.layout import Places
from pfedsam.predict.given import Image, PathLike, opened
from pfedsam.predict.masks import segment, usual_way
from pfedsam.quiet import quietly
from pfedsam.record.table import final_table
from pfedsam.settings import from_record

Mask = NDArray[np.uint8]
Maps = NDArray[np.float32]
ARGUMENTS = ("rounds", "sites", "out", "folders", "on_round")  # of `simulate`, beside the settings


@dataclass(frozen=True)
class Model:
    """A trained model, ready to find masks. `pfedsam.load` makes it.

    Attributes:
        predictor: the model below this one, for those who need logits.
    """

    predictor: Predictor

    @property
    def facts(self) -> ModelFacts:
        """All that its file says of it: settings, run, round, site, versions, checksums."""
        return self.predictor.facts

    @property
    def card(self) -> dict[str, Any]:
        """In plain values what a user has to know: classes, scale, plane, branches, and where it comes from."""
        config, origin = self.facts.config, self.facts.origin
        return {
            "classes": dict(enumerate(config.class_names, start=1)),
            "scale": config.data.scale,
            "plane": config.data.plane,
            "branches": self.facts.branches,
            "method": config.method,
            "backbone": config.model.backbone,
            "image_size": config.model.image_size,
            "study": config.study,
            "run": origin.run,
            "site": origin.site,
            "round": origin.round,
        }

    @overload
    def predict(
        self,
        image: Image,
        *,
        branch: str | None = ...,
        plane: str | None = ...,
        scale: str | None = ...,
        affine: Affine | None = ...,
        probabilities: Literal[False] = ...,
    ) -> Mask: ...
    @overload
    def predict(
        self,
        image: Image,
        *,
        branch: str | None = ...,
        plane: str | None = ...,
        scale: str | None = ...,
        affine: Affine | None = ...,
        probabilities: Literal[True],
    ) -> tuple[Mask, Maps]: ...
    def predict(
        self,
        image: Image,
        *,
        branch: str | None = None,
        plane: str | None = None,
        scale: str | None = None,
        affine: Affine | None = None,
        probabilities: bool = False,
    ) -> Mask | tuple[Mask, Maps]:
        """The class mask of one image, uint8, in the image's own size: 0 is the background.

        The mask is the one that `pfedsam predict` writes for a file of these values. Where classes overlap, it has
        the likeliest.

        Args:
            image: (H, W) grey; (H, W, 3) in colour; a volume (H, W, N) or (H, W, N, 3); or the path of one picture,
                NIfTI file, DICOM file or folder with one DICOM series. A volume of 2, 3 or 4 slices needs `affine`
                or `plane`, since its last axis could be of colours.
            branch: "personal" or "global"; default: personal, where the model has it.
            plane: "axial", "coronal", "sagittal" or "stored"; default: the plane of the training.
            scale: "uint8" or "percentile"; default: the scale of the training.
            affine: of a volume, (4, 4), as nibabel reads it: it is then cut in `plane`. Without it the slices are
                those along the third axis.
            probabilities: give the probabilities too, (classes, *mask.shape), float32.

        Returns:
            The mask; with `probabilities` the mask and the probabilities. Of a picture (H, W), of a volume (H, W, N).

        Raises:
            UserFault: a wrong shape, kind of number or range of values; values that are not finite; an unknown
                branch, plane or scale; or a file that is unreadable, or several.
        """
        way = usual_way(self.predictor, branch=branch, plane=plane, scale=scale, probabilities=probabilities)
        with quietly():
            volume, flat = opened(image, affine, way)
            found = segment(self.predictor, volume, way)
        mask = found.labels[..., 0] if flat else found.labels
        if found.probabilities is None:
            return mask
        return mask, found.probabilities[..., 0] if flat else found.probabilities


def load(
    path: PathLike,
    *,
    weights: PathLike | None = None,
    cache: PathLike | None = None,
    device: str | None = None,
    runtime: str = "torch",
) -> Model:
    """The model in a file that `pfedsam export` or `Results.export` wrote.

    Args:
        weights: folder of the base model's weights, where the file does not hold them; default: PFEDSAM_WEIGHTS.
        cache: folder where the base is kept ready, and onnxruntime's graph too; speeds up the next start.
        device: "cpu", "cuda", "cuda:1" and so on; default: a GPU where there is one.
        runtime: "torch", or "onnxruntime" for the CPU, with logits equal to 1e-4 (docs/predict.md).

    Raises:
        UserFault: the file is missing, damaged, changed or another kind of file; its base is missing or another one;
            there is no such device or runtime; or onnxruntime is missing, or is to run on a GPU.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserFault(expected="the path of a model file", came=repr(path), do="give the path")
    return Model(load_on(runtime, Path(path), weights=_path(weights), cache=_path(cache), device=device))


@dataclass(frozen=True)
class Results:
    """What a simulated run left. `pfedsam.simulate` makes it.

    Attributes:
        record: the content of results.json; docs/results.md names its keys.
        folder: where results.json, the shared model and each site's files are.
    """

    record: dict[str, Any]
    folder: Path

    def table(self, width: int = 100) -> str:
        """The scores of every site, as text: before training, of the global and of the personal branch."""
        return final_table(self.record, width)

    def export(self, path: PathLike, site: str = "") -> Path:
        """The path of the site's model, written as one file with its card beside it, over what is there.

        Args:
            site: whose personal branch to put in; empty: the global branch alone, which may leave the sites.

        Raises:
            UserFault: there is no such site; or none is named, and each keeps some or all of the global branch.
        """
        out = Path(path)
        write_single(gather(Place(self.folder, site, alone=not site)), out, self.folder)
        return out

    def before(self, weights: PathLike | None = None) -> Model:
        """The model as every site first received it, before training.

        Args:
            weights: as for `load`.

        Raises:
            UserFault: the weights are missing, or the method's sites do not begin with one model.
        """
        return Model(first_model(from_record(self.record["config"]), _path(weights)))


def simulate(
    job: PathLike | Mapping[str, Any] | Job,
    *,
    rounds: int | None = None,
    sites: int | Sequence[str] | None = None,
    out: PathLike | None = None,
    folders: PathLike | Mapping[str, PathLike] | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> Results:
    """Run a whole federation in this process, without FLARE, and return what it left.

    The numbers are those of the same job in FLARE's simulator, bit for bit. A run that was cut goes on when the same
    call is made again.

    Args:
        job: a settings file or folder of jobs/; or a mapping as such a file holds it; or a mapping of settings alone.
        rounds: how many; default: the job's.
        sites: their names, or how many of the job's; default: the job's own.
        out: the run's folder; default: runs/JOB_alone.
        folders: the data folder of each site, or one of all; default: PFEDSAM_DATA. A job on synthetic images
            needs none.
        on_round: is called with each finished round's entry of results.json.
        settings: changes of the job's settings, spelt as in its file: one of a part stands in a dictionary, such as
            `method="ditto", train={"lr": 3e-4}`.

    Raises:
        UserFault: there is no such job; it says something unknown or impossible; data or weights are missing; or
            `out` holds another run, or something else.
    """
    given = _job(job)
    changes = {"settings": _changed(given.settings, settings), "rounds": given.rounds if rounds is None else rounds}
    run = make_job(vars(given) | changes | {"sites": _sites(sites, given.sites)})
    facts = {"run": run.run, "begin": run.begin, "begin_private": run.config.begin_private}
    if named := [f"{fact} {value}" for fact, value in facts.items() if value]:
        do = "render the job for FLARE's simulator: its server has that run in its store"
        raise UserFault(expected="a job that starts a new run", came=", ".join(named), do=do)
    folder = _own(Path(out or Path("runs") / f"{run.name}_alone"))  # FLARE's simulator deletes the one that it runs in
    with quietly(), torch_as_it_was():
        threads = os.environ.get("PFEDSAM_THREADS") or "1"  # as in FLARE's simulator: another number, other bits
        torch.set_num_threads(parse_count(threads, "threads in PFEDSAM_THREADS"))
        plan = Plan(run.config, {site: _places(site, run, folder, folders) for site in run.sites}, run.rounds, folder)
        return Results(federate(plan, on_round or (lambda _: None)), folder)


def _own(folder: Path) -> Path:
    """A folder for a run's files, which is not there, is empty, or holds a run."""
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / one).exists() for one in ("store", "prepared")):
        raise UserFault(expected="a folder that is empty or holds a run", came=f"{folder}", do="name another one")
    return folder


def _job(job: PathLike | Mapping[str, Any] | Job) -> Job:
    if isinstance(job, Job):
        return job
    if isinstance(job, str | os.PathLike):
        return read_job(Path(job))
    if not isinstance(job, Mapping):
        raise UserFault(expected="a job: a path, a name or a mapping", came=repr(job), do="give one of these")
    values: dict[str, Any] = dict(job) if "settings" in job else {"settings": dict(job)}
    own = values["settings"]
    return make_job({"name": str(own.get("study", "pfedsam")) if isinstance(own, dict) else "pfedsam", **values})


def _changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with changes in them; a dictionary changes what it names of a part, and leaves the rest."""
    found = dict(settings)
    for name, value in changes.items():
        if name in FACTS:
            raise UserFault(expected="a setting of the job", came=name, do="write it in the job, beside its settings")
        if close := difflib.get_close_matches(name, ARGUMENTS, 1):
            raise UserFault(expected="a setting or an argument of simulate", came=name, do=f"write {close[0]}")
        old = found.get(name)
        old = {"name": old} if isinstance(old, str) else old
        found[name] = {**old, **value} if isinstance(value, Mapping) and isinstance(old, dict) else value
    return found


def _sites(asked: int | Sequence[str] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """The named sites, or the given number of the job's own sites, else of demo sites."""
    if isinstance(asked, float):
        raise UserFault(expected="a whole number of sites, or their names", came=str(asked), do="correct it")
    if asked is None or isinstance(asked, int):
        count = len(own) if asked is None else asked
        if own and count > len(own):
            raise UserFault(
                expected=f"at most the job's {len(own)} sites", came=str(count), do="give a smaller number, or names"
            )
        found = own[: max(count, 0)] if own else tuple(f"site-{i + 1}" for i in range(count))
    else:
        found = tuple([asked] if isinstance(asked, str) else asked)
    if not found:
        raise UserFault(expected="sites", came="a job that names none", do="give their number or their names")
    return found


def _places(site: str, job: Job, out: Path, folders: PathLike | Mapping[str, PathLike] | None) -> Places:
    """Where a site's files are: its data as the caller or this machine says, all that it writes in `out`."""
    named = folders.get(site) if isinstance(folders, Mapping) else folders or os.environ.get("PFEDSAM_DATA")
    if job.config.data.source == "synthetic":
        named = drawn(out / site / "synthetic_data", site, job.config)
    if not named:
        do = "set PFEDSAM_DATA; in Python, give folders"
        raise UserFault(expected=f"the data folder of site {site}", came="no setting", do=do)
    cache = Path(os.environ.get("PFEDSAM_CACHE") or out / "prepared")
    return Places(Path(named), out / "store", _path(os.environ.get("PFEDSAM_WEIGHTS")), cache, out / site / "scratch")


def _path(text: PathLike | None) -> Path | None:
    return Path(text) if text else None
