"""Where FLARE puts things."""

from pathlib import Path

from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from pfedsam import layout


def test_the_simulated_job_has_the_name_that_flare_gives_it() -> None:
    assert layout.SIMULATED == SimulatorConstants.JOB_NAME


def test_a_site_is_the_same_whether_its_files_lie_in_a_run_of_one_process_or_of_flare(tmp_path: Path) -> None:
    for own in layout.sites_folders(tmp_path, "north")[2:]:
        assert layout.site_of(own, tmp_path) == "north"
