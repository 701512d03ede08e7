"""What is left out is said once for all files with one fault, and numbers are of what is kept."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from data.dicoms import write_seg, write_series
from PIL import Image
from prepare.corpus import nifti, picture, scan
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from pfedsam.cli import main
from pfedsam.data.datalist import SPLITS, Row, write_csv
from pfedsam.data.dicom import files_of
from pfedsam.errors import UserFault
from pfedsam.prepare.labels import is_blurred
from pfedsam.prepare.site import Wish, prepare

SHAPE = (12, 12)


def pictures(folder: Path, strange: tuple[int, ...], value: int = 3) -> Path:
    """Eight patients. The masks of `strange` also have another value."""
    for i in range(8):
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:4, 2:7] = 255
        mask[8, 8] = value if i in strange else 0
        picture(folder / f"images/p{i}.png", scan(i, SHAPE).astype(np.uint8))
        picture(folder / f"masks/p{i}.png", mask)
    return folder


def test_patients_are_counted_after_files_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(pictures(tmp_path / "in", (2,))), str(tmp_path / "out")]) == 0
    words = capsys.readouterr().out
    assert "7 pairs of image and mask, 7 slices, 7 patients.\n" in words
    assert "8 patients" not in words
    assert "val: 1 patient, 1 slice; test: 1 patient, 1 slice.\n" in words


def test_files_with_one_fault_are_left_out_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(pictures(tmp_path / "in", (2, 5))), str(tmp_path / "out")]) == 0
    words = capsys.readouterr().out
    assert words.count("Left out: ") == 1
    assert "Left out: images/p2.png and 1 more: expected values 0, 255 in the mask" in words
    assert "images/p5.png" in (tmp_path / "out/report.html").read_text()


def test_files_with_different_faults_have_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = pictures(tmp_path / "in", (2,))
    pictures(tmp_path / "other", (5,), 9)
    (tmp_path / "other/masks/p5.png").replace(home / "masks/p5.png")
    assert main(["prepare", str(home), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("Left out: ") == 2


def test_a_folder_without_a_usable_pair_gets_the_reason_once_and_the_remedy_in_its_own_line(tmp_path: Path) -> None:
    home = tmp_path / "in"
    for i in range(4):
        nifti(home / f"images/p{i}.nii", scan(i))
        nifti(home / f"labels/p{i}.nii", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(UserFault) as caught:
        prepare([home], None, Wish())
    head, why, do = str(caught.value).split("\n")
    assert head == "expected a usable pair of image and mask; came none of 4 pairs in 8 files"
    assert why.startswith("images/p0.nii, images/p1.nii, images/p2.nii and 1 more: expected a mask of its image's size")
    assert do.startswith("to mend it: pair the right files")


def test_a_folder_without_a_usable_pair_names_the_remedy_of_each_reason(tmp_path: Path) -> None:
    """Contours are one of several reasons, and their remedy is the one that counts."""
    write_series(tmp_path / "a", np.zeros((4, 4, 3), np.uint16))
    contours = Dataset()
    contours.file_meta = FileMetaDataset()
    contours.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    contours.SOPClassUID, contours.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.3"
    contours.Modality = "RTSTRUCT"
    contours.save_as(tmp_path / "contours.dcm", enforce_file_format=True)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserFault, match=r"(?s)RTSTRUCT.*to mend it: .*export them as DICOM-SEG or NIfTI masks"):
        prepare([tmp_path], None, Wish())


@pytest.mark.parametrize("both", [True, False])
def test_a_wrong_name_is_told_of_the_image_too_if_it_has_one(tmp_path: Path, both: bool) -> None:
    for i in range(4):
        nifti(tmp_path / f"images/p{i}.nii", scan(i))
        nifti(tmp_path / f"labels/p{i}.nii", np.zeros(scan(i).shape, np.uint8))
        for folder in ("images", "labels") if both else ("labels",):
            file = tmp_path / f"{folder}/p{i}.nii"
            file.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(UserFault, match="came gzip, which its name does not say") as caught:
        prepare([tmp_path], None, Wish())
    assert (f"the same holds for the image {tmp_path}/images/p0.nii" in caught.value.came) == both
    assert caught.value.do == "name it .nii.gz" + (", and the image too" if both else "")


@pytest.mark.parametrize(("side", "said"), [(0.0004, True), (0.4, False)])
def test_voxels_as_small_as_a_microscope_s_are_doubted(tmp_path: Path, side: float, said: bool) -> None:
    for i in range(4):
        for kind, values in (("images", scan(i)), ("labels", (scan(i) > 0).astype(np.uint8))):
            nifti(tmp_path / f"{kind}/p{i}.nii", values, np.diag([side, side, side, 1]))
    notes = "\n".join(prepare([tmp_path], None, Wish())["notes"])
    assert ("4 volume(s) have voxels of less than 0.01 mm" in notes) == said


@pytest.mark.parametrize(
    ("option", "said", "told"),
    [
        ("--classes", "0", "expected 1 to 254 classes; came 0"),
        ("--labels", "", "expected --labels VALUE=CLASS"),
        ("--names", "", "expected --names NAME"),
        ("--split", "", "expected three shares"),
    ],
)
def test_an_option_that_says_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, said: str, told: str
) -> None:
    home = pictures(tmp_path / "in", ())
    assert main(["prepare", str(home), str(tmp_path / "out"), option, said]) == 2
    assert told in (err := capsys.readouterr().err)
    assert ("came nothing;" in err) == (option in ("--labels", "--names"))
    assert not (tmp_path / "out").exists()


def test_one_patient_id_in_all_series_is_told_with_the_way_to_go_by_folders(tmp_path: Path) -> None:
    for i in range(4):
        write_series(tmp_path / f"p{i}/CT", scan(i, (8, 9, 3)).astype(np.uint16), patient="ANONYMOUS")
        write_seg(tmp_path / f"p{i}/seg.dcm", files_of(tmp_path / f"p{i}/CT"), np.ones((8, 9, 3), np.uint8), ["Lesion"])
    with pytest.raises(UserFault, match="one PatientID in all 4 series") as caught:
        prepare([tmp_path], None, Wish())
    assert "ANONYMOUS" not in str(caught.value)
    assert "--patient folder" in caught.value.do
    assert prepare([tmp_path], None, Wish(patient="folder"))["patients"] == 4


def test_hidden_files_and_folders_are_named(tmp_path: Path) -> None:
    home = pictures(tmp_path / "in", ())
    for name in ("images/.a5.png", ".old/p9.png", "images/.notes.txt", "images/._p1.png"):
        picture(home / "new.png", scan(1, SHAPE).astype(np.uint8))
        (home / name).parent.mkdir(exist_ok=True)
        (home / "new.png").rename(home / name)
    left = {one["file"]: one["why"] for one in prepare([home], None, Wish())["dropped"]}
    assert left == dict.fromkeys((".old", "images/.a5.png"), "hidden, because its name begins with a dot")


def test_what_a_datalist_does_not_name_is_said(tmp_path: Path) -> None:
    home = pictures(tmp_path, ())
    rows = [Row(f"images/p{i}.png", f"masks/p{i}.png", split, f"p{i}") for i, split in enumerate(SPLITS)]
    write_csv(home / "datalist.csv", rows)
    (home / "manifest.csv").write_text("image,mask\n")
    notes = "\n".join(prepare([home], None, Wish())["notes"])
    assert "10 file(s) are in no row of datalist.csv and are not read (such as images/p3.png)" in notes
    assert "manifest.csv beside datalist.csv is not read" in notes


def test_too_few_patients_are_told_with_what_was_left_out_and_joined(tmp_path: Path) -> None:
    home = pictures(tmp_path, ())
    for i in range(2, 8):
        picture(home / f"masks/p{i}_old.png", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserFault, match="at least three patients") as caught:
        prepare([home], None, Wish())
    first, why = caught.value.came.split("\n")[:2]
    assert first.startswith("2 (Each file name is a patient")
    assert "1 images and 2 masks have the same name" in why
    assert caught.value.do.startswith("mend what is named above")
    for i in range(2, 8):
        (home / f"masks/p{i}_old.png").unlink()
        (home / f"images/p{i}.png").write_bytes((home / "images/p1.png").read_bytes())
    with pytest.raises(UserFault, match=r"6 image\(s\) are copies of another patient's image"):
        prepare([home], None, Wish())


@pytest.mark.parametrize("end", ["", "_liver"])
def test_a_mask_that_resizing_blurred_is_told_so(tmp_path: Path, end: str) -> None:
    """What *=1 would do is to enlarge it."""
    for i in range(4):
        mask = np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 255
        picture(tmp_path / f"images/p{i}.png", scan(i, (48, 48)).astype(np.uint8))
        for name in {end, end and "_spleen"}:
            blurred = Image.fromarray(mask).resize((48, 48), Image.Resampling.BILINEAR)
            picture(tmp_path / f"masks/p{i}{name}.png", np.asarray(blurred))
    with pytest.raises(UserFault, match="the mask was probably blurred by resizing: save it again") as caught:
        prepare([tmp_path], None, Wish())
    assert "nearest neighbour" in caught.value.do


def test_blurred_masks_among_others_are_left_out_and_decide_nothing(tmp_path: Path) -> None:
    home = pictures(tmp_path, ())
    for i in range(4):
        mask = Image.open(home / f"masks/p{i}.png").resize((24, 24), Image.Resampling.BILINEAR)
        mask.save(home / f"masks/p{i}.png")
        picture(home / f"images/p{i}.png", scan(i, (24, 24)).astype(np.uint8))
    report = prepare([home], None, Wish())
    assert (report["cases"], report["classes"]) == (4, 1)
    assert all(one["do"].startswith("the mask was probably blurred") for one in report["dropped"])


def test_object_numbers_and_grey_levels_are_not_called_blurred() -> None:
    assert not is_blurred({0: 900} | dict.fromkeys(range(1, 40), 20))
    assert not is_blurred({0: 900, 50: 90, 100: 80, 150: 85, 255: 70})
    assert not is_blurred({0: 900, 1: 3, 2: 3, 3: 3, 4: 90})
    assert not is_blurred({0: 900})
