"""A person's way to the server: FLARE's admin session, opened anew when the server has gone and come back."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.api_spec import AuthorizationError, InvalidJobDefinition
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from pfedsam import log
from pfedsam.errors import UserFault


class Admin:
    """A person's way to the server: a session that opens anew when the server has gone and come back.

    Use it in a `with`: an open session keeps Python from ending.

    Args:
        kit: the person's startup kit.
        user: the person's name in it.
    """

    def __init__(self, kit: Path, user: str) -> None:
        self._kit, self._user = kit, user
        self._session: Session | None = None

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            with suppress(Exception):
                self._session.close()
            self._session = None

    def call(self, question: str, *arguments: Any) -> Any:
        """One question to FLARE's admin session; whatever goes wrong with it is raised."""
        try:
            if self._session is None:
                self._session = new_secure_session(self._user, str(self._kit), timeout=10)
            return getattr(self._session, question)(*arguments)
        except Exception:
            self.__exit__()
            raise

    def ask(self, question: str, *arguments: Any) -> Any:
        """One question; None while the server does not answer."""
        try:
            return self.call(question, *arguments)
        except Exception as fault:  # FLARE raises many kinds for a server that is away
            log.debug("%s: %s", question, fault)
            return None

    def submit(self, folder: Path, token: str | None = None) -> str:
        """Submit a job folder; returns its id.

        Args:
            token: makes a second call with it return the first one's job.

        Raises:
            UserFault: the server refuses it.
        """
        try:
            return str(self.call("submit_job", str(folder), token))
        except (AuthorizationError, InvalidJobDefinition) as fault:
            raise UserFault(
                expected=f"{self._user} to be allowed to submit {folder.name}",
                came=str(fault),
                do="ask the project's administrator for the role, or mend the job",
            ) from None

    def present(self) -> dict[str, set[str]]:
        """The sites that answer now, and the jobs that run at each."""
        found: dict[str, set[str]] = {}
        for entry in self.ask("get_client_job_status") or []:
            if entry.get("status") != "no_reply":
                found.setdefault(entry["client_name"], set()).add(str(entry.get("job_id", "")))
        return found

    def fetch(self, job: str, out: Path) -> Path | None:
        """Download a job's results; None where FLARE has none."""
        found = self.ask("download_job_result", job, str(out))
        return Path(found) if found else None
