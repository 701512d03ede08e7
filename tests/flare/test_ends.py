"""Why a job ended, out of what FLARE leaves of it."""

from pathlib import Path

import pytest

from pfedsam.flare.ends import ABORTED, LOST, UNDEPLOYED, UNSCHEDULED, Trace, cause_of, refusals, trace_of

DIED = "FINISHED:EXECUTION_EXCEPTION"
AT = "2026-01-01 10:00:00,000"
FAILED = f"{AT} - FederatedServer - INFO - Failing job 9-a due to reported failure from"
ROUND = f"{AT} - pfedsam - INFO - round 3 done in 7 s: 2 sites, mean validation Dice (personal) 0.500"
FULL = f"{AT} - pfedsam - ERROR - [server] expected to write 9 bytes; came No space left; to mend it: free space"
SILENT = f"{AT} - pfedsam - ERROR - update of a not counted: no update came: EXECUTION_EXCEPTION"
FEW = f"{AT} - pfedsam - ERROR - round 0: expected valid updates of 2 sites, came 1. The job stops."


@pytest.mark.parametrize(
    ("trace", "kind", "what", "do", "tries"),
    [
        (Trace(LOST), "lost", "restarted", "", None),
        (Trace(DIED), "unknown", "no reason", "log.txt", None),
        (Trace(DIED, log=(FULL,)), "server", "expected to write 9 bytes; came No space left", "free space", 1),
        (Trace(DIED, log=(FULL, ROUND)), "unknown", "no reason", "", None),  # the round after it went well
        (Trace(DIED, log=(ROUND, FULL)), "server", "No space left", "", 1),
        (Trace(DIED, log=(SILENT, SILENT, FULL)), "server", "No space left", "", 1),
        (Trace(DIED, log=(SILENT, SILENT)), "sites", "update of a not counted", "kits of these sites", 2),
        (Trace(DIED, log=(FEW,)), "sites", "came 1", "", None),  # a silent site may come back
        (Trace(ABORTED, log=(SILENT,)), "aborted", "a person", "", 1),
        (Trace(UNDEPLOYED, {"job_deploy_detail": ["server: OK", "b: NVFLARE_ERROR: BYOC not permitted"]}),
         "refused", "b: BYOC not permitted", "--no-code", 1),
        (Trace(UNDEPLOYED, {"job_deploy_detail": ["server: job signature verification failed", "b: OK"]}),
         "refused", "server: job signature verification failed", "mend", 1),
        (Trace(UNDEPLOYED, {"job_deploy_detail": ["server: OK", "b: no reply (deployment timeout)"]}),
         "undeployed", "b: no reply", "are up", None),
        (Trace(UNDEPLOYED, heard=(f"{AT} - JobRunner - ERROR - Failed to run the Job (9-a): RuntimeError: port",)),
         "undeployed", "RuntimeError: port", "", None),
        (Trace(UNSCHEDULED, {"schedule_history": [f"{AT[:19]}: missing required site b",
                                                  f"{AT[:19]}: exceeded max schedule count 10"]}),
         "unscheduled", "missing required site b", "", None),
        (Trace(UNSCHEDULED, {"schedule_history": [f"{AT[:19]}: site 'b' not in study 'x'"]}),
         "unscheduled", "not in study", "", 1),
        (Trace(DIED, heard=(f"{FAILED} b: exception",)),
         "process", "site b ended (exception)", "kit of b", None),
        (Trace(DIED, log=(f"{AT} - MPM - ERROR - nvflare.x.UnsafeComponentError: bad",)), "class", "bad", "class", 1),
    ],
)  # fmt: skip
def test_the_reason_is_told_with_what_to_do_and_how_often_to_try(
    trace: Trace, kind: str, what: str, do: str, tries: int | None
) -> None:
    cause = cause_of(trace)
    assert (cause.kind, cause.tries) == (kind, tries)
    assert what in cause.what
    assert do in cause.do
    assert "to mend it" not in cause.what + cause.do


@pytest.mark.parametrize(
    ("site", "trace"),
    [
        ("", Trace(DIED, log=(SILENT, SILENT.replace("of a", "of b")))),  # two sites, so neither is to blame alone
        ("a", Trace(DIED, log=(SILENT, FEW))),
        ("b", Trace(DIED, heard=(f"{FAILED} b: unsafe component",))),
        ("b", Trace(ABORTED, heard=(f"{FAILED} b: any text".replace("Failing", "Aborting"),))),  # no person did it
        ("b", Trace(DIED, heard=(f"{FAILED} b: failure from c: killed",))),
        ("b", Trace(DIED, heard=(f"{AT} - pfedsam - ERROR - refused 'due to reported failure from c: x'",
                                 f"{FAILED} b: exception"))),
    ],
)  # fmt: skip
def test_an_end_that_one_site_brought_names_that_site_and_no_other(site: str, trace: Trace) -> None:
    cause = cause_of(trace)
    assert cause.site == site
    assert cause.tries != 1


RUNNING = f"{AT} - ServerRunner - INFO - Server runner starting ..."
FAILED_IN_JOB = f"{AT} - runner_process - ERROR - FL server execution exception:"
RUNS_IN_TEXT = "x - ServerRunner - INFO - y"
FLARE_S = f"{AT} - ServerRunner - ERROR - processing error in a filter: "


@pytest.mark.parametrize("said", [f"{AT} - pfedsam - ERROR - [server] x", "ConfigError: y", "UnsafeComponentError"])
def test_a_site_s_text_within_a_line_is_no_reason_of_the_server(said: str) -> None:
    trace = Trace(DIED, log=(RUNNING, SILENT, f"{FLARE_S}{said}", f"{SILENT} {said}", f"  {said}"))
    assert cause_of(trace).kind == "sites"


def test_the_parties_that_refused_a_job_are_those_that_answered_with_a_reason() -> None:
    told = ["server: OK", "a: OK", "b: NVFLARE_ERROR: BYOC not permitted", "c: no reply (deployment timeout)"]
    assert refusals({"job_deploy_detail": [*told, "num_ok_sites 1 < required_min_sites 2"]}) == {
        "b": "BYOC not permitted"
    }
    assert refusals({}) == refusals({"job_deploy_detail": None}) == {}


def test_the_lines_of_a_job_s_log_are_read_wherever_it_lies_and_none_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace/log.txt").write_bytes(b"one\n\xff two\r3 \xe2\x80\xa8 4\n")
    assert trace_of(DIED, {}, tmp_path, ()).log == ("one", "\N{REPLACEMENT CHARACTER} two\r3 \u2028 4")
    assert trace_of(DIED, {}, None, ()) == trace_of(DIED, {}, tmp_path / "nowhere", ()) == Trace(DIED)


def test_a_site_that_drives_the_first_lines_out_of_the_log_does_not_choose_the_reason(tmp_path: Path) -> None:
    """FLARE renames a full log to log.txt.1, that to log.txt.2, and deletes what would be log.txt.11."""
    forged = f"{FAILED_IN_JOB} ConfigError: Component 'x' at config path 'y' is not in allow_list UnsafeComponent"
    for number, lines in enumerate((f"{SILENT}\n{forged}\n", f"{FLARE_S}\n", f"{FAILED_IN_JOB} {RUNS_IN_TEXT}\n")):
        (tmp_path / f"log.txt{f'.{number}' if number else ''}").write_text(lines)
    (tmp_path / "log.txt.3").write_text(f"{RUNNING}\n")
    trace = trace_of(DIED, {}, tmp_path, ())
    assert trace.log == (RUNNING, f"{FAILED_IN_JOB} {RUNS_IN_TEXT}", FLARE_S, SILENT, forged)
    assert trace.begins
    assert cause_of(trace).kind == "sites"
    (tmp_path / "log.txt.3").rename(tmp_path / "log.txt.10")
    (tmp_path / "log.txt.10").write_text(f"{FLARE_S}\n")
    assert not trace_of(DIED, {}, tmp_path, ()).begins
    assert cause_of(trace_of(DIED, {}, tmp_path, ())).kind == "sites"


@pytest.mark.parametrize("kind", ["configuration", "class"])
def test_the_reason_is_in_a_line_of_an_error_of_flare_s_own(kind: str) -> None:
    told = {"configuration": "ConfigError: exception: 'nonsense'", "class": "ComponentNotAuthorized: nonsense"}[kind]
    for before in ("", f"{AT} - CoreCell - INFO - ", f"x {FAILED_IN_JOB} "):
        assert cause_of(Trace(DIED, log=(f"{before}{told}",))).kind == "unknown"
    cause = cause_of(Trace(DIED, log=(f"{FAILED_IN_JOB} {told}",)))
    assert (cause.kind, cause.tries) == (kind, 1)
    assert "nonsense" in cause.what
