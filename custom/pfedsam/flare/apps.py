"""Which files a job may bring to a party, beside code that FLARE knows to be code."""

import os
from pathlib import Path

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from pfedsam.errors import UserFault
from pfedsam.layout import SETTINGS

SIGNATURES = frozenset({NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE})  # FLARE writes them into each folder
CONFIG = frozenset({"config_fed_client.json", "config_fed_server.json", SETTINGS.name})


class SettingsAlone(AppValidator):  # type: ignore[misc]
    """Refuses an app with any file beside its three of settings. FLARE asks it before it deploys a job.

    FLARE takes the folder `custom` for code, and asks the party's `byoc` right for it. But it looks for some of its own
    settings in the whole kit, so in the folders of jobs too. One of them, comm_config.json, may name any folder, whose
    Python files FLARE then imports.
    """

    def validate(self, app_folder: str) -> tuple[str, dict[str, object]]:
        """FLARE's question: what is wrong with the app in this folder (empty: nothing), and its properties (none)."""
        if not (found := strange(Path(app_folder))):
            return "", {}
        fault = UserFault(
            expected=f"a job of settings alone, in config/{', config/'.join(sorted(CONFIG))}",
            came=f"{len(found)} other files, such as {found[0]}",
            do="make the job by `pfedsam render --no-code`; code needs kits with byoc",
        )
        return str(fault), {}


def strange(app: Path) -> list[str]:
    """The files of an app that are neither settings, signatures nor in `custom`, by their paths in it. So is a link."""
    allowed = {"": SIGNATURES, "config": SIGNATURES | CONFIG}
    found = []
    for folder, folders, files in os.walk(app):
        here = Path(folder).relative_to(app)
        if here == Path():
            folders[:] = [name for name in folders if name != WorkspaceConstants.CUSTOM_FOLDER_NAME]
        known = allowed.get("" if here == Path() else here.as_posix(), frozenset())
        links = [name for name in (*folders, *files) if (Path(folder) / name).is_symlink()]
        found += [(here / name).as_posix() for name in {*files, *links} if name not in known or name in links]
    return sorted(found)
