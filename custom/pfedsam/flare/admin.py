"""A person's connection to the server: FLARE's admin session. It reconnects if the server went away and came back."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InvalidJobDefinition,
    JobNotFound,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.flare.ends import lines_of
from pfedsam.layout import PERSON

GONE: dict[str, Any] = {"status": "GONE"}  # what stands for a job that the server does not have


class Admin:
    """Asks the server in one person's name.

    Use it in a `with`: an open session keeps Python from ending.

    Args:
        kit: the person's startup kit.

    Raises:
        UserFault: there is no kit. Later calls raise it if the server refuses the person.
    """

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._session: Session | None = None
        try:
            self.user = str(json.loads((kit / PERSON).read_text())["admin"]["username"])
        except (OSError, ValueError, KeyError):
            raise UserFault(
                expected="a person's startup kit", came=f"none in {kit}", do="name the folder that you were given"
            ) from None

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            with suppress(Exception):
                self._session.close()
            self._session = None

    def call(self, question: str, *arguments: Any, **options: Any) -> Any:
        """The answer of FLARE's admin session to one question. A refusal is a `UserFault`. Other errors are raised
        unchanged."""
        try:
            if self._session is None:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints at each connection
                    self._session = new_secure_session(self.user, str(self._kit), timeout=10)
            return getattr(self._session, question)(*arguments, **options)
        except (AuthenticationError, AuthorizationError, InvalidJobDefinition) as fault:
            self.__exit__()
            raise UserFault(
                expected=f"that {self.user} may {question.replace('_', ' ')}",
                came=str(fault),
                do="ask the project's administrator for the role or a new kit, or correct the job",
            ) from None
        except Exception:
            self.__exit__()
            raise

    def ask(self, question: str, *arguments: Any, gone: Any = None, **options: Any) -> Any:
        """The answer to one question. None if the server does not answer, `gone` if it has no such job."""
        try:
            return self.call(question, *arguments, **options)
        except UserFault:
            raise
        except JobNotFound:
            return gone
        except Exception as fault:  # FLARE raises many kinds for a server that is away
            log.debug("%s: %s", question, fault)
            return None

    def submit(self, folder: Path, token: str | None = None) -> str:
        """The id of the job, after submitting its folder.

        Args:
            token: a second call with the same token returns the first call's job.
        """
        return str(self.call("submit_job", str(folder), token))

    def meta(self, job: str) -> dict[str, Any] | None:
        """The server's record of a job. GONE if it has none, None if it does not answer."""
        found: dict[str, Any] | None = self.ask("get_job_meta", job, gone=GONE)
        return found

    def present(self) -> dict[str, set[str]]:
        """The sites that answer now, each with the jobs that run there."""
        found: dict[str, set[str]] = {}
        for entry in self.ask("get_client_job_status") or []:
            if entry.get("status") != "no_reply":
                found.setdefault(entry["client_name"], set()).add(str(entry.get("job_id", "")))
        return found

    def unfinished(self, name: str) -> list[str]:
        """The ids of the jobs of that name that have not ended, as the server counts, oldest first."""
        jobs = self.ask("list_jobs", name_prefix=name) or []
        return [
            str(job["job_id"])
            for job in jobs
            if job.get("job_name", job.get("name")) == name and not str(job.get("status", "")).startswith("FINISHED")
        ]

    def heard(self, job: str) -> tuple[str, ...]:
        """The lines of the server's own log that name a job. Empty if the person may not read that log."""
        try:
            return lines_of(str(self.ask("grep_target", "server", "", job, "log.txt") or ""))
        except UserFault:
            return ()

    def fetch(self, job: str, out: Path) -> Path | None:
        """The folder of a job's downloaded results. None if FLARE has none or does not answer."""
        if (out / job).is_dir():
            return out / job
        found = self.ask("download_job_result", job, str(out))
        return Path(found) if found else None
