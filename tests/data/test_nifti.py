"""What a NIfTI header says of unit, place, size and kind of numbers: honoured, or named."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pfedsam.data import reader
from pfedsam.data.planes import STORED
from pfedsam.data.volume import read_nifti
from pfedsam.errors import UserFault
from pfedsam.prepare.site import Wish, prepare

AFFINE = np.diag([0.5, 0.75, 2, 1])
VOLUME = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def saved(path: Path, values: np.ndarray = VOLUME, affine: np.ndarray = AFFINE, **header: object) -> Path:
    file = nibabel.Nifti1Image(values, affine)
    for name, value in header.items():
        file.header[name] = value
    file.to_filename(path)
    return path


def both(path: Path) -> list[Callable[[], object]]:
    """Training's reader, and that of prepare and predict."""
    return [lambda: reader.header(path), lambda: read_nifti(path)]


@pytest.mark.parametrize(("unit", "scale"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (3 + 8, 0.001), (7, 1)])
def test_the_unit_of_the_header_is_honoured_alike_in_training_and_in_predict(
    tmp_path: Path, unit: int, scale: float
) -> None:
    path = saved(tmp_path / "a.nii", xyzt_units=unit)
    for found in (reader.header(path), read_nifti(path)):
        assert found.spacing == pytest.approx((0.5 * scale, 0.75 * scale, 2 * scale))
        assert np.allclose(found.affine, np.diag([0.5 * scale, 0.75 * scale, 2 * scale, 1]))


def test_voxels_of_less_than_a_micron_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", affine=np.diag([4e-7, 4e-7, 1e-6, 1]))
    assert read_nifti(path).spacing == pytest.approx((4e-7, 4e-7, 1e-6))
    assert reader.header(path).spacing == pytest.approx((4e-7, 4e-7, 1e-6))


def formed(path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int] = (2, 1)) -> Path:
    file = nibabel.Nifti1Image(VOLUME, None)
    file.set_qform(qform, code=codes[1])
    file.set_sform(sform, code=codes[0])
    file.to_filename(path)
    return path


def test_an_sform_and_a_qform_that_disagree_are_named_in_training_prepare_and_predict(tmp_path: Path) -> None:
    half_a_turn = np.diag([-0.5, -0.75, 2, 1])
    for use in both(formed(tmp_path / "a.nii", AFFINE, half_a_turn)):
        with pytest.raises(UserFault, match=r"sform \(code 2\) and its qform \(code 1\).*write it into both"):
            use()
    moved = AFFINE.copy()
    moved[2, 3] = 1
    for use in both(formed(tmp_path / "b.nii", AFFINE, moved)):
        with pytest.raises(UserFault, match="up to 1 mm apart"):
            use()


def test_rounding_between_sform_and_qform_passes_and_a_form_without_a_code_does_not_count(tmp_path: Path) -> None:
    turned = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(z=1e-3) @ AFFINE[:3, :3], [0, 0, 0.01])
    for use in both(formed(tmp_path / "a.nii", AFFINE, turned)):
        use()
    path = formed(tmp_path / "b.nii", AFFINE, np.diag([-0.5, -0.75, 2, 1]), codes=(2, 0))
    assert np.allclose(read_nifti(path).affine, AFFINE)


def placeless(path: Path, values: np.ndarray = VOLUME) -> Path:
    """A file whose header states no position: both codes are 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(values, None)
    file.header.set_zooms((0.5, 0.75, 2))
    file.to_filename(path)
    return path


def test_a_header_that_states_no_position_is_read_as_stored_and_refused_in_another_plane(tmp_path: Path) -> None:
    """nibabel guesses that x runs to the left; another program guesses otherwise."""
    path = placeless(tmp_path / "a.nii")
    assert reader.header(path, STORED).spacing == read_nifti(path).spacing == (0.5, 0.75, 2)
    with pytest.raises(
        UserFault, match=r"a position in the header of .*a\.nii, so that axial .*came none.*set_sform.*stored"
    ):
        reader.header(path, "axial")


def test_prepare_leaves_out_a_scan_or_a_mask_without_a_position(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(5):
        values, home = rng.integers(0, 99, (6, 7, 4)).astype(np.int16), tmp_path / "in"
        for kind, found, lost in (("images", values, i == 0), ("masks", (values > 50).astype(np.uint8), i < 2)):
            path = placeless(home / kind / f"p{i}.nii", found)
            if not lost:
                saved(path, found)
    report = prepare([tmp_path / "in"], None, Wish())
    assert (report["cases"], [one["file"] for one in report["dropped"]]) == (3, ["images/p0.nii", "images/p1.nii"])
    assert [name in one["why"] for name, one in zip(("images", "masks"), report["dropped"], strict=True)] == [True] * 2
    assert all("a position in the header" in one["why"] and "set_sform" in one["do"] for one in report["dropped"])


def test_what_prepare_writes_of_a_scan_without_a_position_states_none_either(tmp_path: Path) -> None:
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 99, (6, 7, 4)).astype(np.int16)
        placeless(tmp_path / f"in/images/p{i}.nii", values)
        placeless(tmp_path / f"in/masks/p{i}.nii", (values > 50).astype(np.uint8))
    assert prepare([tmp_path / "in"], tmp_path / "out", Wish(plane=STORED))["cases"] == 3
    for path in (tmp_path / "out").glob("*/*.nii"):
        assert reader.header(path, STORED).spacing == (0.5, 0.75, 2)
        assert reader.header(path, STORED).unit == "mm"
        with pytest.raises(UserFault, match="a position in the header"):
            reader.header(path, "coronal")


def test_pixdim_that_disagrees_with_the_affine_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.ones(3, np.float32).tobytes()
    path.write_bytes(raw)
    for use in both(path):
        with pytest.raises(UserFault, match=r"1 x 1 x 1 by the header's pixdim and 0\.5 x 0\.75 x 2 by its affine"):
            use()


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    for use in both(saved(tmp_path / "a.nii", VOLUME.astype(np.complex64))):
        with pytest.raises(UserFault, match="save the magnitude"):
            use()


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_real_kind_of_number_is_read_as_it_is(tmp_path: Path, kind: str) -> None:
    values = VOLUME.astype(kind)
    file = nibabel.Nifti1Image(values, AFFINE, dtype=values.dtype)
    file.to_filename(tmp_path / "a.nii")
    assert np.array_equal(read_nifti(tmp_path / "a.nii").values, VOLUME)
    assert np.array_equal(reader.read_image(tmp_path / "a.nii", 1)[..., 0], VOLUME[..., 1])


@pytest.mark.parametrize("code", [1, 1536])
def test_a_kind_of_number_that_is_not_read_is_told_with_those_that_are(tmp_path: Path, code: int) -> None:
    path = saved(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    raw[70:72] = np.array(code, np.int16).tobytes()
    path.write_bytes(raw)
    for use in both(path):
        with pytest.raises(UserFault, match=r"numbers of a type .*8 or 16 bits, or as 32-bit floating point"):
            use()


def test_a_drawing_in_the_transparency_of_a_volume_s_colours_is_refused(tmp_path: Path) -> None:
    values = np.zeros((2, 3, 4), [(name, "u1") for name in "RGBA"])
    values["A"][0] = 255
    saved(tmp_path / "a.nii", values)
    for use in (lambda p: reader.read_image(p), lambda p: reader.read_mask(p, 0, 1), read_nifti):
        with pytest.raises(UserFault, match="a drawing in its transparency"):
            use(tmp_path / "a.nii")


def test_a_header_that_claims_too_many_voxels_is_named_before_anything_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.full(3, 2000, np.int16).tobytes()
    path.write_bytes(raw)
    for use in both(path):
        with pytest.raises(
            UserFault, match=r"2147 million bytes .* came 2000 x 2000 x 2000 voxels of \d+ million bytes by its header"
        ):
            use()


def test_class_numbers_that_a_slope_moved_are_read_in_training_as_in_prepare(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(np.array([[[0], [30000]]], np.int16), AFFINE)
    file.header.set_slope_inter(2.99998 / 30000, 0)
    nibabel.Nifti1Image(np.array([[[0], [2.99998]]]), AFFINE, file.header).to_filename(tmp_path / "m.nii")
    assert reader.read_mask(tmp_path / "m.nii", 0, 3).tolist() == [[0, 3]]
