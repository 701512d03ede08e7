"""What pfedsam adds to FLARE's startup kits: a builder for project.yml that writes each kit's local files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder, ProvisionContext

from pfedsam.files import read_json, write_json
from pfedsam.flare import recipe
from pfedsam.flare.apps import SettingsAlone
from pfedsam.flare.gate import Gate
from pfedsam.flare.policy import SitePolicy
from pfedsam.layout import PRIVACY
from pfedsam.umask import USUAL

# The classes that a job without code may name: the components that the recipe imports, since it makes every job, the
# site's policy and the kit's gate. Not the whole package, because FLARE would call any function of it. And not FLARE's
# own list: its swarm and cyclic controllers send results to other sites, past the policy.
PARTS = [one for one in vars(recipe).values() if isinstance(one, type) and issubclass(one, FLComponent)]
CLASSES = [f"{one.__module__}.{one.__name__}" for one in (*PARTS, SitePolicy, Gate, SettingsAlone)]
RESOURCES, AUTHORIZATION, NETWORK = "resources.json", "authorization.json", "comm_config.json"
LOG_READING = ("grep",)  # how `pfedsam watch` reads the server's log
START = "sub_start.sh"  # of a kit: FLARE's script that starts the process, and again after it died
CLOSED = f'umask "${{PFEDSAM_UMASK:-{USUAL}}}" || exit 1'


class HospitalKit(Builder):  # type: ignore[misc]
    """Writes resources.json, authorization.json, and for sites privacy.json, into a kit's local folder.

    An empty comm_config.json at the kit's top keeps FLARE from looking for one in the folders of jobs, where it would
    name code to import.

    The script that starts a process sets its umask, so that FLARE's own logs too are files of one user. The process
    itself does so later (`Gate`), when FLARE has opened them.

    From then on they belong to the kit's owner, whose administrator may tighten or loosen them. In
    project.yml, name this builder after StaticFileBuilder, which writes the defaults that it reads, and before
    SignatureBuilder, which signs the startup folder of a kit with homomorphic encryption.

    Args:
        byoc: whether server and sites let a project lead's job bring its own code. False allows only jobs of
            the installed package.
        max_megabytes: the largest message that a site may send, in MB.
        least_images, least_steps: the fewest training images and steps of a round whose update a site may send.
        most_epsilon: the largest privacy budget of a job to which a site may send updates. None: any job.
        storage: the server's folder for jobs. None leaves FLARE's, which is temporary.
        at_server: more classes that a job may name at the server only, such as FLARE's receiver for MLflow. A
            receiver sends what sites report to the address that the job names.
        masked: whether sites let only masked updates leave.
        derived: whether sites let values leave that a method makes of images, such as FedDG's spectra.
        least_patients: the fewest patients of these images.
        least_tested: the fewest patients of a split whose scores a site may send.
    """

    def __init__(
        self,
        byoc: bool = False,
        max_megabytes: float = 64.0,
        storage: str | None = None,
        least_images: int = 8,
        least_steps: int = 4,
        at_server: Sequence[str] = (),
        most_epsilon: float | None = None,
        masked: bool = False,
        derived: bool = False,
        least_patients: int = 2,
        least_tested: int = 1,
    ) -> None:
        super().__init__()
        self.byoc, self.storage, self.at_server = byoc, storage, at_server
        self.fence = {
            "max_megabytes": max_megabytes,
            "least_images": least_images,
            "least_steps": least_steps,
            "least_patients": least_patients,
            "least_tested": least_tested,
            "most_epsilon": most_epsilon,
            "masked": masked,
            "derived": derived,
        }

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write the files of the server and of every site. Close FLARE's folder of the root's key to other users."""
        Path(ctx.get_state_dir()).chmod(0o700)
        server = Path(ctx.get_local_dir(project.get_server()))
        write_json(server / RESOURCES, _stored(_own(server, self.at_server, bare=not self.byoc), self.storage))
        self._authorize(server, *LOG_READING)
        for site in project.get_clients():
            folder = Path(ctx.get_local_dir(site))
            own = {**_own(folder, bare=not self.byoc), "allow_log_streaming": False}  # project.yml cannot say it
            write_json(folder / RESOURCES, own)
            self._authorize(folder)
            write_json(folder / PRIVACY.name, privacy(self.fence))
        for party in (project.get_server(), *project.get_clients()):
            for script in Path(ctx.get_kit_dir(party)).glob(START):
                script.write_text(closed(script.read_text()))  # in place: it stays executable
            if not party.get_listening_host():  # else FLARE writes this file into `local`
                write_json(Path(ctx.get_ws_dir(party)) / NETWORK, {})

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Close the file of the root's key too: FLARE's builder of certificates, which comes later, has written it."""
        for path in Path(ctx.get_state_dir()).glob("*.json"):
            path.chmod(0o600)

    def _authorize(self, folder: Path, *read: str) -> None:
        """Narrow a kit's roles, in FLARE's default file too: FLARE reads that if the kit's own file is deleted."""
        default = folder / f"{AUTHORIZATION}.default"
        narrowed = roles(read_json(default), byoc=self.byoc, read=read)
        for path in (default, folder / AUTHORIZATION):
            write_json(path, narrowed)


def closed(script: str) -> str:
    """A start script whose process makes files for its own user alone, or for whom PFEDSAM_UMASK lets."""
    first, rest = script.split("\n", 1)
    return f"{first}\n{CLOSED}\n{rest}"


def roles(default: dict[str, Any], *, byoc: bool, read: Collection[str] = ()) -> dict[str, Any]:
    """FLARE's roles, with lead and project_admin narrowed. A lead submits, an org_admin runs its own site, a member
    looks.

    Nobody from outside may list or read files by shell command. Whether a job may bring code is `byoc` for all. FLARE
    asks each party only of the code that the job brings to that party, so the server says it too.

    Args:
        read: the shell commands that a lead and a project_admin keep in their own organisation.
    """
    permissions = default["permissions"]
    narrowed = {"shell_commands": "none", **dict.fromkeys(read, "o:site"), "byoc": "any" if byoc else "none"}
    lead = {**permissions["lead"], **narrowed}
    admin = {**dict.fromkeys(lead, "any"), **narrowed}
    return {**default, "permissions": {**permissions, "lead": lead, "project_admin": admin}}


def privacy(limits: dict[str, float | None]) -> dict[str, Any]:
    """One scope for every job: the site's folders (empty: those of the environment) and the site's policy."""
    fence = {"path": "pfedsam.flare.policy.SitePolicy", "direction": "out", "args": limits}
    scope = {
        "name": "pfedsam",
        "properties": {"data": "", "weights": "", "store": "", "cache": "", "threads": ""},
        "task_result_filters": [fence],
        "task_data_filters": [fence],  # of tasks that a site would give to others
    }
    return {"scopes": [scope], "default_scope": "pfedsam"}


def _own(folder: Path, more: Sequence[str] = (), *, bare: bool) -> dict[str, Any]:
    """A kit's resources. A job without code may name only the parts of our own jobs, and `more`.

    FLARE's default file gets the same list. `nvflare poc prepare` writes the server's resources.json again from it,
    and FLARE reads it if the kit's own file is deleted.

    Args:
        bare: whether the long-lived process has the gate, and refuses a job's files that are no settings. It must
            have this package installed.
    """
    default = folder / f"{RESOURCES}.default"
    found = read_json(default)
    components = [*found.get("components", []), *([{"id": "gate", **_part(Gate)}] if bare else [])]
    validator = {"app_validator": _part(SettingsAlone)} if bare else {}
    resources = {**found, **validator, "components": components, "class_allow_list": [*CLASSES, *more]}
    write_json(default, resources)
    return resources


def _part(one: type) -> dict[str, Any]:
    """A part of FLARE's process, as its settings name it."""
    return {"path": f"{one.__module__}.{one.__name__}", "args": {}}


def _stored(resources: dict[str, Any], storage: str | None) -> dict[str, Any]:
    if storage is None:
        return resources
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{storage}/snapshots"
    manager = next(c for c in resources["components"] if c["id"] == "job_manager")
    manager["args"]["uri_root"] = f"{storage}/jobs"
    return resources
