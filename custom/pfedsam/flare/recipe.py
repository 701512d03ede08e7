"""The job as one of FLARE's recipes: its parts at the server and at a site, and their settings."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.widgets.metrics_artifact_writer import MetricsArtifactWriter
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver
from nvflare.job_config.api import FedJob
from nvflare.recipe.spec import Recipe

import pfedsam
from pfedsam import methods
from pfedsam.data.folder import new_folder
from pfedsam.errors import UserFault
from pfedsam.exchange.roster import STEPS
from pfedsam.files import read_json
from pfedsam.flare.aggregator import SharedAggregator
from pfedsam.flare.curves import CURVE
from pfedsam.flare.evaluation import FinalEvaluation
from pfedsam.flare.executor import PFedSAMExecutor
from pfedsam.flare.filters import OnlyDeclaredEnters, OnlySharedLeaves, UpdateGuard
from pfedsam.flare.persistor import SharedPersistor
from pfedsam.flare.results import ResultsWriter
from pfedsam.flare.rounds import Rounds
from pfedsam.flare.sends import SitesOwnModel
from pfedsam.flare.steps import masked
from pfedsam.jobs import FACTS, ROUNDS, RUN, Job, make_job, read_job
from pfedsam.layout import CLIENT, SERVER, SETTINGS
from pfedsam.names import job_name
from pfedsam.settings import check_sites

TASKS = ("train", "validate")
ASKS_EVERY = 0.25  # seconds: how often an idle site asks for a task. Our choice: FLARE's two are lost after each task
FOR_PEOPLE = ("*.html", "*.md", "bundle*", "jobs", "poc")  # of the assets
OF_A_PERSON = (  # rooms and modules of verbs that no job calls
    *("cli", "doctor", "export", "inference", "predict", "prepare", "report"),
    *("api.py", "federation.py", "jobs.py", "pages.py", "shipped.py", "data/owners.py"),
    *("data/bits.py", "data/dicom.py", "data/headers.py", "data/slices.py", "data/stored.py", "data/volume.py"),
    *("flare/admin.py", "flare/kit.py", "flare/presence.py", "flare/recipe.py", "flare/watch.py"),
)
OF_METHODS = (  # modules that only methods import
    *("data/spectrum.py", "exchange/slots.py", "model/prompted.py", "train/ala.py", "train/boundary.py"),
    *("train/crf.py", "train/pseudo.py", "train/representation.py"),
)


class PFedSAMRecipe(Recipe):  # type: ignore[misc]
    """A pFedSAM job that FLARE's SimEnv, PocEnv and ProdEnv run, and that `export(folder)` writes.

        recipe = PFedSAMRecipe("mine", rounds=6, min_sites=2, method="ditto", train={"lr": 3e-4})
        recipe.execute(SimEnv(clients=["site-1", "site-2"]))

    Args:
        name: the job's name, which people see.
        rounds: the number of rounds.
        min_sites: the number of valid updates that a round needs.
        code: whether the job brings this package's code. False is for sites that have it installed and allowed, like
            provisioned sites. FLARE's simulator and its POC mode allow no class that a job does not bring.
        more: other fields of `pfedsam.jobs.Job` (sites, grace, timeout, run, continues, begin, meta). All else is a
            setting of `pfedsam.config.Config`, written as in pfedsam.json: a part is a dictionary.

    Raises:
        UserFault: a setting is unknown or impossible, or a round would have none of `sites` to train.
    """

    def __init__(self, name: str, *, rounds: int = 6, min_sites: int = 2, code: bool = True, **more: Any) -> None:
        facts = {key: more.pop(key) for key in FACTS if key in more}
        job = make_job({"settings": more, **facts, "name": name, "rounds": rounds, "min_sites": min_sites})
        if job.sites:
            check_sites(job.config, job.sites, job.rounds)
        title = job_name(job.run) if job.run not in ("", "latest") else name  # a run's jobs have its name
        where = {"deploy_map": {"app": ["server", *job.sites]}} if job.sites else {}
        super().__init__(FedJob(title, min_clients=job.quorum, meta_props={**job.meta, **where}))
        self.job, self._code = job, code
        self._files: Path | None = None
        self._job.set_app_packages(["pfedsam"])  # not FLARE's scan of imports: methods are imported by their names
        self._server()
        self._site()

    @classmethod
    def of(cls, job: Job, *, code: bool = True) -> "PFedSAMRecipe":
        """The recipe of a job that `read_job` or `make_job` returned."""
        facts = {fact: value for fact, value in vars(job).items() if fact != "settings"}
        return cls(**facts, code=code, **job.settings)

    def finalize(self) -> None:
        """Add our own files, the settings and the code, to FLARE's. FLARE calls it before export and run."""
        if self._files is not None:
            return
        self._files = Path(tempfile.mkdtemp(prefix="pfedsam-"))
        weakref.finalize(self, shutil.rmtree, self._files, ignore_errors=True)
        settings = self._files / SETTINGS.name
        settings.write_text(json.dumps(self.job.settings, indent=2) + "\n")
        self._job.add_file_to_server(str(settings), app_folder_type="config")
        if self._code:
            copy_code(self._files / "pfedsam", self.job)
            self._job.add_file_to_server(str(self._files / "pfedsam"), dest_dir="pfedsam")

    @property
    def _steps(self) -> tuple[str, ...]:
        """The tasks around a masked sum. Other jobs have none."""
        return STEPS if masked(self.job.config) else ()

    def _server(self) -> None:
        job, put = self.job, self._job.to_server
        put(Rounds(**{fact: getattr(job, fact) for fact in ROUNDS} | {"min_sites": job.quorum}), id="rounds")
        put(FinalEvaluation(grace=job.grace, timeout=job.timeout), id="final")
        put(SharedPersistor(**{fact: getattr(job, fact) for fact in RUN}), id="persistor")
        put(SharedAggregator(), id="aggregator")
        put(IntimeModelSelector(key_metric="val_dice"), id="selector")
        put(ResultsWriter(), id="results")
        put(MetricsArtifactWriter(), id="metrics")
        put(TBAnalyticsReceiver(events=[CURVE]), id="tb_receiver")
        self.add_server_config({"server": {"task_request_interval": ASKS_EVERY}})
        for task in ("train", *self._steps):
            self.add_server_input_filter(UpdateGuard(), [task])
        for task in TASKS[:2]:  # a filter a task: FLARE writes several tasks of one in any order
            self.add_server_output_filter(SitesOwnModel(), [task])

    def _site(self) -> None:
        self._job.to_clients(PFedSAMExecutor(), tasks=[*TASKS, *self._steps])
        for task in (*TASKS[:2], *self._steps):
            self.add_client_input_filter(OnlyDeclaredEnters(), [task])
        for task in (*TASKS, *self._steps):
            self.add_client_output_filter(OnlySharedLeaves(), [task])


def render(job: Path, out: Path, *, changes: Iterable[str] = (), code: bool = True, **facts: Any) -> None:
    """Write `job` to `out` as FLARE's job folder, for all sites that connect, with the package's code.

    Args:
        job: a settings file, or a folder that `render` wrote.
        changes: "key=value" pairs that change its settings. Values are JSON or text.
        code: as for `PFedSAMRecipe`.
        facts: other fields of `Job`: rounds, min_sites, grace, timeout, run, continues, begin. `sites` deploys only
            to these sites, so that they can be simulated without naming them.

    Raises:
        UserFault: there is no such job, or its FLARE files were edited. `out` exists, or FLARE does not allow its
            name or a site's name. A setting is unknown. The disk is full. No part of a job is left then.
    """
    recipe = PFedSAMRecipe.of(read_job(job, changes, **{**facts, "sites": facts.get("sites") or ()}), code=code)
    if out.exists():
        raise UserFault(expected="a folder that does not exist yet", came=str(out), do="remove it, or name another")
    job_name(out.resolve().name)
    if job.is_dir():
        _check_unedited(job)
    with new_folder(out) as new:
        _export(recipe, new)


def _export(recipe: PFedSAMRecipe, folder: Path) -> None:
    """Write a job's files into `folder` itself. FLARE would put them into a folder below it, named like the job."""
    place = folder / ".exported"
    recipe.export(str(place))
    for path in (place / recipe.name).iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(place)


def _check_unedited(job: Path) -> None:
    """Refuse a folder whose FLARE files say more than `Job` holds, because rendering it again would lose that.

    Raises:
        UserFault: they say more.
    """
    with tempfile.TemporaryDirectory() as place:
        _export(PFedSAMRecipe.of(read_job(job), code=False), Path(place))
        edited = [str(file) for file in (SERVER, CLIENT) if read_json(job / file) != read_json(Path(place) / file)]
    if edited:
        raise UserFault(
            expected=f"FLARE's files in {job} as pfedsam writes them",
            came=f"{' and '.join(edited)} edited, or of another version",
            do="render the settings file again, or submit this folder unchanged",
        )


def copy_code(target: Path, job: Job) -> None:
    """Copy the parts of the package that a job needs to `target`: FLARE's http takes at most 4 MiB.

    The demo backbone's weights are copied only if they are used, and of the methods only the job's with their modules,
    unless it begins with the model of a run of any method. FLARE allows no links in a job.
    """
    config = job.config
    leave = ["__pycache__", *FOR_PEOPLE, *([] if config.model.backbone == "demo" else ["*.safetensors"])]
    shutil.copytree(Path(pfedsam.__file__).parent, target, ignore=shutil.ignore_patterns(*leave))
    for name in OF_A_PERSON:
        (shutil.rmtree if "." not in name else Path.unlink)(target / name)
    if not job.begin:
        for name in methods.OURS - methods.needed(config.method):
            (target / f"methods/{name}.py").unlink()
        lines = "".join(path.read_text() for path in (target / "methods").glob("*.py"))
        for name in OF_METHODS:
            if f"from pfedsam.{name.removesuffix('.py').replace('/', '.')} import" not in lines:
                (target / name).unlink()
