"""Volumes: read as they lie, laid out alike, brought back exactly."""

from itertools import permutations, product
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from data.dicoms import SAGITTAL, change, several_frames, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGExtended12Bit, JPEGLosslessSV1, RLELossless, generate_uid

from pfedsam.data.dicom import read_dicom
from pfedsam.data.geometry import Volume, oriented, restored
from pfedsam.data.planes import PLANES
from pfedsam.data.volume import read_nifti, read_picture, read_volume
from pfedsam.errors import UserFault

CODES = [
    tuple(letters[a] for letters, a in zip(axes, ends, strict=True))
    for axes in permutations((("L", "R"), ("P", "A"), ("I", "S")))
    for ends in product((0, 1), repeat=3)
]


def placed(shape: tuple[int, int, int], codes: tuple[str, ...]) -> Volume:
    """A volume whose values are its own places, stored towards `codes`."""
    whole = np.diag([2.0, 3.0, 4.0, 1.0])
    affine = whole @ inv_ornt_aff(ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(codes)), (9, 9, 9))
    return Volume(np.arange(np.prod(shape)).reshape(shape), affine)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODES), st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from([*PLANES, "stored"]))
def test_a_label_volume_comes_back_voxel_for_voxel(codes: tuple[str, ...], shape: tuple, plane: str) -> None:
    volume = placed(shape, codes)
    flat = oriented(volume, plane)
    assert np.array_equal(restored(flat.values, volume.affine, plane), volume.values)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODES), st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from(sorted(PLANES)))
def test_each_plane_is_laid_out_alike_and_every_voxel_keeps_its_place(
    codes: tuple[str, ...], shape: tuple, plane: str
) -> None:
    volume = placed(shape, codes)
    flat = oriented(volume, plane)
    assert nibabel.aff2axcodes(flat.affine) == PLANES[plane]
    where = {volume.values[i]: tuple(volume.affine @ [*i, 1]) for i in np.ndindex(*shape)}
    assert all(np.allclose(where[flat.values[i]], flat.affine @ [*i, 1]) for i in np.ndindex(*flat.values.shape))


def test_colours_stay_last() -> None:
    volume = Volume(np.zeros((2, 3, 4, 3)), placed((2, 3, 4), ("R", "A", "S")).affine)
    assert oriented(volume, "axial").values.shape == (3, 2, 4, 3)


def test_an_unknown_plane_is_a_fault() -> None:
    with pytest.raises(UserFault, match=r"axial, coronal, sagittal or stored; came oblique"):
        oriented(Volume(np.zeros((1, 1, 1))), "oblique")


def test_a_nifti_and_a_dicom_of_one_head_come_out_the_same(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
    write_series(tmp_path / "series", values, orientation=SAGITTAL)
    series = read_dicom(tmp_path / "series")
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(series.values, series.affine))
    nibabel.save(turned, tmp_path / "a.nii")
    for plane in PLANES:
        one, other = oriented(series, plane), oriented(read_nifti(tmp_path / "a.nii"), plane)
        assert np.array_equal(one.values, other.values)
        assert np.allclose(one.affine, other.affine)


def test_an_axial_series_comes_out_as_a_viewer_shows_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.uint16)
    write_series(tmp_path, values)
    volume = read_dicom(tmp_path)
    assert np.array_equal(oriented(volume, "axial").values, values)
    assert volume.spacing == pytest.approx((0.5, 0.75, 2.5))
    assert volume.affine @ [0, 0, 0, 1] == pytest.approx([-10, 20, 30, 1])
    assert volume.affine @ [2, 1, 3, 1] == pytest.approx([-10.75, 19, 37.5, 1])


def test_intensities_are_rescaled_and_monochrome1_is_turned(tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(np.uint8)
    write_series(tmp_path / "scaled", values, tags={"RescaleSlope": 2, "RescaleIntercept": -10})
    assert np.array_equal(read_dicom(tmp_path / "scaled").values, values * 2.0 - 10)
    write_series(tmp_path / "dark", values, tags={"PhotometricInterpretation": "MONOCHROME1"})
    assert np.array_equal(read_dicom(tmp_path / "dark").values, 255 - values)
    write_series(tmp_path / "signed", values.astype(np.int16), tags={"PhotometricInterpretation": "MONOCHROME1"})
    assert np.array_equal(read_dicom(tmp_path / "signed").values, -1 - values.astype(int))


def test_slices_with_0_as_white_and_several_depths_are_refused(tmp_path: Path) -> None:
    """Each would be turned within its own range, and one tissue would have two values."""
    values = np.zeros((2, 3, 3), np.uint16)
    files = write_series(tmp_path, values, tags={"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12})
    change(files[1], BitsStored=10, HighBit=9)
    with pytest.raises(UserFault, match=r"one BitsStored in all slices.*; came 10 and 12"):
        read_dicom(tmp_path)
    for file in files:
        change(file, PhotometricInterpretation="MONOCHROME2")
    assert not read_dicom(tmp_path).values.any()


def test_one_activity_has_one_value_in_all_slices_where_0_is_white_and_each_has_a_slope(tmp_path: Path) -> None:
    true = np.full((4, 5, 3), 100.0)
    true[1:3, 2:4] = 200
    slopes = np.array([0.01, 0.02, 0.04])
    stored = np.rint(true / slopes).astype(np.uint16)
    files = write_series(tmp_path, stored, tags={"PhotometricInterpretation": "MONOCHROME1"})
    for file, slope in zip(files, slopes, strict=True):
        change(file, RescaleSlope=slope, RescaleIntercept=0)
    values = read_dicom(tmp_path).values
    assert np.allclose(values[0, 0] - values, true - 100, atol=1e-3)
    assert np.allclose(values[0, 0], values[0, 0, 0], atol=1e-3)


def test_a_series_of_which_some_slices_have_0_as_white_is_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path, np.zeros((2, 3, 3), np.uint8))
    change(files[1], PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(UserFault, match="one PhotometricInterpretation in all slices"):
        read_dicom(tmp_path)


SCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def declare(file: Path, vr: str, **padding: int | None) -> None:
    """State the padding of a file, signed (SS) or not (US)."""
    data = pydicom.dcmread(file)
    for tag, number in padding.items():
        data.add_new(tag, vr, number)
    data.save_as(file)


@pytest.mark.parametrize("interpretation", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_has_the_lowest_real_value_of_its_series(tmp_path: Path, interpretation: str) -> None:
    values = np.random.default_rng(0).integers(0, 300, (8, 6, 3)).astype(np.int16)
    shown = {"PhotometricInterpretation": interpretation, **SCALED}
    write_series(tmp_path / "whole", values, tags=shown)
    padded = values.copy()
    padded[:1], padded[:, :, 2] = -32768, -32768
    files = write_series(tmp_path / "padded", padded, tags=shown)
    for file in files:
        declare(file, "SS", PixelPaddingValue=-32768)
    whole, found = (read_dicom(tmp_path / name).values for name in ("whole", "padded"))
    assert np.array_equal(found[1:, :, :2], whole[1:, :, :2])
    assert (found[padded == -32768] == whole[1:, :, :2].min()).all()


@pytest.mark.parametrize(("declared", "limit"), [(-2000, None), (-2000, -1990), (-1990, -2000)])
def test_all_numbers_of_the_range_of_padding_are_padding(tmp_path: Path, declared: int, limit: int | None) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(np.int16)
    padded = values.copy()
    padded[0, 0] = -2000 if limit is None else [-2000, -1995, -1990, -2000]
    for file in write_series(tmp_path, padded):
        declare(file, "SS", PixelPaddingValue=declared, PixelPaddingRangeLimit=limit)
    values[0, 0] = 4
    assert np.array_equal(read_dicom(tmp_path).values, values)


@pytest.mark.parametrize(
    ("kind", "number", "stated", "padded"),
    [
        (np.int16, -2000, 63536, True),  # a negative number stated as the positive one of the same bits
        (np.uint8, 0, 256, False),  # too large for what is stored, so no pixel can be it
        (np.uint8, 0, None, False),
    ],
)
def test_padding_is_what_the_stored_bits_can_hold(
    tmp_path: Path, kind: type, number: int, stated: int | None, padded: bool
) -> None:
    values = np.arange(5, 29).reshape(2, 3, 4).astype(kind)
    values[0, 0] = number
    for file in write_series(tmp_path, values):
        declare(file, "US", PixelPaddingValue=stated)
    assert (read_dicom(tmp_path).values[0, 0] == (9 if padded else number)).all()


def test_a_slice_of_padding_alone_is_read_as_one_value(tmp_path: Path) -> None:
    for file in write_series(tmp_path, np.full((2, 3, 1), -2000, np.int16)):
        declare(file, "SS", PixelPaddingValue=-2000)
    assert len(np.unique(read_dicom(tmp_path).values)) == 1


@pytest.mark.parametrize("empty", ["RescaleSlope", "RescaleIntercept"])
def test_an_empty_rescaling_is_none(tmp_path: Path, empty: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(np.uint8)
    rescaling = {"RescaleSlope": 2, "RescaleIntercept": -10, empty: ""}
    write_series(tmp_path, values, tags=rescaling)
    expected = values - 10.0 if empty == "RescaleSlope" else values * 2.0
    assert np.array_equal(read_dicom(tmp_path).values, expected)
    write_series(tmp_path / "both", values, tags={"RescaleSlope": "", "RescaleIntercept": ""})
    assert read_dicom(tmp_path / "both").values.dtype == np.uint8


def looked_up(table: np.ndarray, first: int) -> pydicom.Sequence:
    """A ModalityLUTSequence that maps `first` and what follows to the table's values."""
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [len(table), first, 16], "US"
    item.add_new("LUTData", "US", table.tolist())
    return pydicom.Sequence([item])


@pytest.mark.parametrize("interpretation", ["MONOCHROME2", "MONOCHROME1"])
def test_a_table_of_intensities_is_looked_up(tmp_path: Path, interpretation: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(np.uint8)
    table = (np.arange(5000) ** 2 % 1009).astype(np.uint16)
    tags = {"ModalityLUTSequence": looked_up(table, 0), "PhotometricInterpretation": interpretation}
    write_series(tmp_path, values, tags=tags)
    expected = table[values] if interpretation == "MONOCHROME2" else 65535 - table[values]
    assert np.array_equal(read_dicom(tmp_path).values, expected)


def test_an_empty_table_of_intensities_is_none(tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(np.uint8)
    write_series(tmp_path, values, tags={"ModalityLUTSequence": pydicom.Sequence([]), "RescaleSlope": 2})
    assert np.array_equal(read_dicom(tmp_path).values, values * 2.0)


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_file_of_several_frames_among_files_of_one_is_named(tmp_path: Path, which: int) -> None:
    files = several_frames(write_series(tmp_path, np.zeros((4, 4, 4), np.uint8)), which)
    with pytest.raises(UserFault, match=rf"came 3 frames in .*{files[which].name}"):
        read_dicom(tmp_path)


def test_a_colour_series_keeps_its_colours(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 3, 3)).astype(np.uint8)
    write_series(tmp_path, values)
    assert np.array_equal(read_dicom(tmp_path).values, values)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_series_are_read(tmp_path: Path, syntax: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (40, 50, 2)).astype(np.uint8)
    for k, file in enumerate(write_series(tmp_path, values)):
        data = pydicom.dcmread(file)
        if syntax == RLELossless:
            data.compress(RLELossless, generate_instance_uid=False)
        else:
            Image.fromarray(values[:, :, k]).save(tmp_path / "x.jp2", irreversible=False, no_jp2=True)
            data.PixelData = encapsulate([(tmp_path / "x.jp2").read_bytes()])
            data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        data.save_as(file)
    (tmp_path / "x.jp2").unlink(missing_ok=True)
    assert np.array_equal(read_dicom(tmp_path).values, values)


@pytest.mark.skipif(get_decoder(JPEGLosslessSV1).is_available, reason="a plugin for it is installed")
def test_a_compression_without_a_plugin_is_named_with_the_remedy(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, np.zeros((4, 4, 1), np.uint8))
    data = pydicom.dcmread(file)
    data.PixelData = encapsulate([b"\0" * 16])
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.save_as(file)
    with pytest.raises(UserFault, match=r"none for JPEG Lossless.*python-gdcm"):
        read_dicom(tmp_path)


@pytest.mark.skipif(
    bool({"gdcm", "pylibjpeg"} & set(get_decoder(JPEGExtended12Bit).available_plugins)), reason="a plugin is installed"
)
def test_a_jpeg_of_12_bits_that_pillow_cannot_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, np.zeros((4, 4, 1), np.uint16), tags={"BitsStored": 12, "HighBit": 11})
    data = pydicom.dcmread(file)
    data.PixelData = encapsulate([b"\xff\xd8\xff" + b"\0" * 13])
    data.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    data.save_as(file)
    with pytest.raises(UserFault, match=r"a pydicom plugin.*none for JPEG Extended.*python-gdcm"):
        read_dicom(tmp_path)


def test_an_enhanced_file_holds_the_whole_series(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.uint16)
    files = write_series(tmp_path / "classic", values, orientation=SAGITTAL)
    whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(file) for file in files], generate_uid(), 3, generate_uid(), 1
    )
    whole.save_as(tmp_path / "whole.dcm")
    one, other = (oriented(read_volume(tmp_path / name), "axial") for name in ("classic", "whole.dcm"))
    assert np.array_equal(one.values, other.values)
    assert np.allclose(one.affine, other.affine)


def test_a_missing_slice_and_a_doubled_position_are_named(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 6), np.uint8)
    write_series(tmp_path / "gap", values)[3].unlink()
    with pytest.raises(UserFault, match=r"slices 2\.5 mm apart.*a gap of 5 mm after .*_2\.dcm"):
        read_dicom(tmp_path / "gap")
    write_series(tmp_path / "twice", values, gap=0)
    with pytest.raises(UserFault, match="two at the position of"):
        read_dicom(tmp_path / "twice")


def test_two_series_in_a_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in "ab":
        for file in write_series(tmp_path / name, np.zeros((4, 4, 2), np.uint8)):
            file.rename(tmp_path / f"{name}{file.name}")
    with pytest.raises(UserFault, match="2 series in 4 files"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6), (4, 5, 6, 1)])
def test_a_nifti_is_read_with_its_place_and_its_numbers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.values.dtype == np.int16
    assert np.array_equal(volume.values.ravel(), values.ravel())
    assert volume.spacing == (2, 3, 4) or len(shape) == 2


def test_a_colour_nifti_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    records = np.ascontiguousarray(values).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(records, np.eye(4)), tmp_path / "a.nii")
    assert np.array_equal(read_nifti(tmp_path / "a.nii").values, values)


def test_a_folded_affine_is_a_fault(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    file.header["srow_x"], file.header["sform_code"] = 0, 1
    file.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:296] = bytes(16)
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    with pytest.raises(UserFault, match="makes them flat"):
        read_nifti(tmp_path / "a.nii")


def test_pictures_are_turned_upright_and_palettes_kept_for_labels(tmp_path: Path) -> None:
    wide = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").values.shape == (4, 3, 1)
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    palette.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    palette.save(tmp_path / "palette.png")
    assert read_volume(tmp_path / "palette.png", labels=True).values[..., 0].tolist() == [[0, 1], [2, 1]]
    assert read_picture(tmp_path / "palette.png").values[0, 1, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1), ("L", 1), ("CMYK", 3), ("I;16", 1)])
def test_every_kind_of_picture_becomes_grey_or_rgb(tmp_path: Path, mode: str, channels: int) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").values.shape == ((3, 4, 1, 3) if channels == 3 else (3, 4, 1))


def test_a_damaged_file_is_one_clear_fault(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4)), tmp_path / "a.nii.gz")
    whole = (tmp_path / "a.nii.gz").read_bytes()
    for name, data in {"a.nii.gz": whole[:900], "b.png": b"", "c.dcm": b"DICM" * 99, "d.nii": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserFault, match=rf"readable file at .*{name}"):
            read_volume(tmp_path / name)
