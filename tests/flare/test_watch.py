"""The watcher, with a server that plays FLARE's and in a time that costs none."""

import json
from pathlib import Path

import pytest
from fake import FOR_EVER, Plan, Server, Time, unfetched

from conftest import ROOT
from pfedsam.errors import UserFault
from pfedsam.flare.ends import ABORTED, COMPLETED, LOST, REJOIN, UNDEPLOYED, UNSCHEDULED, WHERE_DIVERGED
from pfedsam.flare.presence import Lookout, Patience, Run, someone_outside, wait_for_sites
from pfedsam.flare.recipe import render
from pfedsam.flare.watch import Outcome, watch
from pfedsam.jobs import name_run

DIED = "FINISHED:EXECUTION_EXCEPTION"
FAILED = "2026-01-01 10:00:00,000 - FederatedServer - INFO - Failing job 9-a due to reported failure from"
STOPPED = FAILED.replace("Failing", "Aborting")  # FLARE's word if a site does not allow a class
REFUSED = (
    "2026-01-01 10:00:00,000 - runner_process - ERROR - FL server execution exception: ComponentNotAuthorized: "
    "component not authorized: Component 'pfedsam.flare.rounds.Rounds' at config path 'workflows.#1' "
    "is not in allow_list"
)
FAULTY = (
    "2026-01-01 10:00:00,000 - runner_process - ERROR - FL server execution exception: "
    "ConfigError: Error in 'y', exception: 'TypeError: nonsense'"
)
WEIGHTS = (
    "2026-01-01 10:00:00,000 - pfedsam - ERROR - [server] expected weights; came none; to mend it: set PFEDSAM_WEIGHTS"
)
SILENT = (
    "2026-01-01 10:00:00,000 - pfedsam - ERROR - update of a not counted: no update came: EXECUTION_EXCEPTION; "
    "the site's own log says why"
)


DIVERGED = (
    "2026-01-01 10:00:00,000 - pfedsam - ERROR - update of a not counted: it could not train on\n"
    "2026-01-01 10:00:00,000 - pfedsam - ERROR - [server] expected the sites to train on from the model after 4 "
    f"rounds; came 2 of 2 {WHERE_DIVERGED}: a, b; to mend it: go back"
)


def rendered(folder: Path, rounds: int = 2, sites: list[str] | None = None) -> Path:
    """The demo's job without code; a round needs two sites."""
    render(ROOT / "jobs/pfedsam", folder / "job", rounds=rounds, code=False, sites=sites)
    return folder / "job"


def watched(server: Server, folder: Path, rounds: int = 2, **more: object) -> Outcome:
    """A run of so many rounds, watched to its end."""
    job = rendered(folder, rounds, more.pop("sites", None))
    look = Lookout(server, more.pop("patience", Patience()), server.time.clock)
    return watch(job, look, out=folder / "out", **more)


def test_a_run_that_nothing_disturbs_is_one_job(tmp_path: Path) -> None:
    server = Server(Time(), Plan())
    outcome = watched(server, tmp_path)
    assert outcome.ends == (COMPLETED,)
    assert outcome.folder == tmp_path / "out/job-1"
    assert server.jobs["job-1"].run == outcome.run
    assert outcome.run.startswith("job-")


def test_a_job_that_dies_is_continued_in_the_same_run(tmp_path: Path) -> None:
    server = Server(Time(), Plan(DIED, lasts=12, done=1), Plan(first=1, lasts=10))
    outcome = watched(server, tmp_path)
    assert outcome.ends == (DIED, COMPLETED)
    assert {job.run for job in server.jobs.values()} == {outcome.run}


def test_a_job_that_reached_its_last_round_and_test_is_a_success_whatever_flare_calls_it(tmp_path: Path) -> None:
    assert watched(Server(Time(), Plan("FINISHED:ABNORMAL")), tmp_path).ends == ("FINISHED:ABNORMAL",)


@pytest.mark.parametrize(("back", "ends"), [(20.0, (LOST, COMPLETED)), (FOR_EVER, (COMPLETED,))])
def test_a_job_that_a_restarted_server_does_not_know_is_lost(
    tmp_path: Path, back: float, ends: tuple[str, ...]
) -> None:
    """FLARE leaves it RUNNING for ever; its results cannot be had, and nobody asks for them."""
    server = Server(Time(), Plan(lasts=20), restarts=(back,))
    assert watched(server, tmp_path).ends == ends
    assert len(server.fetched) == 1
    if back < FOR_EVER:
        assert server.submitted[1] > back + Patience().lost


def test_the_watcher_waits_out_a_server_that_does_not_answer(tmp_path: Path) -> None:
    server = Server(Time(), Plan(lasts=20), away=(6, 600))
    assert watched(server, tmp_path).ends == (COMPLETED,)
    assert server.time.now > 600


def test_a_submission_is_tried_until_the_server_answers(tmp_path: Path) -> None:
    server = Server(Time(), Plan())
    submit, tokens = server.submit, []

    def sparing(folder: Path, token: str) -> str:
        tokens.append(token)
        if len(tokens) < 3:
            raise ConnectionError("cannot connect to server")
        return submit(folder, token)

    server.submit = sparing
    assert watched(server, tmp_path).ends == (COMPLETED,)
    assert len(tokens) == 3
    assert len(set(tokens)) == 1  # so that a job that came through unanswered is not there twice


def test_results_that_do_not_come_at_once_are_asked_for_again(tmp_path: Path) -> None:
    server = Server(Time(), Plan())
    fetch, asked = server.fetch, []

    def sparing(name: str, out: Path) -> Path:
        asked.append(name)
        if len(asked) < 3:
            raise unfetched(RuntimeError("not now"))
        return fetch(name, out)

    server.fetch = sparing
    assert watched(server, tmp_path).ends == (COMPLETED,)
    assert asked == ["job-1"] * 3


def without_room(name: str, out: Path) -> Path:
    """What `Admin.fetch` does if the lead's disk is full."""
    raise unfetched(OSError(28, "No space left on device"))


def test_a_completed_job_whose_results_the_lead_cannot_store_is_not_run_again(tmp_path: Path) -> None:
    server = Server(Time(), Plan())
    server.fetch = without_room
    with pytest.raises(UserFault, match=r"No space left on device.*free space.*--continue job-\w+$"):
        watched(server, tmp_path)
    assert len(server.jobs) == 1


def test_a_run_that_goes_on_is_not_given_up_because_the_lead_cannot_store_what_its_jobs_leave(tmp_path: Path) -> None:
    """Each job ends after a round more, as the server's statistics say."""
    plans = [Plan(DIED, first=first, done=first + 1, lasts=12) for first in range(6)]
    server = Server(Time(), *plans, Plan(first=6, done=7, lasts=12))
    fetch = server.fetch
    server.fetch = lambda name, out: (fetch if len(server.jobs) > 6 else without_room)(name, out)
    assert len(watched(server, tmp_path, rounds=7).ends) == 7


def test_a_completed_job_s_results_are_waited_for_while_the_server_does_not_answer(tmp_path: Path) -> None:
    server = Server(Time(), Plan())
    fetch = server.fetch

    def asked(name: str, out: Path) -> Path:
        server.away, server.fetch = (server.time.now, 600), fetch
        return fetch(name, out)

    server.fetch = asked
    assert watched(server, tmp_path).ends == (COMPLETED,)
    assert server.time.now >= 600


def test_results_of_another_form_are_a_fault_that_names_the_run(tmp_path: Path) -> None:
    server = Server(Time(), Plan())
    fetch = server.fetch

    def other(name: str, out: Path) -> Path:
        folder = fetch(name, out)
        (folder / "workspace/results.json").write_text('{"rounds": [{}, {}]}')
        return folder

    server.fetch = other
    with pytest.raises(UserFault, match=r"results\.json.*--continue job-\w+$"):
        watched(server, tmp_path)


def test_the_job_s_copy_is_below_the_results_where_no_cleaner_of_temporary_files_comes(tmp_path: Path) -> None:
    server, places = Server(Time(), Plan()), []
    submit = server.submit

    def noted(folder: Path, token: str) -> str:
        places.append(folder)
        return submit(folder, token)

    server.submit = noted
    watched(server, tmp_path)
    assert all(place.is_relative_to(tmp_path / "out") for place in places)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["job-1"]


def test_a_server_that_does_not_answer_is_told_as_such_and_not_as_absent_sites(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched(Server(Time(), Plan(), away=(0, 400)), tmp_path)
    assert "the server does not answer (cannot connect to server)" in caplog.text
    assert "connected: none" not in caplog.text


def test_submissions_that_fail_for_hours_are_told_ever_more_rarely(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(Time(), Plan())
    submit = server.submit

    def late(folder: Path, token: str) -> str:
        if server.time.now < 3600:
            raise ConnectionError("no")
        return submit(folder, token)

    server.submit = late
    watched(server, tmp_path)
    assert caplog.text.count("could not be submitted") < 100
    assert server.submitted[0] < 3600 + 90


def test_a_submission_that_is_refused_in_mid_run_names_the_run(tmp_path: Path) -> None:
    refusal = UserFault(expected="the right", came="none", do="ask for it")
    with pytest.raises(UserFault, match=r"ask for it; then watch it again with --continue job-\w+$"):
        watched(Server(Time(), Plan(DIED, done=1), refusal), tmp_path)


def test_a_site_that_waits_outside_is_taken_in_at_the_round_s_boundary(tmp_path: Path) -> None:
    long = Plan(lasts=600, every=60, done=10)
    server = Server(Time(), long, Plan(first=2, inside=("a", "b", "c"), done=10), sites={"a": 0, "b": 0, "c": 70})
    assert watched(server, tmp_path, rounds=10).ends == (REJOIN, COMPLETED)
    ((at, round_),) = server.aborts
    assert round_ == 2
    assert at - server.submitted[0] == pytest.approx(120, abs=4)  # as the second round ends, not in its middle


def test_nor_in_the_middle_of_the_first_round_that_the_server_tells(tmp_path: Path) -> None:
    long = Plan(lasts=600, every=60, done=10)
    server = Server(Time(), long, Plan(first=2, inside=("a", "b", "c"), done=10), sites={"a": 0, "b": 0, "c": 15})
    ask = server.ask
    server.ask = lambda question, *rest: (
        None if question == "show_stats" and server.time.now < 90 else ask(question, *rest)
    )
    assert watched(server, tmp_path, rounds=10).ends == (REJOIN, COMPLETED)
    ((at, _),) = server.aborts
    assert at - server.submitted[0] == pytest.approx(120, abs=4)


def test_a_round_that_does_not_end_is_aborted_after_twice_the_longest(tmp_path: Path) -> None:
    """It may be waiting for the very site that is to be taken in."""
    server = Server(Time(), Plan(lasts=FOR_EVER, every=30), Plan(done=10), sites={"a": 0, "b": 0, "c": 70})
    ask = server.ask

    def stuck(question: str, *arguments: str) -> object:
        round_ = min(server.jobs["job-1"].round(server.time.now), 2) if server.jobs else 0
        return {"workflow": {"current_round": round_}} if question == "show_stats" else ask(question, *arguments)

    server.ask = stuck
    assert watched(server, tmp_path, rounds=10).ends == (REJOIN, COMPLETED)
    joined = 70 + Patience().outside
    assert server.aborts[0][0] == pytest.approx(joined + 2 * 30, abs=8)


def test_nobody_is_taken_in_during_the_last_round(tmp_path: Path) -> None:
    last = Plan(first=1, every=FOR_EVER, lasts=3 * Patience().boundary)
    server = Server(Time(), last, sites={"a": 0, "b": 0, "c": 100})
    assert watched(server, tmp_path).ends == (COMPLETED,)
    assert server.aborts == []


@pytest.mark.parametrize("first", [0, 1])
def test_a_job_below_its_quorum_is_aborted_at_once_even_in_the_last_round(tmp_path: Path, first: int) -> None:
    server = Server(Time(), Plan(first=first, lasts=FOR_EVER, every=FOR_EVER, leaves={"b": 30.0}), Plan())
    assert watched(server, tmp_path).ends == (REJOIN, COMPLETED)
    assert server.aborts[0][0] - server.submitted[0] == pytest.approx(30 + Patience().outside, abs=5)


def test_a_site_that_never_gets_into_the_job_does_not_stop_it_for_ever(tmp_path: Path) -> None:
    plan = Plan(lasts=300, every=30, done=10)
    server = Server(Time(), plan, sites={"a": 0, "b": 0, "c": 0})
    outcome = watched(server, tmp_path, rounds=10, patience=Patience(rejoins=3))
    assert outcome.ends == (*[REJOIN] * 3, COMPLETED)


def test_a_site_that_refused_the_job_is_told_once_and_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(lasts=300, every=30, done=10, deploy=("a: OK", "b: OK", "c: NVFLARE_ERROR: BYOC not permitted"))
    server = Server(Time(), plan, sites={"a": 0, "b": 0, "c": 0})
    assert watched(server, tmp_path, rounds=10).ends == (COMPLETED,)
    assert caplog.text.count("site c did not take job job-1: BYOC not permitted") == 1


def test_a_site_that_a_job_does_not_name_neither_counts_nor_joins(tmp_path: Path) -> None:
    server = Server(Time(), Plan(lasts=300, every=150), sites={"x": 0, "a": 40, "b": 60})
    assert watched(server, tmp_path, sites=["a", "b"]).ends == (COMPLETED,)
    assert server.submitted[0] == pytest.approx(60, abs=3)
    assert server.aborts == []


def test_after_a_restart_the_run_waits_for_the_sites_that_it_has_had(tmp_path: Path) -> None:
    """They come back one by one; two would be enough for a round."""
    three = {"a": 0.0, "b": 0.0, "c": 0.0}
    plan = Plan(inside=("a", "b", "c"), lasts=40, every=20)
    server = Server(Time(), plan, sites=three, restarts=(30.0,))
    present = server.present

    def returning() -> dict[str, set[str]]:
        back = {"a": 35.0, "b": 40.0, "c": 75.0}
        return {s: j for s, j in present().items() if not 30 <= server.time.now < back[s]}

    server.present = returning
    assert watched(server, tmp_path).ends == (LOST, COMPLETED)
    assert server.submitted[1] == pytest.approx(75, abs=3)


def test_a_site_that_does_not_come_back_is_waited_for_no_longer_than_patience(tmp_path: Path) -> None:
    server = Server(
        Time(), Plan(DIED, lasts=20, inside=("a", "b", "c"), done=1), Plan(), sites={"a": 0, "b": 0, "c": 0}
    )
    present = server.present
    server.present = lambda: {s: j for s, j in present().items() if s != "c" or server.time.now < 30}
    assert watched(server, tmp_path, patience=Patience(sites=60)).ends == (DIED, COMPLETED)
    assert server.submitted[1] > 30 + 60


@pytest.mark.parametrize(
    ("connect", "settle", "quorum", "begins"),
    [
        ({"a": 0, "b": 0}, 10, 2, 10),  # nobody further comes
        ({"a": 0, "b": 6, "c": 14}, 10, 2, 24),  # each newcomer makes it wait anew
        ({"a": 0, "b": 300}, 10, 2, 300),  # a quorum is waited for as long as it takes
        ({"a": 0, "b": 0, "c": 50}, 0, 2, 0),
    ],
)
def test_the_first_job_waits_until_no_further_site_appears(
    connect: dict[str, float], settle: float, quorum: int, begins: float
) -> None:
    server = Server(Time(), Plan(), sites=connect)
    wait_for_sites(Lookout(server, Patience(settle=settle), server.time.clock), Run("run", quorum=quorum))
    assert server.time.now == pytest.approx(begins, abs=4)


def test_the_final_test_is_done_again_for_a_site_that_was_lost_in_it_but_not_for_ever(tmp_path: Path) -> None:
    once = Server(Time(), Plan(untested=("b",)), Plan(first=2, lasts=5))
    assert watched(once, tmp_path).ends == (COMPLETED, COMPLETED)
    never = Server(Time(), Plan(untested=("b",)))
    assert len(watched(never, tmp_path / "never", patience=Patience(retests=3)).ends) == 4


def test_the_scores_that_stay_are_of_the_job_that_tested_at_the_most_sites(tmp_path: Path) -> None:
    all_ = {"inside": ("a", "b", "c")}
    plans = Plan(untested=("c",), **all_), Plan(untested=("a",), **all_), Plan(untested=("a", "b"), **all_)
    ended = watched(Server(Time(), *plans, sites=dict.fromkeys("abc", 0.0)), tmp_path)
    assert len(ended.ends) == 3
    results = json.loads(next(ended.folder.rglob("results.json")).read_text())
    assert sorted(results["final"]["sites"]) == ["b", "c"]


def test_a_job_that_still_runs_is_followed_instead_of_submitted_again(tmp_path: Path) -> None:
    server = Server(Time(), Plan(lasts=100))
    job = rendered(tmp_path)
    name_run(job, "mine", must_exist=False)
    server.submit(job, "")
    outcome = watch(job, Lookout(server, clock=server.time.clock), out=tmp_path / "out", continues="mine")
    assert outcome == Outcome("mine", tmp_path / "out/job-1", (COMPLETED,))
    assert len(server.jobs) == 1


def test_a_continued_run_is_one_that_must_exist(tmp_path: Path) -> None:
    server, seen = Server(Time(), Plan()), []
    submit = server.submit

    def noted(folder: Path, token: str) -> str:
        path = folder / "app/config/config_fed_server.json"
        seen.extend(c["args"] for c in json.loads(path.read_text())["components"] if c["id"] == "persistor")
        return submit(folder, token)

    server.submit = noted
    watched(server, tmp_path, continues="mine")
    assert [(one["run"], one["continues"]) for one in seen] == [("mine", True)]


@pytest.mark.parametrize(
    ("plan", "jobs", "told"),
    [
        (Plan(DIED, log=REFUSED, done=0), 1, "does not allow the class pfedsam.flare.rounds.Rounds"),
        (Plan(ABORTED, heard=f"{STOPPED} b: unsafe component", done=0), 2, "site b does not allow"),
        (Plan(ABORTED, done=0), 1, "a person aborted it"),
        (Plan(UNDEPLOYED, deploy=("b: NVFLARE_ERROR: BYOC not permitted",), done=0), 1, "b: BYOC not permitted"),
        (Plan(UNDEPLOYED, deploy=("b: no reply (deployment timeout)",), done=0), 5, "b: no reply"),
        (Plan(UNSCHEDULED, history=("2026-01-01 10:00:00: no deploy map",), done=0), 1, "no deploy map"),
        (Plan(DIED, log=WEIGHTS, done=0), 1, "set PFEDSAM_WEIGHTS; then watch it again with --continue job-"),
        (Plan(DIED, log=FAULTY, done=0), 1, "nonsense"),
        (Plan(DIED, log=SILENT, done=0), 2, "update of a not counted"),
        (Plan(DIED, heard=f"{FAILED} b: infrastructure error", done=0), 5, "at site b ended"),
        (Plan(DIED, done=0), 5, "the logs at the server give no reason"),
        (Plan(COMPLETED, done=0), 5, "was not tested"),
    ],
)
def test_what_cannot_become_better_is_not_submitted_again_and_every_end_has_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plan: Plan, jobs: int, told: str
) -> None:
    server = Server(Time(), plan)
    with pytest.raises(UserFault) as fault:
        watched(server, tmp_path)
    assert told in str(fault.value)
    assert len(server.jobs) == jobs
    assert caplog.text.count("why it ended: ") == jobs - 1  # from the first job on; of the last the fault tells


ENDED_BY_B = Plan(DIED, heard=f"{FAILED} b: exception", done=0, inside=("a", "b", "c"))
UNSAFE_AT_B = Plan(ABORTED, heard=f"{STOPPED} b: unsafe component", done=0, inside=("a", "b", "c"))
ONLY_B = Plan(DIED, log=SILENT.replace("of a", "of b"), done=0, inside=("a", "b", "c"))


@pytest.mark.parametrize("by_b", [ENDED_BY_B, UNSAFE_AT_B, ONLY_B])
def test_a_site_that_ends_two_jobs_in_a_row_is_left_out_until_a_round_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by_b: Plan
) -> None:
    without = Plan(DIED, inside=("a", "c"), done=1)
    server = Server(Time(), by_b, by_b, without, Plan(), sites={"a": 0.0, "b": 0.0, "c": 0.0})
    watched(server, tmp_path)
    everybody = server.deployed[0]
    assert server.deployed == [everybody, everybody, {"app": ["server", "a", "c"]}, everybody]
    assert "site b has ended two jobs in a row" in caplog.text


def test_one_end_by_a_site_or_two_with_a_round_between_leave_nobody_out(tmp_path: Path) -> None:
    server = Server(Time(), ENDED_BY_B, Plan(DIED, done=1), ENDED_BY_B, Plan())
    watched(server, tmp_path)
    assert len(server.deployed) == 4
    assert all(one == server.deployed[0] for one in server.deployed)


def test_a_new_round_renews_the_attempts(tmp_path: Path) -> None:
    fruitless, fruitful = Plan(DIED, done=0), Plan(DIED, done=1)
    plans = [fruitless] * 4 + [fruitful] + [Plan(DIED, done=1)] * 4 + [Plan()]
    assert len(watched(Server(Time(), *plans), tmp_path).ends) == 10


def test_a_job_that_a_person_aborted_stays_so_and_the_way_on_names_the_run_where_it_has_rounds(tmp_path: Path) -> None:
    server = Server(Time(), Plan(ABORTED, done=1))
    with pytest.raises(UserFault, match=r"watch it again with --continue job-\w+"):
        watched(server, tmp_path)
    assert len(server.jobs) == 1


def test_jobs_that_only_waited_for_sites_are_no_attempts(tmp_path: Path) -> None:
    waits = Plan(UNSCHEDULED, history=("2026-01-01 10:00:00: connected sites (1) < min_sites (2)",), done=0)
    assert len(watched(Server(Time(), *[waits] * 9, Plan()), tmp_path).ends) == 10


def test_a_submission_that_is_not_allowed_ends_the_watch_at_once(tmp_path: Path) -> None:
    refusal = UserFault(expected="the right", came="none", do="ask for it")
    with pytest.raises(UserFault, match="ask for it"):
        watched(Server(Time(), refusal), tmp_path)


def test_what_is_no_rendered_job_or_has_a_name_that_flare_does_not_take_is_told_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserFault, match="pfedsam render"):
        watch(tmp_path, None, out=tmp_path)
    job = rendered(tmp_path).rename(tmp_path / "my job")
    with pytest.raises(UserFault, match="my job"):
        watch(job, None, out=tmp_path)


def test_how_long_a_site_is_outside_begins_anew_when_it_was_inside() -> None:
    time, outside, patience = Time(), {}, Patience(outside=2)
    look, run = Lookout(None, patience, time.clock), Run("run", job="job")
    seen = []
    for time.now, inside in ((1, True), (2, False), (4, False), (6, True), (7, False), (9, False), (10, False)):
        seen.append(someone_outside({"a": {"job"}, "b": {"job"} if inside else {""}}, run, outside, look))
    assert seen == [False] * 6 + [True]


def asked_to_go_back(server: Server) -> list[dict[str, object]]:
    """From now on: what each submitted job says of its run."""
    submit, seen = server.submit, []

    def noted(folder: Path, token: str) -> str:
        parts = json.loads((folder / "app/config/config_fed_server.json").read_text())["components"]
        (told,) = [part["args"] for part in parts if part["id"] == "persistor"]
        seen.append({key: told.get(key) for key in ("run", "continues", "back")})
        return submit(folder, token)

    server.submit = noted
    return seen


def test_a_run_whose_model_makes_the_training_diverge_goes_back_by_itself_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meanwhile = Plan(DIED, first=3, done=3, lasts=5)  # the next job dies of something else
    server = Server(Time(), Plan(DIED, done=4, log=DIVERGED), meanwhile, Plan(first=3, done=6))
    seen = asked_to_go_back(server)
    outcome = watched(server, tmp_path, rounds=6)
    first, new = seen[0]["run"], seen[1]["run"]
    assert outcome.run == new != first
    assert new.startswith(f"{first}-back")
    assert seen[1:] == [{"run": new, "continues": True, "back": f"{first}/3"}] * 2
    assert [job.run for job in server.jobs.values()] == [first, new, new]
    assert f"came 2 of 2 {WHERE_DIVERGED}: a, b. Run {first} goes back by one round" in caplog.text


def test_a_run_that_diverges_at_the_same_place_again_stops_in_words(tmp_path: Path) -> None:
    server = Server(Time(), Plan(DIED, done=4, log=DIVERGED))
    with pytest.raises(UserFault, match=r"The run went back once, and it was the same.*--without SITE"):
        watched(server, tmp_path, rounds=6)
    assert len(server.jobs) == 2


def test_a_run_goes_back_again_from_a_later_bad_model(tmp_path: Path) -> None:
    plans = [Plan(DIED, done=done, log=DIVERGED) for done in (2, 4)]
    server = Server(Time(), *plans, Plan(done=6))
    seen = asked_to_go_back(server)
    assert watched(server, tmp_path, rounds=6).run == seen[2]["run"]
    assert [one["back"] for one in seen] == [None, f"{seen[0]['run']}/1", f"{seen[1]['run']}/3"]


def test_a_first_model_that_nobody_can_train_on_stops_the_watch(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="There is no model before it"):
        watched(Server(Time(), Plan(DIED, done=0, log=DIVERGED)), tmp_path)


def test_a_divergence_before_the_last_finished_round_is_none(tmp_path: Path) -> None:
    over = f"{DIVERGED}\n2026-01-01 10:00:00,000 - pfedsam - INFO - round 5 done in 3 s"
    server = Server(Time(), Plan(DIED, done=5, log=over), Plan(done=6))
    seen = asked_to_go_back(server)
    assert watched(server, tmp_path, rounds=6).run == seen[0]["run"]
