"""A person's connection to the server: FLARE's admin session. It reconnects if the server went away and came back."""

import io
import json
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InvalidJobDefinition,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    NoClientsAvailable,
    NoReply,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session

from pfedsam import log
from pfedsam.errors import UserFault, reason
from pfedsam.flare.ends import lines_of
from pfedsam.layout import PERSON

GONE: dict[str, Any] = {"status": "GONE"}  # what stands for a job that the server does not have
ANSWERS = (JobNotDone, JobNotRunning, NoClientsAvailable, NoReply)  # the server's own, in FLARE's exceptions
AWAY = (ConnectionError, FLCommunicationError, SessionClosed)


class Unfetched(UserFault):
    """A job's results did not come, or could not be stored."""

    @property
    def away(self) -> bool:
        """Whether the server did not answer, so that they may still come."""
        return isinstance(self.__cause__, AWAY)


class Admin:
    """Asks the server in one person's name.

    Use it in a `with`: an open session keeps Python from ending.

    Args:
        kit: the person's startup kit.

    Attributes:
        silent: why the server did not answer the last question. Empty if it did.

    Raises:
        UserFault: there is no kit. Later calls raise it if the server refuses the person.
    """

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._session: Session | None = None
        self.silent = ""
        try:
            self.user = str(json.loads((kit / PERSON).read_text())["admin"]["username"])
        except (OSError, ValueError, KeyError, TypeError):
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
                    self._session = Session(self.user, str(self._kit))  # known before its threads begin, to end them
                    self._session.try_connect(10)
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
        answer, self.silent = None, ""
        try:
            answer = self.call(question, *arguments, **options)
        except UserFault:
            raise
        except JobNotFound:
            answer = gone
        except ANSWERS as fault:
            log.debug("%s: %s", question, fault)
        except Exception as fault:  # FLARE raises many kinds for a server that is away
            self.silent = told(fault)
        return answer

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

    def fetch(self, job: str, out: Path) -> Path:
        """The folder of a job's downloaded results, all of them.

        Raises:
            Unfetched: FLARE has none or does not answer, or they cannot be stored.
        """
        folder = out / job
        if folder.is_dir():
            return folder
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out, prefix=f".{job}.") as place:  # FLARE may move a part and fail
                found = self.call("download_job_result", job, place)
                if not found:
                    raise FileNotFoundError("the server sent nothing")
                os.rename(found, folder)
            return folder
        except UserFault:
            raise
        except Exception as fault:
            raise Unfetched(
                expected=f"the results of job {job} in {out}",
                came=f"none: {told(fault)}",
                do="free space there and in your kit, or mend what the reason names; then fetch them again",
            ) from fault


def told(fault: Exception) -> str:
    """The reason in a fault of FLARE or of the system."""
    return reason(fault) if isinstance(fault, OSError) else str(fault) or type(fault).__name__
