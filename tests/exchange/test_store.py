import itertools
import json
import math
import multiprocessing
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from pfedsam.errors import UserFault
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.store import KEEP, Moment, SiteStore
from pfedsam.files import write_atomic
from pfedsam.tensors import digest, pack, unpack

OLD, NEW = {"gate": torch.ones(3)}, {"gate": torch.full((3,), 2.0)}


def newest(store: SiteStore) -> Path:
    return max(store.folder.glob("private.*.safetensors"))


def filled(root: Path) -> SiteStore:
    store = SiteStore(root, "study", "site")
    store.save(OLD, {"round": "0"})
    store.save(NEW, {"round": "1"})
    return store


def test_the_newest_generation_comes_back_and_the_one_before_stays(tmp_path: Path) -> None:
    store = filled(tmp_path)
    tensors, facts = store.load()
    assert torch.equal(tensors["gate"], NEW["gate"])
    assert facts == {"round": "1"}
    before = min(store.folder.glob("private.*.safetensors"))
    assert torch.equal(unpack(before.read_bytes())[0]["gate"], OLD["gate"])


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    assert SiteStore(tmp_path, "study", "site").load() is None


def test_studies_and_sites_do_not_touch_each_other(tmp_path: Path) -> None:
    filled(tmp_path)
    assert SiteStore(tmp_path, "study", "other").load() is None
    assert SiteStore(tmp_path, "another", "site").load() is None


@pytest.mark.parametrize("harm", ["torn", "flipped", "emptied", "garbage"])
def test_a_damaged_generation_is_noticed_and_the_one_before_used(tmp_path: Path, harm: str) -> None:
    store = filled(tmp_path)
    path = newest(store)
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[-2] ^= 1
    path.write_bytes({"torn": data[:-5], "flipped": data, "emptied": b"", "garbage": b"\xff" * 40}[harm])
    tensors, _ = store.load()
    assert torch.equal(tensors["gate"], OLD["gate"])


def test_a_generation_with_nan_is_passed_over(tmp_path: Path) -> None:
    """Every later round would begin with it, and none would lose it."""
    store = filled(tmp_path)
    store.save({"gate": torch.tensor([1.0, math.nan, 1.0])}, {"round": "2"})
    tensors, facts = store.load()
    assert torch.equal(tensors["gate"], NEW["gate"])
    assert facts == {"round": "1"}


@pytest.mark.parametrize("run", ["x/../../../../outside", "../run", "a/b", "", ".hidden"])
def test_a_run_s_name_in_a_message_leads_out_of_no_store(tmp_path: Path, run: str) -> None:
    store = SiteStore(tmp_path / "store", "study", "site")
    (tmp_path / "store/study/site/before.x").mkdir(parents=True)
    (tmp_path / "outside.json").write_text('{"name": "of a patient"}')
    for use in (lambda: store.remembered("before", run), lambda: store.remember("before", run, {})):
        with pytest.raises(UserFault, match="a run's name"):
            use()


def test_a_crash_while_writing_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(UserFault, match="power cut"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def value(number: float) -> dict[str, torch.Tensor]:
    return {"gate": torch.full((3,), number)}


def rounds(store: SiteStore, run: str, *numbers: int) -> None:
    for n in numbers:
        store.save(value(n), {}, Moment(run, n))


@pytest.mark.parametrize(("again", "expected"), [(3, 2.0), (2, 1.0)])
def test_a_round_done_again_begins_with_what_the_site_had_before_it(
    tmp_path: Path, again: int, expected: float
) -> None:
    """Round 3 was in flight when the server died; round 2 is done again too if its checkpoint was torn."""
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", 0, 1, 2, 3)
    tensors, _ = store.load(Moment("run", again))
    assert tensors["gate"][0] == expected
    rounds(store, "run", again)
    assert store.load(Moment("run", again + 1))[0]["gate"][0] == again
    assert store.load()[1]["round"] == str(again)


def test_the_first_round_done_again_begins_with_nothing_of_its_own(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", 0)
    assert store.load(Moment("run", 0)) is None


@pytest.mark.parametrize(
    ("begin", "found"), [("", None), ("latest", ("second", "1")), ("first", ("first", "1")), ("third", None)]
)
def test_a_new_run_begins_with_another_s_private_part_only_where_it_is_told_to(
    tmp_path: Path, begin: str, found: tuple[str, str] | None
) -> None:
    """Seeds and rates that are submitted as jobs of one study would learn from each other."""
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "first", 0, 1)
    rounds(store, "second", 0, 1)
    loaded = store.load(Moment("new", 0), begin=begin)
    assert (loaded and (loaded[1]["run"], loaded[1]["round"])) == found


def test_what_a_run_has_trained_itself_comes_before_what_it_is_told_to_begin_with(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "second", 0, 1)
    rounds(store, "first", 0, 1)
    assert store.load(Moment("second", 1), begin="latest")[1] == {"run": "second", "round": "0"}
    assert store.load(Moment("second", 0), begin="latest")[1] == {"run": "first", "round": "1"}


def test_an_older_run_goes_on_with_its_own_experts_after_another_has_trained(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "first", *range(6))
    rounds(store, "second", *range(4))
    assert store.load(Moment("first", 6))[1] == {"run": "first", "round": "5"}
    assert store.load(Moment("second", 4))[1] == {"run": "second", "round": "3"}
    assert store.load(Moment("third", 0)) is None
    rounds(store, "third", 0)
    assert store.load(Moment("third", 1))[1]["run"] == "third"
    assert len(list(store.folder.glob("private.*"))) == KEEP + KEEP + 1


def test_later_runs_leave_the_last_generation_of_each_earlier_one(tmp_path: Path) -> None:
    """A site's model of any of its runs can still be exported."""
    store = SiteStore(tmp_path, "study", "site")
    for run in ("first", "second", "third", "fourth"):
        rounds(store, run, *range(4))
    assert [store.load(Moment(run, 9))[1]["round"] for run in ("first", "second", "third", "fourth")] == ["3"] * 4


def test_a_run_that_went_back_goes_on_with_what_the_run_before_it_had_then(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", *range(5))
    again = Moment("again", 4, (Moment("run", 4),))
    assert store.load(again, trained=True)[1] == {"run": "run", "round": "3"}
    rounds(store, "again", 4, 5)
    assert store.load(again, trained=True)[1] == {"run": "run", "round": "3"}  # the round is repeated
    assert store.load(Moment("again", 5, again.back), trained=True)[1] == {"run": "again", "round": "4"}
    third = Moment("third", 3, (*again.back, Moment("again", 3)))
    assert store.load(third, trained=True)[1] == {"run": "run", "round": "2"}


def test_without_a_part_from_then_the_oldest_from_later_is_taken_by_a_site_that_had_trained(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", *range(5))
    again = Moment("again", 1, (Moment("run", 1),))
    assert store.load(again, trained=True)[1] == {"run": "run", "round": "2"}
    assert store.load(again) is None
    assert store.load(again, begin="latest") is None
    rounds(store, "other", 0)
    assert store.load(again, begin="latest")[1]["run"] == "other"
    assert store.load(Moment("run", 1), trained=True) is None  # a run that went back nowhere takes nothing from later


def test_no_message_of_a_run_that_goes_back_deletes_a_generation_of_the_run_before(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", *range(5))
    before = everything(store)
    for n in range(20):
        store.save(OLD, {}, Moment(f"back-{n}", n % 3, (Moment("run", n % 3),)))
    assert before.items() <= everything(store).items()


def everything(store: SiteStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.glob("private.*")}


def test_rounds_and_runs_in_messages_delete_no_generation_of_another_run(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", *range(5))
    before = everything(store)
    for n in range(20):
        rounds(store, f"forged-{n}", 0, 10**9, 10**9 + 1, 10**9 + 2)
    assert before.items() <= everything(store).items()
    assert store.load(Moment("run", 5))[1] == {"run": "run", "round": "4"}


@pytest.mark.parametrize("first", [3, 2, 1, 0, -5])
def test_rounds_that_go_backwards_in_messages_leave_what_the_run_goes_on_with(tmp_path: Path, first: int) -> None:
    """A server may fall back one round, not walk back to the first, and not delete by it what the site had before."""
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", *range(5))
    for n in range(first, -6, -1):
        if n == 3:
            rounds(store, "run", 3)
            continue
        with pytest.raises(UserFault, match="not before round 4"):
            store.require_next(Moment("run", n))
        with pytest.raises(UserFault, match="not before round 4"):
            rounds(store, "run", n)
    assert {store.load(Moment("run", n))[1]["round"] for n in (3,)} == {"2"}
    assert store.load(Moment("run", 5))[1]["round"] == ("3" if first == 3 else "4")


def test_nor_do_rounds_go_backwards_where_the_site_keeps_nothing_of_its_own(tmp_path: Path) -> None:
    """As with FedAvg: the last model that it was sent names the round."""
    store = SiteStore(tmp_path, "study", "site")
    store.keep_accepted(NEW, Moment("run", 50))
    store.require_next(Moment("run", 49))
    store.require_next(Moment("other", 0))
    with pytest.raises(UserFault, match="not before round 50"):
        store.require_next(Moment("run", 3))


def test_what_a_killed_process_left_half_written_goes_with_the_next_claim_and_with_the_run(tmp_path: Path) -> None:
    store = filled(tmp_path)
    torn = store.folder / f".{newest(store).name}.0a1b.tmp"
    torn.write_bytes(newest(store).read_bytes())
    assert torn in store.files_of("run")
    before = {path.name for path in store.folder.glob("private.*")}
    store.claim()
    assert not torn.exists()
    assert {path.name for path in store.folder.glob("private.*")} == before


def test_a_last_model_that_cannot_be_read_now_is_not_taken_for_none(tmp_path: Path) -> None:
    """Else any model would pass in that round, and become the measure of the next."""
    store = SiteStore(tmp_path, "study", "site")
    assert store.accepted("run") is None
    (store.folder / "accepted.run.safetensors").mkdir(parents=True)
    with pytest.raises(UserFault, match=r"to read .*accepted\.run.* came Is a directory"):
        store.accepted("run")


def test_a_generation_that_cannot_be_read_now_is_not_trained_over_from_the_one_before(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = newest(store)
    path.unlink()
    path.mkdir()
    for use in (store.load, lambda: store.load(Moment("run", 3)), lambda: store.require_next(Moment("run", 3))):
        with pytest.raises(UserFault, match=rf"to read .*{path.name}; came Is a directory"):
            use()


def test_a_note_and_a_claim_that_cannot_be_read_now_are_told(tmp_path: Path) -> None:
    store = filled(tmp_path).claim()
    for name in ("before.run.json", "owner"):
        (store.folder / name).unlink(missing_ok=True)
        (store.folder / name).mkdir()
    with pytest.raises(UserFault, match=r"to read .*before\.run\.json"):
        store.remembered("before", "run")
    with pytest.raises(UserFault, match=r"to read .*owner"):
        store.save(value(1), {})


def test_old_generations_are_dropped(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    rounds(store, "run", *range(9))
    assert len(list(store.folder.glob("private.*"))) == KEEP


def test_a_process_left_behind_cannot_overwrite_the_work_of_a_later_one(tmp_path: Path) -> None:
    early, late = SiteStore(tmp_path, "study", "site"), SiteStore(tmp_path, "study", "site")
    early.claim()
    rounds(early, "run", 0)
    late.claim()
    rounds(late, "run", 1)
    with pytest.raises(UserFault, match="a later job"):
        rounds(early, "run", 0)
    assert late.load()[1]["round"] == "1"


def test_a_note_belongs_to_its_run_and_a_torn_one_is_none(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    assert store.remembered("before", "run") is None
    store.remember("before", "run", {"dice": 0.5})
    assert store.remembered("before", "run") == {"dice": 0.5}
    assert store.remembered("before", "another") is None
    (store.folder / "before.run.json").write_text('{"dice": 0.')
    assert store.remembered("before", "run") is None


def save_forever(root: Path, first: int) -> None:
    store = SiteStore(root, "study", "site")
    for n in itertools.count(first):
        store.save({"gate": torch.full((50_000,), float(n))}, {}, Moment("run", n))
        (root / "told").write_text(str(n))


@pytest.mark.long
def test_a_kill_at_any_moment_of_saving_loses_no_saved_round(tmp_path: Path) -> None:
    """One hundred kills at random moments of a process that does nothing but save."""
    store, chance, last = SiteStore(tmp_path, "study", "site"), random.Random(0), -1
    for _ in range(100):
        saver = multiprocessing.get_context("fork").Process(target=save_forever, args=(tmp_path, last + 1))
        saver.start()
        time.sleep(chance.uniform(0.02, 0.1))
        saver.kill()
        saver.join()
        told = (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""
        kept = store.load()
        if kept is not None:
            last = int(kept[1]["round"])
            assert bool((kept[0]["gate"] == last).all())
        assert last >= int(told or -1)
    assert last > 50


@pytest.mark.long
def test_a_full_disk_is_told_and_the_generation_before_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        store = SiteStore(disk, "study", "site")
        store.save({"gate": torch.ones(100_000)}, {}, Moment("run", 0))
        store.save({"gate": torch.ones(100_000)}, {}, Moment("run", 1))
        with pytest.raises(UserFault, match="No space left"):
            store.save({"gate": torch.zeros(100_000)}, {}, Moment("run", 2))
        assert store.load()[1]["round"] == "1"
        assert not list(store.folder.glob(".*.tmp"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_is_packed_comes_back_with_its_facts() -> None:
    tensors, facts = unpack(pack(NEW, {"base": "abc"}))
    assert torch.equal(tensors["gate"], NEW["gate"])
    assert facts == {"base": "abc"}


def test_a_ledger_s_line_that_a_crash_tore_spoils_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.note("out", OLD, task="train", round_=0, facts={})
    with ledger.path.open("a") as file:
        file.write('{"time": 1, "dir')
    ledger.note("out", NEW, task="train", round_=1, facts={})
    assert [line["round"] for line in ledger.lines()] == [0, 1]


def test_a_ledger_line_can_be_computed_again_from_the_tensors(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: 5.0)
    ledger.note("out", NEW, task="train", round_=2, facts={"samples": 4}, run="a run")
    ledger.note("in", OLD, task="train", round_=3, facts={})
    first, second = ledger.lines()
    assert first == {
        "time": 5.0,
        "direction": "out",
        "run": "a run",
        "task": "train",
        "round": 2,
        "bytes": 12,
        "sha256": digest(NEW),
        "tensors": ["gate"],
        "facts": {"samples": 4},
    }
    assert second["direction"] == "in"
    assert json.dumps(first)
