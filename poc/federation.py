"""Three hospitals on this machine: startup kits, processes, jobs.

    python poc/federation.py prepare [--mode poc] [--byoc]
    python poc/federation.py start
    python poc/federation.py submit jobs/pfedsam
    python poc/federation.py watch jobs/pfedsam
    python poc/federation.py fetch
    python poc/federation.py stop
    python poc/federation.py remove

Everything is in --home (runs/federation). Only processes started from there are stopped. It needs no root, no network.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from pfedsam.cli.console import tell
from pfedsam.errors import UserFault
from pfedsam.flare.admin import Admin
from pfedsam.flare.presence import Lookout, Patience
from pfedsam.flare.watch import Outcome, watch
from pfedsam.names import site_names

PROJECT = Path(__file__).parent / "project.yml"
LEAD = "lead@hub.org"


@dataclass(frozen=True)
class Federation:
    """A server and sites below `home`, each with its own startup kit and processes.

    Attributes:
        home: the folder of everything.
        python: the interpreter that server and sites run.
    """

    home: Path
    python: Path = Path(sys.executable)

    @property
    def facts(self) -> dict[str, Any]:
        """What `prepare` recorded: mode, byoc, server, sites, kits."""
        path = self.home / "federation.json"
        if not path.exists():
            raise UserFault(expected=f"a federation in {self.home}", came="none", do="run prepare first")
        facts: dict[str, Any] = json.loads(path.read_text())
        return facts

    @property
    def parties(self) -> list[str]:
        """The server, then the sites."""
        return [self.facts["server"], *self.facts["sites"]]

    def kit(self, party: str) -> Path:
        """The startup kit of the server, a site or a person. Here it is also the workspace."""
        return self.home / str(self.facts["kits"]) / party

    def prepare(self, mode: str, *, byoc: bool, port: int = 0) -> None:
        """Make new certificates and kits.

        Args:
            mode: "provisioned" (gRPC, mutual TLS, roles, site policy) or "poc" (FLARE's proof-of-concept mode).
            byoc: whether the sites let a job bring its code.
            port: the server's port. 0 takes a free one.
        """
        if (self.home / "federation.json").exists():
            raise UserFault(expected="no federation yet", came=f"one in {self.home}", do="run stop and remove first")
        if self.home.is_dir() and any(self.home.iterdir()):
            raise UserFault(expected="a new or empty folder", came=f"{self.home}, not empty", do="name another --home")
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._make(mode, byoc=byoc, port=port)
        except BaseException:  # half a federation can be neither started nor prepared again
            shutil.rmtree(self.home)
            raise

    def _make(self, mode: str, *, byoc: bool, port: int) -> None:
        project = localised(yaml.safe_load(PROJECT.read_text()), self.home, byoc=byoc, port=port or free_port())
        if mode == "poc":
            project = as_poc(project)
        (self.home / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False))
        make = ["poc", "prepare", "-i"] if mode == "poc" else ["provision", "-w", "workspace", "-p"]
        self._nvflare(*make, "project.yml", "--force")
        names = {
            kind: [p["name"] for p in project["participants"] if p["type"] == kind] for kind in ("server", "client")
        }
        facts = {
            "mode": mode,
            "byoc": byoc,
            "server": names["server"][0],
            "sites": names["client"],
            "kits": f"{'poc' if mode == 'poc' else 'workspace'}/{project['name']}/prod_00",
        }
        (self.home / "federation.json").write_text(json.dumps(facts, indent=2))

    def start(self, *parties: str, wait: float = 90) -> None:
        """Start what does not run yet, each with its watchdog, and wait until the sites have joined."""
        for party in parties or self.parties:
            if not self.processes(party, "sub_start.sh"):
                for mark in ("daemon_pid.fl", "pid.fl", "shutdown.fl", "restart.fl"):
                    (self.kit(party) / mark).unlink(missing_ok=True)
                # in the background of a shell that ends, so that it outlives this process
                command = 'bash "$0" >> started.log 2>&1 < /dev/null &'
                subprocess.run(
                    ["bash", "-c", command, str(self.kit(party) / "startup/start.sh")],
                    cwd=self.kit(party),
                    env=self.environment,
                    start_new_session=True,
                    check=True,
                )
        expected = {p for p in parties or self.parties if p != self.facts["server"]}
        end = time.monotonic() + wait
        while expected and not expected <= self.joined():
            if time.monotonic() > end:
                raise UserFault(
                    expected=f"{', '.join(sorted(expected))} to join within {wait:.0f} s",
                    came="still absent: " + ", ".join(sorted(expected - self.joined())),
                    do=f"read log.txt in {self.kit(next(iter(expected)))}",
                )
            time.sleep(1)

    def stop(self, *parties: str) -> None:
        """Stop what was started from here: watchdogs first, then the rest. Kill what does not end by itself."""
        for party in parties or self.parties:
            for process in [*self.processes(party, "sub_start.sh"), *self.processes(party)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
        _, alive = psutil.wait_procs([p for party in parties or self.parties for p in self.processes(party)], timeout=8)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def remove(self) -> None:
        """Stop, then delete kits, stores and results."""
        self.stop()
        shutil.rmtree(self.home)

    def processes(self, party: str, word: str = "") -> list[psutil.Process]:
        """FLARE's processes of a server or site, found by the kit in their command line. `word` picks some of them."""
        kit, found = str(self.kit(party)), []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            theirs = any(part == kit or part.startswith(f"{kit}/") for part in line)
            flares = any(part.startswith("nvflare.") or part.endswith("start.sh") for part in line)
            if theirs and flares and word in " ".join(line):
                found.append(process)
        return found

    def joined(self) -> set[str]:
        """The sites that answer the server now."""
        with self.admin() as admin:
            return set(admin.present())

    def admin(self, user: str = LEAD) -> Admin:
        """A person's connection to the server."""
        return Admin(self.kit(user))

    def render(self, job: Path, *changes: str, **facts: Any) -> Path:
        """The rendered job in the form that these sites allow: with its code, or without. `facts` as for `render`."""
        from pfedsam.flare.recipe import render  # loads torch, which no other verb needs

        code, out = self.facts["byoc"], self.home / "jobs" / f"{job.stem}-{time.time_ns()}"
        out.parent.mkdir(exist_ok=True)
        render(job, out, changes=changes, code=code, **facts)
        return out

    def submit(self, job: Path) -> str:
        """The id of a rendered job, after submitting it."""
        with self.admin() as admin:
            number = admin.submit(job.resolve())
        (self.home / "last_job").write_text(number)
        return number

    @property
    def last_job(self) -> str:
        """The id of the last submitted job."""
        path = self.home / "last_job"
        if not path.exists():
            raise UserFault(expected="a job's id", came="none, and none was submitted", do="run submit first")
        return path.read_text()

    def watch(self, job: Path, patience: Patience = Patience(), continues: str = "") -> Outcome:  # noqa: B008 - frozen
        """Submit a rendered job, or continue the run `continues`, and bring it to its end, whatever dies meanwhile."""
        with self.admin() as admin:
            outcome = watch(job, Lookout(admin, patience), out=self.home / "results", continues=continues)
        (self.home / "last_job").write_text(outcome.folder.name)
        return outcome

    def fetch(self, number: str) -> Path:
        """The folder of a finished job's results, after downloading them."""
        with self.admin() as admin:
            return admin.fetch(number, self.home / "results")

    @property
    def environment(self) -> dict[str, str]:
        """The processes' environment: this Python first, and one thread each, because they share one machine."""
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        places = {"HOME": str(self.home), "NVFLARE_POC_WORKSPACE": str(self.home / "poc")}
        return {"PFEDSAM_THREADS": "1", **os.environ, **places, "PATH": path}

    def _nvflare(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *words],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserFault(
                expected=f"nvflare {words[0]} to succeed", came=(done.stdout + done.stderr)[-800:], do="read above"
            )


def localised(project: dict[str, Any], home: Path, *, byoc: bool, port: int) -> dict[str, Any]:
    """project.yml for this machine: its port, and our own folder for the server's jobs.

    Raises:
        UserFault: FLARE does not allow a hospital's name.
    """
    site_names([p["name"] for p in project["participants"] if p["type"] == "client"])
    for participant in project["participants"]:
        if participant["type"] == "server":
            participant["fed_learn_port"] = port
    kit = next(b for b in project["builders"] if b["path"].endswith("HospitalKit"))
    kit["args"] |= {"byoc": byoc, "storage": str(home / "server-storage")}
    return project


def as_poc(project: dict[str, Any]) -> dict[str, Any]:
    """The same server and sites in FLARE's POC mode, which uses http."""
    static = next(b for b in project["builders"] if b["path"].endswith("StaticFileBuilder"))
    static["args"]["scheme"] = "http"
    return project


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns 2 if the user's input is at fault, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["prepare", "start", "status", "submit", "watch", "fetch", "stop", "remove"])
    parser.add_argument(
        "what", nargs="?", help="a settings file or a job folder for submit and watch, a job's id for fetch"
    )
    parser.add_argument("--home", type=Path, default=Path("runs/federation"))
    parser.add_argument("--mode", choices=["provisioned", "poc"], default="provisioned")
    parser.add_argument("--byoc", action="store_true", help="prepare: let jobs bring their code to the sites")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="submit, watch: change a setting"
    )
    parser.add_argument("--rounds", type=int, help="submit, watch: change the number of rounds")
    parser.add_argument("--continue", dest="continues", default="", metavar="RUN", help="watch: continue this run")
    options = parser.parse_args(arguments)
    federation = Federation(options.home.resolve())
    tell()
    try:
        print(serve(federation, options))
    except UserFault as fault:
        print(f"federation: {fault}", file=sys.stderr)
        return 2
    return 0


def serve(federation: Federation, options: argparse.Namespace) -> str:
    """The text to print, after doing what the command line asks."""
    if options.verb == "prepare":
        federation.prepare(options.mode, byoc=options.byoc)
        return f"kits of {', '.join(federation.parties)} in {federation.home}. Next: start"
    if options.verb in ("start", "stop", "remove"):
        getattr(federation, options.verb)()
        return {"start": "all have joined. Next: submit jobs/pfedsam", "stop": "stopped", "remove": "removed"}[
            options.verb
        ]
    if options.verb == "status":
        lines = [f"{party}: {len(federation.processes(party))} processes" for party in federation.parties]
        return "\n".join([*lines, f"joined: {', '.join(sorted(federation.joined())) or 'none'}"])
    if options.verb == "fetch":
        return f"results: {federation.fetch(options.what or federation.last_job)}"
    job = federation.render(Path(options.what or "jobs/pfedsam"), *options.set, rounds=options.rounds)
    if options.verb == "submit":
        return f"job {federation.submit(job)}. Next: follow it with nvflare job monitor, or fetch after its end"
    return f"results: {federation.watch(job, continues=options.continues).folder}"


if __name__ == "__main__":
    sys.exit(main())
