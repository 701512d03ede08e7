"""Paths: of the package's own assets, a site's folders, and FLARE's in a job, a kit, a run and a simulator's workspace.

It does not import FLARE.
"""

from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # what ships beside the code
PREDICTED = ".pfedsam-predict.jsonl"  # in a folder of predicted masks: one line for what was written of one scan
SETTINGS = Path("app/config/pfedsam.json")  # below a job folder
SERVER = Path("app/config/config_fed_server.json")
CLIENT = Path("app/config/config_fed_client.json")
CODE = Path("app/custom")
META = Path("meta.json")
PRIVACY = Path("local/privacy.json")  # below a startup kit
PERSON = Path("startup/fed_admin.json")
PARTY_CERTIFICATES = (Path("startup/client.crt"), Path("startup/server.crt"))  # a kit has one of them
ROOT_CERTIFICATE = Path("startup/rootCA.pem")
SIMULATED = "simulate_job"  # FLARE's simulator gives every job this name
OWN = "pfedsam"  # below a site's run folder: what it keeps of the final test
RESULTS, CASES, MODELS = "results.json", "cases.json", "models"
PICTURES = "pictures.safetensors"  # beside cases.json: what pictures are drawn from


def servers_folders(folder: Path) -> list[Path]:
    """The folders that may hold the server's files of a run: itself, a simulator's workspace, or a downloaded job's."""
    return [folder, folder / "server" / SIMULATED, folder / "workspace"]


def sites_folders(folder: Path, site: str) -> list[Path]:
    """The folders that may hold a site's own files of a run. Without a name, only those for a site's own folder."""
    named = [folder / site / SIMULATED / OWN, folder / site] if site else []
    return [folder, folder / OWN, *named]


def site_of(own: Path, run: Path) -> str:
    """The site whose own files are in `own`, below `run`: SITE for a run in one process, else SITE/JOB/pfedsam."""
    return own.parent.parent.name if own.name == OWN and own != run.resolve() else own.name


def simulated_results(workspace: Path) -> Path:
    """The results.json of a run in a simulator's workspace."""
    return workspace / "server" / SIMULATED / RESULTS


@dataclass(frozen=True)
class Places:
    """A site's folders. The site sets them, never the job.

    Attributes:
        data: the folder of the datalist, or the folder above it if its name is the site's.
        weights: the folder of pretrained weight files. None reads PFEDSAM_WEIGHTS.
        store: the folder of the site store.
        cache: the folder of prepared base models, which sites on one machine may share. None: in the store.
        scratch: a folder for the time of the job, for what can be computed again. None: in the store.
    """

    data: Path
    store: Path
    weights: Path | None = None
    cache: Path | None = None
    scratch: Path | None = None

    @property
    def prepared(self) -> Path:
        """The folder of prepared base models."""
        return self.cache or self.store / "prepared"
