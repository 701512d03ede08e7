"""The startup kits that poc/project.yml makes, and how the watcher reads what the sites answer."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from federation import Federation, main
from nvflare.apis.fl_constant import SiteType
from nvflare.fuel.utils.config_factory import ConfigFactory
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE
from nvflare.lighter.utils import load_private_key_file, sign_folders
from nvflare.private.fed.app.fl_app_validator import FLAppValidator

from conftest import ROOT
from pfedsam.certificates import now, root_of, warnings
from pfedsam.cli import main as command
from pfedsam.errors import UserFault
from pfedsam.export.signature import check, sign, signer_of
from pfedsam.flare.admin import Admin
from pfedsam.flare.apps import SettingsAlone, strange
from pfedsam.flare.kit import CLASSES

pytestmark = pytest.mark.flare


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Federation]:
    """Kits made by FLARE's own provisioning, of sites that take foreign code and of sites that do not."""
    made = {}
    for byoc in (False, True):
        made[byoc] = Federation(tmp_path_factory.mktemp("kits") / "federation")
        made[byoc].prepare("provisioned", byoc=byoc)
    return made


def local(federation: Federation, party: str, name: str) -> dict:
    return json.loads((federation.kit(party) / "local" / name).read_text())


@pytest.mark.parametrize("party", ["hospital-a", "fl-server"])
def test_roles_are_narrowed_everywhere(kits: dict[bool, Federation], party: str) -> None:
    """At the server too: FLARE asks each party only of the code that a job brings to it."""
    for byoc, federation in kits.items():
        permissions = local(federation, party, "authorization.json")["permissions"]
        assert permissions["lead"]["byoc"] == permissions["project_admin"]["byoc"] == ("any" if byoc else "none")
        assert permissions["lead"]["submit_job"] == "any"
        assert permissions["lead"]["shell_commands"] == permissions["project_admin"]["shell_commands"] == "none"
        assert permissions["member"] == {"view": "any"}
        assert permissions["org_admin"]["submit_job"] == "none"
        assert permissions["lead"].get("grep", "none") == ("o:site" if party == "fl-server" else "none")
        assert local(federation, party, "authorization.json.default")["permissions"] == permissions


def test_every_party_allows_the_classes_that_our_jobs_are_made_of_and_no_other(kits: dict[bool, Federation]) -> None:
    """FLARE's default list holds controllers that send a site's result to other sites as a task, round its filters."""
    for party in kits[False].parties:
        assert local(kits[False], party, "resources.json")["class_allow_list"] == list(CLASSES)


def test_in_poc_mode_too_every_party_allows_these_classes_and_the_server_keeps_its_jobs(tmp_path: Path) -> None:
    """FLARE's POC mode writes the server's resources.json anew, after all builders, from its default file."""
    federation = Federation(tmp_path / "federation")
    federation.prepare("poc", byoc=False)
    for party in federation.parties:
        assert local(federation, party, "resources.json")["class_allow_list"] == list(CLASSES)
    assert str(federation.home / "poc/jobs-storage") in json.dumps(local(federation, "fl-server", "resources.json"))
    for party in ("hospital-a", "fl-server"):
        assert local(federation, party, "authorization.json")["permissions"]["lead"]["byoc"] == "none"


def test_a_party_that_deletes_its_resources_falls_back_on_the_same_classes(kits: dict[bool, Federation]) -> None:
    for party in kits[False].parties:
        assert local(kits[False], party, "resources.json.default")["class_allow_list"] == list(CLASSES)


def test_a_site_s_logs_stay_and_the_fence_is_the_default_scope(kits: dict[bool, Federation]) -> None:
    assert local(kits[False], "hospital-b", "resources.json")["allow_log_streaming"] is False
    policy = local(kits[False], "hospital-b", "privacy.json")
    (scope,) = policy["scopes"]
    assert policy["default_scope"] == scope["name"]
    for filters in ("task_result_filters", "task_data_filters"):
        ((path, way),) = [(f["path"], f["direction"]) for f in scope[filters]]
        assert (path, way) == ("pfedsam.flare.policy.SitePolicy", "out")


def test_the_server_s_jobs_lie_where_a_restart_leaves_them(kits: dict[bool, Federation]) -> None:
    text = json.dumps(local(kits[False], "fl-server", "resources.json"))
    assert str(kits[False].home / "server-storage/jobs") in text
    assert "/tmp/nvflare" not in text


def test_who_reads_a_kit_s_file_is_none_of_its_processes(kits: dict[bool, Federation]) -> None:
    """`stop` ends a party's processes."""
    reader = subprocess.Popen(
        ["tail", "-f", kits[False].kit("hospital-a") / "local/privacy.json"], stdout=subprocess.DEVNULL
    )
    try:
        assert kits[False].processes("hospital-a") == []
    finally:
        reader.kill()
        reader.wait()


def test_a_second_federation_in_the_same_folder_is_refused(
    kits: dict[bool, Federation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--home", str(kits[False].home)]) == 2
    assert "remove first" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["start", "submit", "watch", "fetch"])
def test_a_verb_without_a_federation_is_told(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--home", str(tmp_path / "none")]) == 2
    assert re.search("run (prepare|submit) first", capsys.readouterr().err)


def test_nobody_else_on_the_machine_reads_the_project_s_root_key(kits: dict[bool, Federation], tmp_path: Path) -> None:
    """FLARE writes it for all to read. A copy of the folder, as a renewal makes it, is as closed."""
    state = kits[False].home / "workspace/pfedsam/state"
    assert "root_pri_key" in json.loads((state / "cert.json").read_text())
    subprocess.run(["cp", "-r", state, tmp_path / "state.before"], check=True)
    for folder in (state, tmp_path / "state.before"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "cert.json").stat().st_mode) == 0o600


def test_the_classes_that_sites_allow_are_those_that_our_jobs_name() -> None:
    """A prefix would do more: FLARE calls whatever a job names, a function too."""
    named = set()
    for file in (ROOT / "jobs").rglob("config_fed_*.json"):
        named |= set(re.findall(r'"((?:pfedsam|nvflare)\.[\w.]+)"', file.read_text()))
    assert named <= set(CLASSES)
    own = {"pfedsam.flare.policy.SitePolicy", "pfedsam.flare.gate.Gate", "pfedsam.flare.apps.SettingsAlone"}
    assert set(CLASSES) - named == own


@pytest.fixture
def app(tmp_path: Path, kits: dict[bool, Federation]) -> Path:
    """What a party gets of a job without code, with a lead's signatures."""
    assert command(["render", "pfedsam", str(tmp_path / "job"), "--no-code"]) == 0
    startup = kits[False].kit("lead@hub.org") / "startup"
    sign_folders(str(tmp_path / "job/app"), load_private_key_file(startup / "client.key"), str(startup / "client.crt"))
    assert (tmp_path / "job/app/config" / NVFLARE_SIG_FILE).is_file()
    return tmp_path / "job/app"


@pytest.mark.parametrize("site_type", [SiteType.CLIENT, SiteType.SERVER])
@pytest.mark.parametrize(
    "brought",
    ["extra/x.py", "config/comm_config.json", "config/resources.json", "config/more/config_fed_client.json", "x.py"],
)
def test_a_party_that_takes_no_code_deploys_settings_alone(app: Path, brought: str, site_type: str) -> None:
    """FLARE takes only a folder `custom` for code. But a job's comm_config.json names any folder to import."""
    asked = FLAppValidator(site_type, [SettingsAlone()])
    assert asked.validate(str(app)) == ("", {})
    (app / "custom").mkdir()
    (app / "custom/mine.py").touch()
    assert asked.validate(str(app)) == ("", {"byoc": True})  # FLARE then asks who may bring code
    (app / brought).parent.mkdir(exist_ok=True)
    (app / brought).write_text("{}")
    assert re.search(f"1 other files, such as {brought}", asked.validate(str(app))[0])


def test_a_link_among_a_job_s_settings_is_none(app: Path) -> None:
    settings = app / "config/pfedsam.json"
    settings.rename(app.parent / "elsewhere.json")
    settings.symlink_to(app.parent / "elsewhere.json")
    assert strange(app) == ["config/pfedsam.json"]


@pytest.mark.parametrize("name", ["resources.json", "resources.json.default"])
def test_flare_s_processes_ask_it_where_a_kit_takes_no_code(kits: dict[bool, Federation], name: str) -> None:
    asked = {"path": "pfedsam.flare.apps.SettingsAlone", "args": {}}
    for party in ("hospital-a", "fl-server"):
        assert local(kits[False], party, name)["app_validator"] == asked
        assert "app_validator" not in local(kits[True], party, name)


def test_flare_finds_no_job_s_network_settings(kits: dict[bool, Federation], tmp_path: Path) -> None:
    """It takes the first comm_config.json that it meets, from the kit's top on."""
    for party in ("hospital-a", "fl-server"):
        kit = tmp_path / party
        shutil.copytree(kits[True].kit(party), kit)
        (kit / "0job/app/config").mkdir(parents=True)
        (kit / "0job/app/config/comm_config.json").write_text('{"comm_driver_path": "."}')
        _, found = ConfigFactory.search_config_format("comm_config.json", [str(kit)])
        assert found == str(kit / "comm_config.json")
        assert json.loads(Path(found).read_text()) == {}


@pytest.mark.parametrize("party", ["hospital-a", "fl-server"])
@pytest.mark.parametrize(("umask", "mode"), [(None, 0o600), ("027", 0o640), ("everybody", None)])
def test_flare_s_own_files_are_the_user_s_alone_from_the_process_s_first_moment(
    kits: dict[bool, Federation], tmp_path: Path, party: str, umask: str | None, mode: int | None
) -> None:
    """FLARE opens its logs before it makes the gate. A kit that takes code has no gate there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text('#!/bin/sh\ntouch "$HOME/log.txt"\n')
    (tmp_path / "bin/python3").chmod(0o700)
    usual = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment = usual | ({"PFEDSAM_UMASK": umask} if umask else {})
    for federation in kits.values():
        (tmp_path / "log.txt").unlink(missing_ok=True)
        script = federation.kit(party) / "startup/sub_start.sh"
        assert os.access(script, os.X_OK)
        done = subprocess.run([script, "--once"], env=environment, umask=0o022, capture_output=True)
        assert (done.returncode == 0) == (mode is not None)
        made = [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("log.txt")]
        assert made == ([mode] if mode else [])


def test_a_folder_that_is_no_kit_and_one_that_is_not_empty_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="startup kit"):
        Admin(tmp_path)
    (tmp_path / "letter").write_text("mine")
    with pytest.raises(UserFault, match="not empty"):
        Federation(tmp_path).prepare("provisioned", byoc=False)


def test_every_party_s_kit_signs_and_every_other_party_can_check_it(
    kits: dict[bool, Federation], tmp_path: Path
) -> None:
    """With the certificates that FLARE's own provisioning makes."""
    federation, file = kits[False], tmp_path / "model.safetensors"
    file.write_bytes(b"a model")
    for party in (*federation.parties, "lead@hub.org"):
        sign(file, signer_of(federation.kit(party), now()), now())
        for other in ("hospital-b", "fl-server", "admin@hub.org"):
            assert check(file, root_of(federation.kit(other)), now()).signer == party
        with pytest.raises(UserFault, match="did not issue"):
            check(file, root_of(kits[True].kit(party)), now())
        assert warnings(federation.kit(party), now()) == []
