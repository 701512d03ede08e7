"""DICOM as hospitals and exporters really write it: read whole, or refused in words that fit."""

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from data.dicoms import a_frame_each, change, enhanced, write_series

from pfedsam.data.dicom import read_dicom, read_series
from pfedsam.data.volume import read_volume
from pfedsam.errors import UserFault
from pfedsam.predict.scans import Scan, find_scans
from pfedsam.prepare.discover import discover

RAMP = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(np.uint16)


def test_orientations_that_differ_by_rounding_are_one_series(tmp_path: Path) -> None:
    for k, file in enumerate(write_series(tmp_path, RAMP)):
        tilt = 0.00051 if k % 2 else 0.00049
        change(file, ImageOrientationPatient=[1, tilt, 0, -tilt, 1, 0], PixelSpacing=[0.5, 0.75 + 1e-5 * k])
    assert np.array_equal(read_dicom(tmp_path).values, RAMP)


def test_slices_of_another_direction_are_still_another_kind(tmp_path: Path) -> None:
    file = write_series(tmp_path, RAMP)[3]
    change(file, ImageOrientationPatient=[1, 0.02, 0, -0.02, 1, 0])
    with pytest.raises(UserFault, match="2 kinds"):
        read_dicom(tmp_path)


def placed_at(folder: Path, places: list[float]) -> None:
    for file, z in zip(write_series(folder, np.zeros((4, 4, len(places)), np.uint8)), places, strict=True):
        change(file, ImagePositionPatient=[10, -20, z])


@pytest.mark.parametrize(
    ("places", "came", "do"),
    [
        ([0, 5, 10, 15, 25, 35, 45], "2 slice distances: 5 mm for 4 slices .*, 10 mm for 3 slices", "resample"),
        ([0, 5, 10, 15, 21.25, 28.75, 36.25], r"5 mm for 4 slices .*, 7\.5 mm for 3 slices", "its own folder"),
        ([0, 3, 6, 12, 15, 18], "a gap of 6 mm", "slices are missing"),
        ([0, 3, 6, 10.5, 13.5, 16.5], r"a gap of 4\.5 mm", "resample"),
    ],
)
def test_uneven_slices_are_told_as_what_they_are(tmp_path: Path, places: list[float], came: str, do: str) -> None:
    placed_at(tmp_path, places)
    with pytest.raises(UserFault) as fault:
        read_dicom(tmp_path)
    assert re.search(came, fault.value.came)
    assert do in fault.value.do
    assert ("missing" in fault.value.do) == ("missing" in do)


def test_two_slice_distances_are_read_once_each_has_a_folder_of_its_own(tmp_path: Path) -> None:
    placed_at(tmp_path / "a", [0, 5, 10, 15])
    placed_at(tmp_path / "b", [25, 35, 45])
    assert [read_dicom(tmp_path / name).spacing[2] for name in "ab"] == [5, 10]


def test_one_instance_uid_on_slices_that_differ_is_named_with_its_files(tmp_path: Path) -> None:
    files = write_series(tmp_path, RAMP)
    for file in files[2:4]:
        change(file, SOPInstanceUID="1.2.3.4")
    with pytest.raises(UserFault) as fault:
        read_dicom(tmp_path)
    assert all(text in fault.value.came for text in ("1.2.3.4", files[2].name, files[3].name))


def test_a_copy_of_a_slice_counts_once(tmp_path: Path) -> None:
    files = write_series(tmp_path, RAMP)
    (tmp_path / "copy.dcm").write_bytes(files[2].read_bytes())
    assert np.array_equal(read_dicom(tmp_path).values, RAMP)


def test_two_patients_in_one_series_are_refused_and_not_named(tmp_path: Path) -> None:
    change(write_series(tmp_path, RAMP)[0], PatientID="PAT-SECRET")
    with pytest.raises(UserFault, match="one patient per series") as fault:
        read_dicom(tmp_path)
    assert "SECRET" not in str(fault.value)


def test_a_slice_that_does_not_state_its_spacing_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, RAMP, tags={"PixelSpacing": None})
    with pytest.raises(UserFault, match="PixelSpacing"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("bits", [16, 12])
def test_colours_of_more_than_eight_bits_are_refused(tmp_path: Path, bits: int) -> None:
    values = np.full((4, 5, 1, 3), 700, np.uint16)
    write_series(tmp_path, values, tags={"BitsStored": bits, "HighBit": bits - 1})
    with pytest.raises(UserFault, match=rf"colours of 8 bits in .*came colours of {bits} bits"):
        read_dicom(tmp_path)


def test_colours_by_plane_are_read_as_those_by_pixel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 6, 1, 3)).astype(np.uint8)
    (file,) = write_series(tmp_path, values)
    change(file, PlanarConfiguration=1, PixelData=np.moveaxis(values[:, :, 0], 2, 0).tobytes())
    assert np.array_equal(read_dicom(tmp_path).values, values)


def test_a_colour_space_that_is_not_turned_into_rgb_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((4, 6, 1, 3), np.uint8), tags={"PhotometricInterpretation": "HSV"})
    with pytest.raises(UserFault, match=r"RGB or YBR_FULL in .*came HSV"):
        read_dicom(tmp_path)


def palette(file: Path, entries: list[int]) -> None:
    """The file's numbers as indices of a palette of 16 bits, grey."""
    data = pydicom.dcmread(file)
    data.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [len(entries), 0, 16])
        data.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.array(entries, "<u2").tobytes())
    data.save_as(file)


@pytest.mark.parametrize("entries", [[0, 200 << 8, 7 << 8], [0, 200 * 257, 7 * 257]])
def test_a_palette_of_eight_bits_in_sixteen_is_read_whole(tmp_path: Path, entries: list[int]) -> None:
    (file,) = write_series(tmp_path, np.array([[[0], [1]], [[2], [1]]], np.uint8))
    palette(file, entries)
    assert read_dicom(tmp_path).values[..., 0, 0].tolist() == [[0, 200], [7, 200]]


def test_a_palette_of_true_sixteen_bits_is_refused_instead_of_cut(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, np.array([[[0], [1]], [[2], [1]]], np.uint8))
    palette(file, [0, 51234, 51235])
    with pytest.raises(UserFault, match="came colours of 16 bits"):
        read_dicom(tmp_path)


def test_a_mask_s_numbers_are_those_stored_whatever_way_they_are_shown(tmp_path: Path) -> None:
    numbers = np.array([[[0], [1]], [[2], [1]]], np.uint8)
    (file,) = write_series(tmp_path, numbers, tags={"PhotometricInterpretation": "MONOCHROME1"})
    assert np.array_equal(read_volume(file, labels=True).values, numbers)
    change(file, PhotometricInterpretation="MONOCHROME2", RescaleSlope=2, RescaleIntercept=0)
    with pytest.raises(UserFault, match="its header rescales"):
        read_volume(file, labels=True)


@pytest.mark.parametrize("count", [1, 4])
def test_an_enhanced_file_is_placed_by_its_functional_groups(tmp_path: Path, count: int) -> None:
    path = enhanced(tmp_path, RAMP[:, :, :count], shuffled=True)
    volume = read_volume(path)
    assert np.array_equal(volume.values, RAMP[:, :, :count])
    assert volume.spacing == pytest.approx((0.5, 0.75, 2.5))
    assert volume.affine @ [0, 0, 0, 1] == pytest.approx([-10, 20, 30, 1])


def test_an_enhanced_file_a_slice_is_rescaled_as_its_functional_groups_say(tmp_path: Path) -> None:
    slopes = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    a_frame_each(write_series(tmp_path, RAMP), slopes, -1024)
    volume = read_dicom(tmp_path)
    assert np.array_equal(volume.values, RAMP * np.array(slopes) - 1024)
    assert volume.spacing == pytest.approx((0.5, 0.75, 2.5))


def overlay(file: Path, bit: int, *, apart: bool = False) -> None:
    """State an overlay in a bit of the file's pixels, or apart from them in an element of its own."""
    data = pydicom.dcmread(file)
    data.add_new(0x60020100, "US", 16)
    data.add_new(0x60020102, "US", bit)
    if apart:
        data.add_new(0x60023000, "OW", bytes(4))
    data.save_as(file)


def test_the_bits_of_an_overlay_beside_an_image_s_own_count_nothing(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "whole", RAMP | np.uint16(1 << 13), shuffled=True)
    change(path, BitsStored=12, HighBit=11)
    overlay(path, 13)
    assert np.array_equal(read_volume(path).values, RAMP)
    for file in write_series(tmp_path / "apart", RAMP | np.uint16(1 << 13), tags={"BitsStored": 12, "HighBit": 11}):
        overlay(file, 13, apart=True)
    with pytest.raises(UserFault, match="BitsStored"):
        read_dicom(tmp_path / "apart")


def test_numbers_of_sixteen_bits_under_a_header_of_twelve_are_refused_and_not_cut(tmp_path: Path) -> None:
    """A lesion of 5000 in tissue of 1000 was read as 904."""
    values = np.full((8, 8, 3), 1000, np.uint16)
    values[2:5, 2:5] = 5000
    files = write_series(tmp_path, values, tags={"BitsStored": 12, "HighBit": 11})
    for use in (lambda: read_dicom(tmp_path), lambda: read_volume(files[0], labels=True)):
        with pytest.raises(
            UserFault, match=r"bits 0 to 11 of .*dcm.*BitsStored.*set BitsStored to 16 and HighBit to 15"
        ):
            use()


def twelve(folder: Path, stored: list[int], *, signed: bool) -> list[int]:
    """What is read of a slice with these numbers, of 16 bits as they come, whose header says 12 bits."""
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    values = np.array(stored).astype(np.int16).view(np.uint16)[None, :, None]
    write_series(folder, values, tags=tags)
    found: list[int] = read_dicom(folder).values[0, :, 0].tolist()
    return found


def test_negative_numbers_of_twelve_bits_are_read_with_and_without_their_sign_in_the_other_bits(tmp_path: Path) -> None:
    numbers = [-2048, -5, 0, 7, 2047]
    assert twelve(tmp_path / "with", numbers, signed=True) == numbers
    assert twelve(tmp_path / "without", [number & 0xFFF for number in numbers], signed=True) == numbers
    assert twelve(tmp_path / "positive", [0, 4095], signed=False) == [0, 4095]


@pytest.mark.parametrize(
    ("stored", "signed"), [([5000, 1], True), ([-3000, 1], True), ([-5, 3000], True), ([-5, 1], False)]
)
def test_numbers_beyond_twelve_bits_with_a_sign_are_refused(tmp_path: Path, stored: list[int], signed: bool) -> None:
    with pytest.raises(UserFault, match="as BitsStored and HighBit say"):
        twelve(tmp_path, stored, signed=signed)


@pytest.mark.parametrize("signed", [False, True])
def test_numbers_in_the_upper_bits_are_read_as_a_ramp(tmp_path: Path, signed: bool) -> None:
    ramp = (np.arange(0, 4096, 64) - 2048 * signed).reshape(8, 8, 1)
    tags = {"BitsStored": 12, "HighBit": 15, "PixelRepresentation": int(signed)}
    files = write_series(tmp_path, (ramp << 4).astype(np.int16).view(np.uint16), tags=tags)
    assert np.array_equal(read_dicom(tmp_path).values, ramp)
    change(files[0], PixelData=((ramp << 4) + 1).astype(np.int16).tobytes())
    with pytest.raises(UserFault, match="bits 4 to 15 of"):
        read_dicom(tmp_path)
    overlay(files[0], 0)
    assert np.array_equal(read_dicom(tmp_path).values, ramp)


@pytest.mark.parametrize("high", [7, 16])
def test_a_highest_bit_that_cannot_be_is_named(tmp_path: Path, high: int) -> None:
    write_series(tmp_path, RAMP, tags={"BitsStored": 12, "HighBit": high})
    with pytest.raises(UserFault, match=rf"HighBit of 11 to 15 in .*came {high}"):
        read_dicom(tmp_path)


@pytest.mark.parametrize(("vr", "padding"), [("US", 63536), ("SS", -32768)])
def test_padding_beyond_the_stored_bits_is_padding(tmp_path: Path, vr: str, padding: int) -> None:
    values = np.full((8, 8, 3), 1000, np.int16)
    values[4:] = 50
    values[:2] = np.array(padding).astype(np.int16)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(vr == "SS")}
    for file in write_series(tmp_path, values.view(np.uint16), tags=tags):
        data = pydicom.dcmread(file)
        data.add_new("PixelPaddingValue", vr, padding)
        data.save_as(file)
    assert read_dicom(tmp_path).values[:, 0, 0].tolist() == [50, 50, 1000, 1000, 50, 50, 50, 50]


def test_a_label_map_in_an_enhanced_file_keeps_its_numbers(tmp_path: Path) -> None:
    numbers = (RAMP % 3).astype(np.uint8)
    for count in (1, 4):
        path = enhanced(tmp_path / str(count), numbers[:, :, :count], shuffled=True)
        assert np.array_equal(read_volume(path, labels=True).values, numbers[:, :, :count])


def test_an_enhanced_file_of_a_tilted_gantry_is_read(tmp_path: Path) -> None:
    path = enhanced(tmp_path, RAMP, shift=0.8)
    volume = read_volume(path)
    assert np.array_equal(volume.values, RAMP)
    assert volume.affine @ [0, 0, 1, 0] == pytest.approx([0, -0.8, 2.5, 0])


def test_frames_at_one_place_are_named(tmp_path: Path) -> None:
    path = enhanced(tmp_path, RAMP, gap=0)
    with pytest.raises(UserFault, match="two at the position of frame 2 of"):
        read_volume(path)


def test_two_scans_at_the_same_places_are_named_though_the_places_jitter(tmp_path: Path) -> None:
    for k, file in enumerate(write_series(tmp_path, RAMP)):
        change(file, ImagePositionPatient=[10, -20, 30 + k // 2 * 2.5 + k % 2 * 0.005])
    with pytest.raises(UserFault, match=r"two at the position of .*separate folders"):
        read_dicom(tmp_path)


def test_slices_less_than_a_micron_apart_are_read(tmp_path: Path) -> None:
    write_series(tmp_path, RAMP, gap=0.0008, tags={"PixelSpacing": [0.0008, 0.0008]})
    assert read_dicom(tmp_path).spacing == pytest.approx((0.0008,) * 3)


def test_a_clip_without_geometry_says_what_it_is(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, RAMP[:, :, :1])
    frames = 3 * pydicom.dcmread(file).PixelData
    change(file, NumberOfFrames=3, PixelData=frames, ImagePositionPatient=None, ImageOrientationPatient=None)
    with pytest.raises(UserFault, match=r"a clip of 3 frames without geometry.*save its frames as pictures"):
        read_series([file])


def test_a_whole_slide_says_what_it_is(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, RAMP[:, :, :1], tags={"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"})
    with pytest.raises(UserFault, match=r"a whole-slide image.*cut it into tiles"):
        read_series([file])


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        ("PixelSpacing", ["1e-300", "1e-300"], "a spacing outside 0.0001 to 10000 mm"),
        ("PixelSpacing", ["1e300", "1"], "a spacing outside"),
        ("PixelSpacing", ["1"], "PixelSpacing of 1 numbers instead of 2"),
        ("ImageOrientationPatient", ["1", "0", "0"], "ImageOrientationPatient of 3 numbers instead of 6"),
        ("ImageOrientationPatient", ["0"] * 6, "no pair of perpendicular directions"),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "no pair of perpendicular directions"),
        ("ImagePositionPatient", ["1", "0"], "ImagePositionPatient of 2 numbers instead of 3"),
    ],
)
def test_numbers_that_place_no_slice_are_named_and_the_other_series_are_read(
    tmp_path: Path, tag: str, value: list[str], told: str
) -> None:
    values = np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3)
    write_series(tmp_path / "good", values)
    for file in write_series(tmp_path / "bad", values):
        change(file, **{tag: value})
    with pytest.raises(UserFault, match=told):
        read_dicom(tmp_path / "bad")
    found = list(find_scans(tmp_path, None))
    assert sum(isinstance(one, Scan) for one in found) == 1
    assert all(told in str(one) for one in found if isinstance(one, UserFault))
    assert any(told in one.why for one in discover([tmp_path], None).dropped)
