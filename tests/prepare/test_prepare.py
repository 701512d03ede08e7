"""A hospital's folder becomes a site that training reads, whatever lies between the good files."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from data.dicoms import AXIAL, SAGITTAL, write_seg, write_series
from PIL import Image
from prepare.corpus import BROKEN, dicom_site, lesion, nifti, nifti_site, picture, scan

from conftest import tiny
from pfedsam.cli import main
from pfedsam.data import datalist
from pfedsam.data.dataset import open_site
from pfedsam.data.dicom import files_of, read_dicom
from pfedsam.data.folder import new_folder
from pfedsam.data.geometry import oriented
from pfedsam.data.volume import read_nifti
from pfedsam.errors import UserFault
from pfedsam.prepare import site
from pfedsam.prepare.labels import parse_table
from pfedsam.prepare.site import Wish, prepare

TURNED = (0, 1, 0, 1, 0, 0)  # rows run towards posterior


def names(out: Path) -> dict[str, dict[str, str]]:
    with (out / "names.csv").open(encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def labels_by_slice(out: Path, config: object) -> list[tuple[str, int, torch.Tensor, torch.Tensor]]:
    """Case, index, picture and labels of every slice, as training sees them."""
    splits = open_site(out, "a", config)
    return [
        (s.image.name.split(".")[0], s.index, split.picture(i), split.labels(i))
        for split in splits.values()
        for i, s in enumerate(split.slices)
    ]


def test_training_reads_a_prepared_nifti_site_with_the_source_s_labels(tmp_path: Path) -> None:
    report = prepare([nifti_site(tmp_path / "in", 4)], tmp_path / "out", Wish())
    assert (report["cases"], report["slices"], report["dropped"]) == (4, 20, [])
    known = names(tmp_path / "out")
    seen = labels_by_slice(tmp_path / "out", tiny(data={"scale": "percentile"}))
    assert len(seen) == 20
    for case, index, picture_, labels in seen:
        image = oriented(read_nifti(Path(known[case]["image"])), "axial").values[..., index]
        mask = oriented(read_nifti(Path(known[case]["mask"])), "axial").values[..., index]
        assert np.array_equal(labels, mask)
        assert picture_.shape[1:] == image.shape == (20, 24)
        assert np.corrcoef(picture_[0].ravel(), image.ravel())[0, 1] > 0.99


def test_training_reads_a_prepared_dicom_site_with_the_source_s_labels(tmp_path: Path) -> None:
    report = prepare([dicom_site(tmp_path / "in", 3)], tmp_path / "out", Wish())
    assert (report["cases"], report["dropped"], report["patients"]) == (3, [], 3)
    assert report["labels"][1]["name"] == "Tumour"
    known = names(tmp_path / "out")
    for case, index, picture_, labels in labels_by_slice(tmp_path / "out", tiny(data={"scale": "percentile"})):
        number = int(known[case]["patient"].split("-")[1])
        assert np.array_equal(labels, lesion(number)[..., index])
        assert np.corrcoef(picture_[0].ravel(), scan(number)[..., index].ravel())[0, 1] > 0.99


def test_prepare_and_training_lay_a_mask_on_its_image_where_as_stored_the_two_are_refused(tmp_path: Path) -> None:
    ras = np.diag([0.8, 0.9, 3, 1])
    for i in range(3):
        nifti(tmp_path / f"in/images/p{i}.nii", scan(i), ras)
        turned = nibabel.Nifti1Image(lesion(i), ras).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
        (tmp_path / "in/labels").mkdir(exist_ok=True)
        nibabel.save(turned, tmp_path / f"in/labels/p{i}.nii")
    rows = [datalist.Row(f"images/p{i}.nii", f"labels/p{i}.nii", s, str(i)) for i, s in enumerate(datalist.SPLITS)]
    datalist.write_csv(tmp_path / "in/datalist.csv", rows)
    with pytest.raises(UserFault, match="pfedsam prepare"):
        open_site(tmp_path / "in", "a", tiny(data={"plane": "stored"}))
    assert len(open_site(tmp_path / "in", "a", tiny())["train"]) == scan(0).shape[2]
    assert prepare([tmp_path / "in"], tmp_path / "out", Wish())["dropped"] == []
    known = names(tmp_path / "out")
    for case, index, _, labels in labels_by_slice(tmp_path / "out", tiny(data={"scale": "percentile"})):
        drawn = nibabel.Nifti1Image(lesion(int(Path(known[case]["image"]).stem[1:])), ras)
        nibabel.save(drawn, tmp_path / "drawn.nii")
        assert np.array_equal(labels, oriented(read_nifti(tmp_path / "drawn.nii"), "axial").values[..., index])


def oblique(angle: float) -> np.ndarray:
    affine = np.diag([1.0, 1, 3, 1])
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


@pytest.mark.parametrize("plane", ["axial", "sagittal", "stored"])
def test_a_mask_at_its_image_s_place_stays_there_though_both_are_tilted_by_just_45_degrees(
    tmp_path: Path, plane: str
) -> None:
    for i in range(3):
        nifti(tmp_path / f"in/images/p{i}.nii", 100 * lesion(i).astype(np.int16), oblique(np.pi / 4 + 1e-7))
        nifti(tmp_path / f"in/labels/p{i}.nii", lesion(i), oblique(np.pi / 4 - 1e-7))
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish(plane=plane))
    assert (report["cases"], report["dropped"]) == (3, [])
    config = tiny(data={"scale": "percentile", "plane": plane})
    for _, _, picture_, labels in labels_by_slice(tmp_path / "out", config):
        assert np.array_equal(picture_[0] > 0.5, labels)


@pytest.mark.parametrize(("known", "unit"), [(False, "px"), (True, "mm")])
def test_distances_of_a_prepared_volume_are_in_the_unit_that_its_source_knows(
    tmp_path: Path, known: bool, unit: str
) -> None:
    """A float TIFF knows no millimetres, and is written as NIfTI, which always has some."""
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for i in range(3):
        grey, mask = np.random.default_rng(i).random((8, 8)).astype(np.float32) * 900, np.eye(8, dtype=np.uint8)
        if known:
            nifti(tmp_path / f"in/images/p{i}.nii", grey[..., None], np.eye(4))
            nifti(tmp_path / f"in/masks/p{i}.nii", mask[..., None], np.eye(4))
        else:
            Image.fromarray(grey).save(tmp_path / f"in/images/p{i}.tif")
            Image.fromarray(mask).save(tmp_path / f"in/masks/p{i}.png")
    prepare([tmp_path / "in"], tmp_path / "out", Wish())
    data = open_site(tmp_path / "out", "a", tiny(data={"scale": "percentile"}))["train"]
    assert data.slices[0].unit == unit
    assert data.slices[0].image.suffix == ".nii"


def test_a_patient_whose_issuer_some_series_leave_out_sits_in_one_split(tmp_path: Path) -> None:
    for i in range(3):
        for which, tags in (("t1", {}), ("t2", {"IssuerOfPatientID": "HOSP"})):
            home = tmp_path / f"in/{i}{which}"
            write_series(home / "s", scan(i).astype(np.uint16), patient=f"ID-{i}", tags=tags)
            write_seg(home / "drawn.dcm", files_of(home / "s"), lesion(i), ["Tumour"])
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert (report["cases"], report["patients"]) == (6, 3)
    assert any("3 PatientID(s) have an issuer in some series only" in note for note in report["notes"])
    assert "issuer in some series only" in (tmp_path / "out/report.html").read_text()
    known, homes = names(tmp_path / "out"), {}
    for split, rows in datalist.read(tmp_path / "out/datalist.csv").items():
        for row in rows:
            homes.setdefault(known[Path(row.image).stem]["patient"], set()).add(split)
    assert sorted(homes) == ["ID-0", "ID-1", "ID-2"]
    assert all(len(splits) == 1 for splits in homes.values())


def test_one_head_as_nifti_and_as_dicom_gives_the_same_files(tmp_path: Path) -> None:
    dicom_site(tmp_path / "dicom", 3)
    for i in range(3):
        volume = read_dicom(tmp_path / f"dicom/study{i}/t2")
        for folder, values in (("images", volume.values.astype(np.int16)), ("masks", lesion(i))):
            (tmp_path / "nifti" / folder).mkdir(parents=True, exist_ok=True)
            turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, volume.affine))
            nibabel.save(turned, tmp_path / f"nifti/{folder}/ID-{i}.nii")
    for kind in ("dicom", "nifti"):
        prepare([tmp_path / kind], tmp_path / f"out-{kind}", Wish(plane="coronal"))
    for path in (tmp_path / "out-dicom").glob("*s/*.nii"):
        one, other = (
            nibabel.load(tmp_path / f"out-{kind}" / path.parent.name / path.name) for kind in ("dicom", "nifti")
        )
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        assert np.allclose(one.affine, other.affine, atol=1e-4)


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_and_the_rest_comes_through(what: str, tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    spoil, said = BROKEN[what]
    spoil(tmp_path / "in")
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["cases"] == 3
    words = [d for d in report["dropped"] if "bad" in d["file"]]
    assert any(re.search(said, d["why"]) for d in words), report["dropped"]
    assert all(d["do"] for d in words)
    assert {row.image for rows in datalist.read(tmp_path / "out/datalist.csv").values() for row in rows} == {
        f"images/case-{i:04d}.nii" for i in (1, 2, 3)
    }
    shown = (tmp_path / "out/report.html").read_text()
    assert all(d["file"] in shown for d in words)


def test_all_that_is_broken_at_once_spoils_nothing(tmp_path: Path) -> None:
    for i, (spoil, _) in enumerate(BROKEN.values()):
        nifti_site(tmp_path / f"in/ward{i}", 1)
        nifti(tmp_path / f"in/ward{i}/images/p00.nii.gz", scan(100 + i))
        spoil(tmp_path / f"in/ward{i}")
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["cases"] == len(BROKEN)
    assert len({d["file"] for d in report["dropped"]}) >= len(BROKEN)


def test_pictures_of_every_kind_come_through(tmp_path: Path) -> None:
    grey, colour = scan(0, (9, 8)).astype(np.uint8), scan(0, (9, 8, 3)).astype(np.uint8)
    kinds = {"grey": grey, "colour": colour, "deep": scan(0, (9, 8)).astype(np.uint16), "größe": grey}
    for name, values in kinds.items():
        picture(tmp_path / f"in/{name}.png", values)
    picture(tmp_path / "in/palette.png", colour, "P")
    picture(tmp_path / "in/alpha.png", colour, "RGBA")
    for name in (*kinds, "palette", "alpha"):
        picture(tmp_path / f"in/{name}_mask.png", lesion(0, (9, 8, 3))[..., 1])
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert (report["cases"], report["dropped"]) == (6, [])
    assert any("mixed" in note for note in report["notes"])
    assert len(labels_by_slice(tmp_path / "out", tiny(data={"scale": "percentile"}))) == 6


@pytest.mark.parametrize("square", [True, False])
def test_a_picture_and_a_volume_are_no_pair_and_named(tmp_path: Path, square: bool) -> None:
    nifti_site(tmp_path / "in", 3)
    height, width = (20, 20) if square else (20, 24)
    nifti(tmp_path / "in/images/a.nii", scan(1, (width, height, 1)))
    picture(tmp_path / "in/labels/a.png", lesion(1)[:20, :20, 1] if square else lesion(1)[..., 1].T)
    picture(tmp_path / "in/images/b.png", scan(1, (height, width)).astype(np.uint8))
    nifti(tmp_path / "in/labels/b.nii", lesion(1, (width, height, 3))[..., 1:2])
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["cases"] == 3
    assert [d["file"] for d in report["dropped"]] == ["images/a.nii", "images/b.png"]
    assert all("in the format of its image" in d["why"] for d in report["dropped"])
    assert all("save both in one format" in d["do"] for d in report["dropped"])


@pytest.mark.parametrize(("orientation", "plane"), [(AXIAL, "axial"), (SAGITTAL, "sagittal")])
def test_a_picture_drawn_on_a_dicom_slice_lies_on_it_row_for_row(
    tmp_path: Path, orientation: tuple[float, ...], plane: str
) -> None:
    for i in range(3):
        values = scan(i, (20, 20, 1)).astype(np.uint16)
        write_series(tmp_path / f"in/images/p{i}", values, patient=f"ID-{i}", orientation=orientation)
        for file in (tmp_path / f"in/images/p{i}").iterdir():
            file.rename(tmp_path / f"in/images/p{i}.dcm")
        picture(tmp_path / f"in/masks/p{i}.png", (values[..., 0] > 600).astype(np.uint8))
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish(plane=plane))
    assert (report["cases"], report["dropped"]) == (3, [])
    for path in (tmp_path / "out/images").iterdir():
        image, mask = (read_nifti(tmp_path / "out" / kind / path.name).values for kind in ("images", "masks"))
        assert np.array_equal(image > 600, mask == 1)


def test_a_picture_of_another_size_than_its_dicom_slice_is_named_however_the_slice_is_turned(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    (file,) = write_series(tmp_path / "in/images", scan(0, (20, 24, 1)).astype(np.uint16), orientation=TURNED)
    file.rename(tmp_path / "in/images/bad.dcm")
    picture(tmp_path / "in/labels/bad.png", lesion(0, (24, 20, 3))[..., 1])
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish(plane="axial"))
    assert report["cases"] == 3
    assert ["image's size" in d["why"] for d in report["dropped"]] == [True]


def test_masks_of_0_and_255_are_understood_and_said_so(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    for i in range(3):
        nifti(tmp_path / f"in/labels/p{i:02d}_seg.nii.gz", lesion(i) * 255)
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["classes"] == 1
    assert report["labels"][1]["cases"] == 3
    assert "255 is the class" in report["labels_by"]


def test_pixels_that_nobody_labelled_are_written_as_255_counted_and_said_with_the_job_s_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti_site(tmp_path / "in", 4)
    mask = lesion(0)
    mask[0, :5, 0] = 255
    nifti(tmp_path / "in/labels/p00_seg.nii.gz", mask)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--ignore", "255"]) == 0
    words = capsys.readouterr().out
    assert "Unlabelled: 5 pixels (0.05%) in 1 cases. Set data.ignore to 255" in words
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["cases"], report["classes"], report["unlabelled"]["pixels"]) == (4, 1, 5)
    assert sum(row["pixels"] for row in report["labels"]) == 4 * mask.size - 5
    assert "data.ignore" in (tmp_path / "out/report.html").read_text()
    counts = [int((read_nifti(path).values == 255).sum()) for path in sorted((tmp_path / "out/masks").iterdir())]
    assert counts == [5, 0, 0, 0]


def test_a_mask_that_is_drawn_the_other_way_round_is_pointed_at(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 5)
    nifti(tmp_path / "in/labels/p02_seg.nii.gz", 1 - lesion(2))
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert [
        note for note in report["notes"] if "background and class exchanged" in note and "images/p02.nii.gz" in note
    ]


def test_a_jpeg_mask_is_cut_at_half(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"in/images/{i}.jpg", scan(i, (40, 40)).astype(np.uint8))
        picture(tmp_path / f"in/masks/{i}.jpg", np.kron(np.eye(2, dtype=np.uint8), np.ones((20, 20), np.uint8)) * 255)
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["labels"][1]["share"] == pytest.approx(0.5, abs=0.01)


def test_values_become_the_classes_that_the_user_says(tmp_path: Path) -> None:
    for i in range(3):
        nifti(tmp_path / f"in/images/p{i}.nii", scan(i))
        nifti(tmp_path / f"in/masks/p{i}.nii", (lesion(i) * 128 + 127 * (scan(i) > 850)).astype(np.int16))
    with pytest.raises(UserFault, match=r"--labels 128=1,255=2"):
        prepare([tmp_path / "in"], tmp_path / "out", Wish())
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish(table=parse_table("128=1,127=0,255=2")))
    assert report["classes"] == 2
    assert [row["cases"] for row in report["labels"]] == [3, 3, 3]


def test_fewer_classes_than_segments_are_a_fault(tmp_path: Path) -> None:
    dicom_site(tmp_path / "in", 3)
    write_seg(tmp_path / "in/study0/drawn.dcm", files_of(tmp_path / "in/study0/t2"), lesion(0), ["Tumour", "Oedema"])
    with pytest.raises(UserFault, match="at least 2, for Tumour, Oedema"):
        prepare([tmp_path / "in"], None, Wish(classes=1))
    report = prepare([tmp_path / "in"], None, Wish(table=parse_table("Tumour=1")))
    assert (report["classes"], report["cases"]) == (1, 3)
    assert "Oedema is left out" in report["labels_by"]


def test_a_mask_that_shows_nothing_is_kept_and_pointed_at(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    nifti(tmp_path / "in/labels/p01_seg.nii.gz", lesion(0) * 0)
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["cases"] == 3
    assert any("show no class" in note and "images/p01.nii.gz" in note for note in report["notes"])


def test_the_same_seed_draws_the_same_splits_and_another_salt(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 9)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare([tmp_path / "in"], tmp_path / out, Wish(seed=seed))
    splits, groups = {}, {}
    for out in "abc":
        found = datalist.read(tmp_path / out / "datalist.csv")
        splits[out] = {row.image: split for split, rows in found.items() for row in rows}
        groups[out] = {row.group for rows in found.values() for row in rows}
    assert splits["a"] == splits["b"] != splits["c"]
    assert not groups["a"] & groups["b"]


def test_what_leaves_the_folder_names_no_patient(tmp_path: Path) -> None:
    dicom_site(tmp_path / "in", 3)
    prepare([tmp_path / "in"], tmp_path / "out", Wish())
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.name != "names.csv":
            assert b"ID-1" not in path.read_bytes(), path
            assert b"Doe" not in path.read_bytes(), path
    assert (tmp_path / "out/names.csv").stat().st_mode & 0o077 == 0


def test_a_class_with_an_umlaut_is_written_where_the_system_knows_only_ascii(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    code = "import sys; from pathlib import Path; from pfedsam.prepare.site import Wish, prepare; "
    code += "prepare([Path(sys.argv[1])], Path(sys.argv[2]), Wish(names=('Gr\\u00f6\\u00dfe',)))"
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "in"), str(tmp_path / "out")]
    subprocess.run(command, check=True, env=plain)
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["class_names"] == ["Gr\u00f6\u00dfe"]


def test_slices_of_a_patient_stay_in_one_split(tmp_path: Path) -> None:
    for patient in range(4):
        for i in range(5):
            image = scan(10 * patient + i, (9, 8)).astype(np.uint8)
            picture(tmp_path / f"in/images/p{patient}_{i}.png", image)
            picture(tmp_path / f"in/masks/p{patient}_{i}.png", lesion(i, (9, 8, 3))[..., 1])
    assert prepare([tmp_path / "in"], tmp_path / "out", Wish())["patients"] == 4
    assert prepare([tmp_path / "in"], None, Wish(patient=r"(p\d_\d)"))["patients"] == 20
    with pytest.raises(UserFault, match="at least three patients"):
        prepare([tmp_path / "in"], None, Wish(patient="(p)"))


def test_two_patients_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for i in range(3):
        nifti_site(tmp_path / f"in/room{i}", 1)
        nifti(tmp_path / f"in/room{i}/images/p00.nii.gz", scan(i))
    report = prepare([tmp_path / "in"], None, Wish())
    assert (report["cases"], report["patients"]) == (3, 3)


def test_a_datalist_keeps_its_splits(tmp_path: Path, hospital: Path) -> None:
    report = prepare([hospital / "site-1"], tmp_path / "out", Wish())
    assert {split: n["cases"] for split, n in report["splits"].items()} == {"train": 6, "val": 2, "test": 3}


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_prepare_wrote_below_the_folder_does_not_come_in_again_as_other_patients(tmp_path: Path) -> None:
    source = nifti_site(tmp_path / "in", 4)
    prepare([source], source / "prepared", Wish())
    report = prepare([source], tmp_path / "out", Wish())
    assert report["cases"] == 4
    assert [d["file"] for d in report["dropped"] if "prepare wrote" in d["why"]] == ["prepared"]


def test_what_shows_names_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    prepare([nifti_site(tmp_path / "in", 4)], tmp_path / "out", Wish())
    for name in ("names.csv", "names.salt", "report.html", "report.json"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o600, name


def test_a_fault_leaves_nothing_behind(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 2)
    with pytest.raises(UserFault, match="three patients"):
        prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)

    def interrupted(things: list[object], what: str) -> Iterator[object]:
        yield from things[:2]
        if what == "cases":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "in"], tmp_path / "out", Wish(), interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nifti_site(tmp_path / "in", 3)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "in")]) == 2
    assert "an empty or no folder" in capsys.readouterr().err


def test_a_mount_point_or_a_link_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    monkeypatch.setattr(site, "discover", lambda *_: pytest.fail("the work has begun"))
    for out in ("disk", "link"):
        with pytest.raises(UserFault, match="name a folder inside it"):
            prepare([nifti_site(tmp_path / "in", 3)], tmp_path / out, Wish())
        with pytest.raises(UserFault, match="name a folder inside it"), new_folder(tmp_path / out):
            pytest.fail("the work has begun")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "in", "link"]


def test_the_verb_says_what_it_did_as_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nifti_site(tmp_path / "in", 3)
    (tmp_path / "in/notes.docx").write_text("x")
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--site", "hospital-a"]) == 0
    assert "3 pairs of image and mask, 15 slices, 3 patients" in (words := capsys.readouterr().out)
    assert "Left out: notes.docx" in words
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out2"), "--json", "--plane", "stored"]) == 0
    assert json.loads(capsys.readouterr().out)["plane"] == "stored"


def test_the_page_stands_alone_and_its_pictures_are_small(tmp_path: Path) -> None:
    nifti_site(tmp_path / "in", 3)
    prepare([tmp_path / "in"], tmp_path / "out", Wish())
    page = (tmp_path / "out/report.html").read_text()
    assert not re.findall(r"(?:src|href)=.(?!data:)", page)
    assert "Keep this page at the site" in page
    pictures = re.findall(r"base64,([^\"]+)", page)
    assert len(pictures) == 3
    assert all(len(one) * 3 / 4 < 60_000 for one in pictures)


def test_an_outline_lies_where_the_mask_does(tmp_path: Path) -> None:
    import base64
    import io

    nifti_site(tmp_path / "in", 3)
    for i in range(3):
        nifti(tmp_path / f"in/images/p{i:02d}.nii.gz", scan(i) * 0)
    prepare([tmp_path / "in"], tmp_path / "out", Wish(plane="stored"))
    first = re.findall(r"base64,([^\"]+)", (tmp_path / "out/report.html").read_text())[0]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(first)))).astype(int)
    rows, columns = np.where(drawn[..., 0] - drawn[..., 2] > 100)
    inside = np.argwhere(lesion(0)[..., 1])
    scale = drawn.shape[0] / 24
    assert rows.min() == pytest.approx(inside[:, 0].min() * scale, abs=2)
    assert columns.max() == pytest.approx((inside[:, 1].max() + 1) * drawn.shape[1] / 20, abs=2)


def test_no_pair_at_all_is_told_with_the_remedy_of_the_pairs_and_not_of_another_file(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"in/images/{i}.png", scan(i, (9, 9)).astype(np.uint8))
        picture(tmp_path / f"in/masks/{i}.jpg", lesion(i, (9, 9, 3))[..., 1])
    (tmp_path / "in/a_note.txt").write_text("x")
    with pytest.raises(UserFault, match="save the mask as PNG from its source"):
        prepare([tmp_path / "in"], tmp_path / "out", Wish())


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_a_site_in_another_unit_is_prepared_in_millimetres(tmp_path: Path, unit: str) -> None:
    scale = {"micron": 1000, "meter": 0.001}[unit]
    for i in range(3):
        for name, values in (("images", scan(i)), ("labels", lesion(i))):
            file = nibabel.Nifti1Image(values, np.diag([0.5 * scale, 0.5 * scale, 2 * scale, 1]))
            file.header.set_xyzt_units(unit)
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            nibabel.save(file, tmp_path / f"in/{name}/p{i}.nii")
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert report["sizes"]["spacing_mm"]["slice"] == [2, 2, 2]
    written = nibabel.load(next((tmp_path / "out/images").iterdir()))
    assert written.header.get_xyzt_units()[0] == "mm"
    assert nibabel.affines.voxel_sizes(written.affine) == pytest.approx((0.5, 0.5, 2))


def test_a_name_that_is_not_utf_8_is_left_out_and_named(tmp_path: Path) -> None:
    """As in an archive of an old Windows share. It ended the whole command, after all the work."""
    home = tmp_path / "in"
    for i, name in enumerate(("a.png", "b.png", "c.png", os.fsdecode(b"M\xfcller.png"))):
        for sub in ("images", "masks"):
            (home / sub).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(16, k=i, dtype=np.uint8)).save(home / sub / name)
    (home / "images" / os.fsdecode(b"stra\xdfe")).mkdir()
    report = prepare([home], tmp_path / "out", Wish(patient="each"))
    named = {one["file"]: one["why"] for one in report["dropped"]}
    assert named == dict.fromkeys(
        ("images/M\\udcfcller.png", "masks/M\\udcfcller.png", "images/stra\\udcdfe"), "its name is not in UTF-8"
    )
    assert "M\\\\udcfcller" in (tmp_path / "out/report.json").read_text()
