"""pfedsam watch, as a user stops it."""

import json
import subprocess
import sys
from pathlib import Path

STOPPED = """
import sys, threading
from pfedsam import cli
from pfedsam.cli import watch as verb
from pfedsam.flare import watch as watcher

def stopped(*_, **__):
    threading.Thread(target=threading.Event().wait).start()  # as FLARE's may go on
    raise KeyboardInterrupt

verb.ENDS_WITHIN, watcher.watch = 0.5, stopped
sys.exit(cli.main(["watch", "job", "--kit", sys.argv[1]]))
"""


def test_ctrl_c_ends_the_process_whatever_threads_flare_has_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup/fed_admin.json").write_text(json.dumps({"admin": {"username": "lead@hub.org"}}))
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    assert "pfedsam: stopped; a submitted job goes on without you" in done.stderr
    assert "--continue RUN" in done.stderr
