"""Why a job ended, in a line with a remedy. The sources are FLARE's status, its record of the job, and its logs."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.files import read_json
from pfedsam.layout import RESULTS

FINISHED, COMPLETED, ABORTED = "FINISHED", "FINISHED:COMPLETED", "FINISHED:ABORTED"
UNSCHEDULED, UNDEPLOYED = "FINISHED:CAN_NOT_SCHEDULE", "FINISHED:FAILED_TO_RUN"
LOST, REJOIN = "LOST", "REJOIN"
# how a log line begins: its time. A pattern begins with it, as a site's text may be in any line
AT = r"\S+(?: \S+)? - "
OURS = re.compile(rf"{AT}pfedsam - ERROR - (.*)")
ROUND = re.compile(rf"{AT}pfedsam - INFO - round \d+ done ")
FAILS = rf"{AT}\S+ - ERROR - "  # as FLARE logs a fault of its own
NOT_ALLOWED = re.compile(rf"{FAILS}.*(?:ComponentNotAuthorized|UnsafeComponent)")
UNREADABLE = re.compile(rf"{FAILS}.*ConfigError: (.*)")
RUNS = re.compile(rf"{AT}ServerRunner - INFO - ")  # the job's parts are made, and sites are heard from now on
REPORTED = re.compile(
    rf"{AT}FederatedServer - INFO - (Failing|Aborting) job \S+ due to reported failure from (\S+): (.*)"
)  # as FLARE's FederatedServer.process_job_failure logs it, Aborting for a class; the reason is the site's own text
REFUSED = re.compile(r"update of (\S+) not counted: ")  # as `Rounds` logs it
REMEDY = "; to mend it: "
DIVERGED = "diverged"  # the kind of such an end
WHERE_DIVERGED = "sites where the training diverged"  # in the server's own words
LISTS = "class_allow_list of local/resources.json"
AGES = (*(f".{age}" for age in range(10, 0, -1)), "")  # endings of a log's files, the oldest first, as FLARE keeps them
NEVER = r"no deploy map|not in study|must be a list|invalid required"  # FLARE's reasons that waiting does not change


@dataclass(frozen=True)
class Trace:
    """The traces that a job has left.

    Attributes:
        status: FLARE's last status of the job, or LOST or REJOIN.
        meta: the server's record of the job.
        log: the lines of the job's log at the server.
        heard: the lines of the server's own log that name the job. Empty if the person may not read them.
        begins: whether the first lines of the job's log are there. FLARE deletes the oldest lines of a long one.
    """

    status: str
    meta: dict[str, Any] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()
    begins: bool = True


@dataclass(frozen=True)
class Cause:
    """Why a job ended.

    Attributes:
        kind: one word. Jobs that ended alike have the same.
        what: the reason, in words.
        do: what a person can do about it.
        tries: how many jobs in a row, without a new round, may end so before the watcher gives up. None: its patience.
        site: the site that ended the job, if one did: by its report, or as the only one whose update was refused.
    """

    kind: str
    what: str
    do: str
    tries: int | None = None
    site: str = ""

    @property
    def counts(self) -> bool:
        """Whether a job that ended so counts as a try. A job that only waited for sites or resources does not."""
        return self.kind != "unscheduled" or self.tries is not None


def cause_of(trace: Trace) -> Cause:
    """The first reason in the traces. Reasons that another job cannot change come before those that may pass."""
    if trace.status == COMPLETED:
        return Cause("unfinished", "the run's last round was not tested", "read that job's log.txt")
    if trace.status == LOST:
        return Cause("lost", "the server restarted and no longer knows the job", "find out why the server restarted")
    if trace.status == UNDEPLOYED:
        return _deployment(trace)
    if trace.status == UNSCHEDULED:
        return _schedule(trace)
    ways = (_refused_class, _aborted, _configuration, _diverged, _server_fault, _site_faults, _process)
    found = next((cause for way in ways if (cause := way(trace)) is not None), None)
    return found or Cause("unknown", "the logs at the server give no reason", "read that job's log.txt at each site")


def trace_of(status: str, meta: dict[str, Any], folder: Path | None, heard: tuple[str, ...]) -> Trace:
    """The traces of a job, with the logs in the folder of its downloaded results."""
    found = sorted(folder.rglob("log.txt")) if folder else []
    logs = [path.with_name(path.name + age) for path in found for age in AGES]
    lines = (line for path in logs if path.is_file() for line in lines_of(path.read_bytes().decode(errors="replace")))
    lost = any(path.name.endswith(AGES[0]) and path.is_file() for path in logs)
    return Trace(status, meta, tuple(lines), heard, begins=not lost)


def sites_in(folder: Path) -> tuple[list[set[str]], set[str]]:
    """The sites that trained, by round, and those that tested, in a job's downloaded results. None without a record.

    Raises:
        UserFault: the record is damaged, or of another form.
    """
    found = sorted(folder.rglob(RESULTS))
    if not found:
        return [], set()
    results = read_json(found[0])
    try:
        return [set(entry["sites"]) for entry in results["rounds"]], set(results["final"]["sites"])
    except (KeyError, TypeError):
        do = "install the server's version of pfedsam here"
        raise UserFault(expected=f"a run's record in {found[0]}", came="other keys", do=do) from None


def lines_of(text: str) -> tuple[str, ...]:
    """The lines of a log. Only what ends a line of a file does: a site's text may hold other breaks."""
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def refusals(meta: dict[str, Any]) -> dict[str, str]:
    """Who refused a job when it was deployed, each with the reason. Those that did not answer are left out."""
    pairs = (str(entry).partition(": ")[::2] for entry in meta.get("job_deploy_detail") or ())
    return {
        who: why.removeprefix("NVFLARE_ERROR: ") for who, why in pairs if why and why != "OK" and "no reply" not in why
    }


def _deployment(trace: Trace) -> Cause:
    if refused := refusals(trace.meta):
        told = "; ".join(f"{who}: {why}" for who, why in sorted(refused.items()))
        code = any("BYOC" in why for why in refused.values())
        do = "render the job with --no-code, or ask these sites to allow code" if code else "mend what the reason names"
        return Cause("refused", f"not deployed: {told}", do, tries=1)
    silent = [str(entry) for entry in trace.meta.get("job_deploy_detail") or () if "no reply" in str(entry)]
    raised = [line.partition("): ")[2] for line in trace.heard if "Failed to run the Job" in line]
    told = "; ".join(silent or raised[-1:]) or "FLARE gives no reason"
    do = "check that these sites are up, and in FLARE's POC mode that the job is below 4 MiB"
    return Cause("undeployed", f"not started: {told}", do)


def _schedule(trace: Trace) -> Cause:
    tries = [re.sub(r"^\S+ \S+: ", "", str(entry)) for entry in trace.meta.get("schedule_history") or ()]
    told = next((entry for entry in reversed(tries) if "max schedule count" not in entry), "FLARE gives no reason")
    do = "start the sites or free the resources that the reason names"
    return Cause("unscheduled", f"FLARE could not schedule it: {told}", do, 1 if re.search(NEVER, told) else None)


def _refused_class(trace: Trace) -> Cause | None:
    """A class that is not allowed. The server's log names it, but not a class that a site does not allow."""
    if faults := [line for line in _before_sites(trace) if NOT_ALLOWED.match(line)]:
        named = re.findall(r"Component '([^']+)' at config path '[^']*' is not in allow_list", "\n".join(faults))
        told = f"the class {named[-1]}" if named else f"a class: {faults[-1][-200:].strip()}"
        do = f"add the class to {LISTS} at the server (HospitalKit writes ours), or render the job with its code"
        return Cause("class", f"the server does not allow {told}, in a job without code", do, tries=1)
    for kind, site, _ in _reports(trace):
        if kind == "Aborting":
            do = f"add the class, which the job's log.txt there names, to {LISTS} at that site"
            return Cause("class", f"site {site} does not allow a class of this job", do, tries=2, site=site)
    return None


def _aborted(trace: Trace) -> Cause | None:
    return Cause("aborted", "a person aborted it", "go on when you like", tries=1) if trace.status == ABORTED else None


def _configuration(trace: Trace) -> Cause | None:
    faults = [found[1] for line in _before_sites(trace) if (found := UNREADABLE.match(line))]
    if not faults:
        return None
    told = faults[-1].rpartition("exception: ")[2].strip("' ")
    do = "correct the job's configuration, and check that the server has the pfedsam version that rendered it"
    return Cause("configuration", f"the server could not read the job's configuration: {told[:300]}", do, tries=1)


def _diverged(trace: Trace) -> Cause | None:
    """A model of the server from which most sites cannot train on."""
    told = [line for line in _errors(trace) if line.startswith("[server] ") and WHERE_DIVERGED in line]
    if not told:
        return None
    what, _, do = told[-1].partition(REMEDY)
    return Cause(DIVERGED, f"the server {what.removeprefix('[server] ')}", do, tries=1)


def _server_fault(trace: Trace) -> Cause | None:
    """A fault at the server since the last finished round. A person has to mend it."""
    told = [line for line in _errors(trace) if line.startswith("[server] ")]
    if not told:
        return None
    what, _, do = told[-1].partition(REMEDY)
    return Cause(
        "server", f"the server {what.removeprefix('[server] ')}", f"at the server: {do or 'read its log'}", tries=1
    )


def _site_faults(trace: Trace) -> Cause | None:
    """Updates that were refused or did not come, since the last finished round. A site's own log says why."""
    lines = [line.removesuffix("; the site's own log says why") for line in _errors(trace)]
    told = list(dict.fromkeys(line for line in lines if not line.startswith("[server] ")))
    if not told:
        return None
    refused = {found[1] for line in told if (found := REFUSED.match(line))}
    do = "read that job's log.txt in the kits of these sites, and mend what it names"
    site = refused.pop() if len(refused) == 1 else ""
    return Cause("sites", "; ".join(told[-6:]), do, tries=2 if site or refused else None, site=site)


def _process(trace: Trace) -> Cause | None:
    """A site's process that ended. The site reports the end to the server, but not the reason."""
    for _, site, reason in _reports(trace):
        do = f"read that job's log.txt in the kit of {site}: it may refuse a class, or be out of memory"
        return Cause("process", f"the job's process at site {site} ended ({reason})", do, site=site)
    return None


def _reports(trace: Trace) -> list[tuple[str, str, str]]:
    """What FLARE did, the site that reported the end of its process, and the reason that it gives, for each report."""
    return [(found[1], found[2], found[3]) for line in trace.heard if (found := REPORTED.match(line))]


def _before_sites(trace: Trace) -> tuple[str, ...]:
    """The job's log while its parts are made, or nothing if that may be lost. Later lines may hold a site's text."""
    if not trace.begins:
        return ()
    began = next((n for n, line in enumerate(trace.log) if RUNS.match(line)), len(trace.log))
    return trace.log[:began]


def _errors(trace: Trace) -> list[str]:
    """The errors that pfedsam logged since the last finished round."""
    last = max((n for n, line in enumerate(trace.log) if ROUND.match(line)), default=-1)
    return [found[1] for line in trace.log[last + 1 :] if (found := OURS.match(line))]
