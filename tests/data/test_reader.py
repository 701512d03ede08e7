import os
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from pfedsam.data import reader
from pfedsam.data.volume import read_picture, read_volume
from pfedsam.errors import UserFault


def nifti(path: Path, volume: np.ndarray, spacing: tuple[float, ...] = (0.5, 0.7, 3.0)) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing[:3], 1.0])), path)
    return path


def picture(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_a_volume_is_read_slice_by_slice_with_its_spacing(tmp_path: Path) -> None:
    volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    path = nifti(tmp_path / "v.nii.gz", volume)
    head = reader.header(path)
    assert (head.shape, head.slices) == ((4, 5), 6)
    assert head.spacing == pytest.approx((0.5, 0.7, 3.0))
    assert np.array_equal(reader.read_image(path, 2)[..., 1], volume[:, :, 2])


def test_a_volume_that_was_replaced_is_read_by_its_own_header(tmp_path: Path) -> None:
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    path = nifti(tmp_path / "v.nii", volume.astype(np.int16))
    assert np.array_equal(reader.read_image(path, 0)[..., 0], volume[:, :, 0])
    nifti(path, volume.astype(np.float32))
    assert np.array_equal(reader.read_image(path, 0)[..., 0], volume[:, :, 0])
    other = nifti(tmp_path / "other.nii", volume[::-1].astype(np.float32))
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)
    assert np.array_equal(reader.read_image(path, 0)[..., 0], volume[::-1, :, 0]), "of the same time and size"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
def test_every_picture_mode_comes_as_three_channels(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        path = picture(tmp_path / "x.png", np.full((4, 6), 40_000, np.uint16))
    else:
        path = picture(tmp_path / "x.png", np.full((4, 6, 3), 90, np.uint8), mode)
    assert reader.read_image(path).shape == (4, 6, 3)


def test_a_mask_keeps_its_class_numbers(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 0]], np.uint8)
    assert np.array_equal(reader.read_mask(picture(tmp_path / "m.png", labels), 0, 2), labels)


def test_unlabelled_pixels_come_back_as_255_and_are_no_class(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [9, 0]], np.uint8)
    path = picture(tmp_path / "m.png", labels)
    assert reader.read_mask(path, 0, 1, ignore=9).tolist() == [[0, 1], [255, 0]]
    with pytest.raises(UserFault, match=r"labels 0\.\.1 in .*, or 255 for unlabelled; came values from 0 to 9"):
        reader.read_mask(path, 0, 1, ignore=255)


@pytest.mark.parametrize(("stored", "read"), [(2.9994, 3), (-0.0004, 0), (2.998, None), (np.nan, None)])
def test_a_class_number_that_a_slope_moved_by_a_thousandth_is_rounded(
    tmp_path: Path, stored: float, read: int | None
) -> None:
    path = nifti(tmp_path / "m.nii", np.full((2, 2, 1), stored, np.float32))
    if read is None:
        with pytest.raises(UserFault, match="fractions, or NaN"):
            reader.read_mask(path, 0, 3)
    else:
        assert reader.read_mask(path, 0, 3).tolist() == [[read, read], [read, read]]


def broken(folder: Path, kind: str) -> Path:
    if kind == "zero bytes":
        (folder / "x.png").write_bytes(b"")
        return folder / "x.png"
    if kind == "truncated":
        path = picture(folder / "x.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
        path.write_bytes(path.read_bytes()[:2000])
        return path
    if kind == "truncated volume":
        path = nifti(folder / "x.nii.gz", np.random.default_rng(0).normal(size=(32, 32, 9)).astype(np.float32))
        path.write_bytes(path.read_bytes()[:4000])
        return path
    if kind == "damaged header":
        path = nifti(folder / "x.nii", np.zeros((4, 4, 2), np.uint8))
        path.write_bytes(path.read_bytes()[:70] + b"\xff\x7f" + path.read_bytes()[72:])  # no such type of voxels
        return path
    if kind == "negative dimensions":
        path = nifti(folder / "x.nii", np.zeros((4, 4, 2), np.uint8))
        path.write_bytes(path.read_bytes()[:46] + b"\xfe\xff" + path.read_bytes()[48:])
        return path
    if kind == "volume cut short":
        path = nifti(folder / "x.nii", np.zeros((32, 32, 9), np.float32))
        path.write_bytes(path.read_bytes()[:4000])
        return path
    if kind == "spoilt compression":
        path = nifti(folder / "x.nii.gz", np.random.default_rng(0).normal(size=(32, 32, 9)).astype(np.float32))
        raw = bytearray(path.read_bytes())
        raw[40:9000] = bytes(8960)
        path.write_bytes(raw)
        return path
    if kind == "a bomb":
        path = picture(folder / "x.png", np.zeros((4, 4), np.uint8))
        raw = bytearray(path.read_bytes())
        raw[16:24] = struct.pack(">II", 30_000, 30_000)
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
        path.write_bytes(raw)
        return path
    if kind == "NaN":
        return nifti(folder / "x.nii", np.full((4, 4, 2), np.nan, np.float32))
    if kind == "4-D":
        return nifti(folder / "x.nii", np.zeros((4, 4, 2, 2), np.float32))
    (folder / "x.doc").write_bytes(b"hello")
    return folder / "x.doc"


def read_all(path: Path) -> None:
    for i in range(reader.header(path).slices):
        reader.read_image(path, i)


BROKEN = ("zero bytes", "truncated", "truncated volume", "NaN", "4-D", "unknown format", "damaged header")
BROKEN += ("negative dimensions", "volume cut short", "spoilt compression", "a bomb")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(UserFault) as fault:
        read_all(path)
    assert str(path) in str(fault.value)


@pytest.mark.parametrize("labels", [np.full((2, 2), 255, np.uint8), np.full((2, 2), 2, np.uint8)])
def test_a_label_out_of_range_is_told_with_the_file(tmp_path: Path, labels: np.ndarray) -> None:
    path = picture(tmp_path / "m.png", labels)
    with pytest.raises(UserFault, match=r"labels 0\.\.1") as fault:
        reader.read_mask(path, 0, 1)
    assert str(path) in str(fault.value)


def test_a_colour_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="one channel"):
        reader.read_mask(picture(tmp_path / "m.png", np.zeros((2, 2, 3), np.uint8)), 0, 1)


def turned(path: Path, orientation: int, pixels: np.ndarray) -> Path:
    """A picture whose EXIF says how it is to be turned; a PNG `late` says it behind its pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    if path.name.startswith("late"):
        Image.fromarray(pixels).save(path)
        raw, chunk = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(raw[:-12] + whole + raw[-12:])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "late.png", "x.jpg", "x.tif"])
def test_training_turns_a_picture_and_its_mask_upright_as_prepare_and_predict_do(
    tmp_path: Path, name: str, orientation: int
) -> None:
    pixels = np.repeat(np.repeat([[1, 0, 0], [1, 2, 0]], 8, 0), 8, 1).astype(np.uint8)
    path = turned(tmp_path / name, orientation, pixels)
    upright = read_picture(path).values[..., 0]
    assert reader.header(path).shape == upright.shape == ((16, 24) if orientation < 5 else (24, 16))
    assert np.array_equal(reader.read_image(path)[..., 0], upright)
    if not name.endswith("jpg"):
        assert np.array_equal(reader.read_mask(path, 0, 2), upright)


def test_a_thousand_pictures_are_opened_without_decoding_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [turned(tmp_path / f"x.{end}", 6, np.zeros((16, 24), np.uint8)) for end in ("png", "jpg", "tif")]
    paths.append(picture(tmp_path / "plain.png", np.zeros((24, 16), np.uint8)))

    def load(_: object) -> None:
        raise AssertionError("decoded")

    for kind in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(kind, "load", load)
    assert [reader.header(path).shape for path in paths] == [(24, 16)] * 4


def test_damaged_exif_counts_as_none(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 24), 7, np.uint8)).save(tmp_path / "x.jpg", exif=b"Exif\0\0no such thing")
    assert reader.header(tmp_path / "x.jpg").shape == reader.read_image(tmp_path / "x.jpg").shape[:2] == (16, 24)


def test_a_palette_means_colours_in_an_image_and_numbers_in_a_mask(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 240, 0])
    image.save(tmp_path / "p.png")
    assert reader.read_image(tmp_path / "p.png")[0].tolist() == [[0, 0, 0], [250, 0, 0]]
    assert reader.read_mask(tmp_path / "p.png", 0, 2).tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize(
    ("name", "colours", "black"),
    [
        ("p.png", [(255, 255, 255), (0, 0, 0)], 1),
        ("p.bmp", [(255, 255, 255), (0, 0, 0)], 1),
        ("p.tif", [(255, 0, 0), (2, 1, 2)], 1),
        ("p.png", [(9, 9, 9), (255, 0, 0), (0, 255, 0), (0, 0, 0)], 3),
    ],
)
def test_a_mask_whose_palette_shows_another_number_than_0_as_the_background_is_refused(
    tmp_path: Path, name: str, colours: list[tuple[int, int, int]], black: int
) -> None:
    numbers = np.full((4, 6), black, np.uint8)
    numbers[1, 2] = black - 1
    image = Image.fromarray(numbers)
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(tmp_path / name)
    for read in (lambda p: reader.read_mask(p, 0, 3), lambda p: read_volume(p, labels=True)):
        with pytest.raises(UserFault, match=rf"number 0 for the background.*shows number {black} as black"):
            read(tmp_path / name)
    assert reader.read_image(tmp_path / name)[0, 0].max() <= 16


def test_a_palette_with_black_for_0_keeps_its_numbers_though_others_are_black_too(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[3, 1], [2, 1]], np.uint8))
    image.putpalette([0, 0, 0, 250, 0, 0] + [0] * 30)
    image.save(tmp_path / "p.png")
    assert reader.read_mask(tmp_path / "p.png", 0, 3).tolist() == [[3, 1], [2, 1]]


def test_a_file_of_several_pages_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 6), i, np.uint8)) for i in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserFault, match=r"one picture in .*x\.tif; came 3 pages"):
        reader.header(tmp_path / "x.tif")


def test_a_camera_s_jpeg_with_a_preview_in_it_is_one_picture(tmp_path: Path) -> None:
    views = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (90, 200)]
    views[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=views[1:])
    with Image.open(tmp_path / "x.jpg") as file:
        assert file.n_frames == 2
    assert reader.read_image(tmp_path / "x.jpg").mean() == pytest.approx(90, abs=2)
    assert read_picture(tmp_path / "x.jpg").values.mean() == pytest.approx(90, abs=2)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Rows of bytes in which each number takes so many bits."""
    return np.packbits(np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(len(values), -1), axis=1)


def tiff(path: Path, values: np.ndarray, *, bits: int | None = None, tags: dict[int, object] | None = None) -> Path:
    """An uncompressed TIFF as its tags say, byte for byte: one strip, numbers of `bits` bits packed in rows."""
    bits = bits or values.dtype.itemsize * 8
    data = (packed(values, bits) if bits < 8 else values).tobytes()
    channels = values.shape[2] if values.ndim == 3 else 1
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    said = {256: values.shape[1], 257: values.shape[0], 258: (bits,) * channels, 259: 1, 262: 1, 273: 4000}
    said |= {277: channels, 278: values.shape[0], 279: len(data), 339: (form,) * channels, **(tags or {})}
    entries, extra = b"", b""
    for tag, value in sorted(said.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        kind = 3 if tag != 279 else 4
        raw = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(raw) > 4:
            raw, extra = struct.pack("<I", 2000 + len(extra)), extra + raw
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + raw.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(said)) + entries + bytes(4)
    path.write_bytes((head.ljust(2000, b"\0") + extra).ljust(4000, b"\0") + data)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1, 3])
def test_a_mask_is_its_stored_numbers_whatever_a_tiff_shows_as_white(
    tmp_path: Path, bits: int, photometric: int
) -> None:
    labels = np.random.default_rng(0).integers(0, min(2**bits, 9), (6, 9)).astype(np.uint8)
    tags = {262: photometric, **({320: tuple(range(3 * 2**bits))} if photometric == 3 else {})}
    path = tiff(tmp_path / "m.tif", labels, bits=bits, tags=tags)
    assert np.array_equal(reader.read_mask(path, 0, 9), labels)
    assert np.array_equal(read_volume(path, labels=True).values[..., 0], labels)


@pytest.mark.parametrize(
    ("kind", "bits", "white", "step"), [(np.uint8, 1, 255, 255), (np.uint8, 8, 255, 1), (np.uint16, 16, 65535, 1)]
)
def test_an_image_whose_zero_is_white_is_read_with_bright_as_high(
    tmp_path: Path, kind: type, bits: int, white: int, step: int
) -> None:
    values = np.array([[0, 1], [1, 0]], kind)
    shown = reader.read_image(tiff(tmp_path / "x.tif", values, bits=bits, tags={262: 0}))[..., 0]
    assert np.array_equal(shown, white - step * values.astype(int))


def test_a_tiff_whose_zero_is_white_and_that_pillow_does_not_read_is_refused_for_that(tmp_path: Path) -> None:
    """The same with 0 as black is read, so bits and channels are not the reason."""
    entries = {256: 2, 257: 2, 258: 16, 259: 1, 262: 0, 273: 400, 277: 1, 278: 2, 279: 8, 339: 1}
    raw = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in entries.items())
    head = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + raw
    (tmp_path / "x.tif").write_bytes(head.ljust(400, b"\0") + bytes(8))
    with pytest.raises(UserFault, match=r"16 bits whose 0 means white; .*save it so that 0 means black"):
        reader.read_image(tmp_path / "x.tif")


def test_a_16_bit_mask_whose_zero_is_white_keeps_its_numbers(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 0]], np.uint16)
    assert np.array_equal(reader.read_mask(tiff(tmp_path / "m.tif", labels, tags={262: 0}), 0, 2), labels)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32, np.float32])
def test_a_tiff_keeps_the_sign_and_size_of_its_numbers(tmp_path: Path, kind: type) -> None:
    top = np.iinfo(kind).max if kind != np.float32 else 0.25
    values = np.array([[0, 1], [top, -1 if kind in (np.int8, np.int16, np.int32, np.float32) else 3]], kind)
    path = tiff(tmp_path / "x.tif", values)
    assert np.array_equal(read_picture(path).values[..., 0], values)


def png(path: Path, depth: int, colour: int, rows: bytes, shape: tuple[int, int]) -> Path:
    """A PNG as its header says; each row begins with the byte of its filter."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_grey_png_of_few_bits_holds_numbers_as_a_mask(tmp_path: Path, depth: int) -> None:
    labels = np.array([[0, 1, 1, 0], [1, 0, 2**depth - 1, 1]], np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed(labels, depth))
    path = png(tmp_path / "m.png", depth, 0, rows, (2, 4))
    assert np.array_equal(reader.read_mask(path, 0, 2**depth - 1), labels)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_a_png_of_several_16_bit_channels_is_refused_everywhere_and_never_cut_to_8(
    tmp_path: Path, colour: int, channels: int
) -> None:
    path = png(tmp_path / "x.png", 16, colour, (b"\0" + bytes(2 * 2 * channels)) * 2, (2, 2))
    for use in (reader.header, reader.read_image, read_picture, lambda p: read_volume(p, labels=True)):
        with pytest.raises(UserFault, match=r"several channels of 16 bits.*8 bits per channel"):
            use(path)


def test_a_tiff_of_16_bit_colours_is_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", np.zeros((2, 3, 3), np.uint16), tags={262: 2})
    with pytest.raises(UserFault, match="several channels of 16 bits"):
        reader.read_image(path)


@pytest.mark.parametrize(("channels", "photometric"), [(2, 1), (4, 2), (5, 2), (5, 5)])
def test_a_tiff_with_a_channel_that_is_neither_colour_nor_transparency_is_refused_and_never_cut(
    tmp_path: Path, channels: int, photometric: int
) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 6, channels), np.uint8)
    extra = (0, 0) if (channels, photometric) == (5, 2) else 0
    path = tiff(tmp_path / "x.tif", values, tags={262: photometric, 338: extra})
    for use in (reader.header, reader.read_image, read_picture, lambda p: read_volume(p, labels=True)):
        with pytest.raises(UserFault, match=r"came an extra channel .*ExtraSamples 0.*save it without"):
            use(path)
    path = tiff(path, values[..., : 2 if photometric == 1 else 4], tags={262: 1 if photometric == 1 else 2, 338: 2})
    assert reader.read_image(path).shape == (4, 6, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("value", [0, 255])
def test_a_drawing_in_the_transparency_alone_is_refused_in_a_mask_and_in_an_image(
    tmp_path: Path, mode: str, value: int
) -> None:
    values = np.full((4, 4, len(mode)), value, np.uint8)
    values[..., -1] = np.eye(4) * 255
    Image.fromarray(values, mode).save(tmp_path / "x.png")
    for use in (reader.read_image, read_picture, lambda p: reader.read_mask(p, 0, 1)):
        with pytest.raises(UserFault, match="a drawing in its transparency"):
            use(tmp_path / "x.png")


def test_a_mask_keeps_its_colours_where_its_transparency_says_the_same_and_not_where_it_says_otherwise(
    tmp_path: Path,
) -> None:
    drawn = np.eye(4, dtype=np.uint8)
    Image.fromarray(np.stack([drawn, drawn * 255], -1), "LA").save(tmp_path / "same.png")
    assert np.array_equal(reader.read_mask(tmp_path / "same.png", 0, 1), drawn)
    Image.fromarray(np.stack([1 - drawn, drawn * 255], -1), "LA").save(tmp_path / "other.png")
    with pytest.raises(UserFault, match="a drawing in its transparency"):
        reader.read_mask(tmp_path / "other.png", 0, 1)


def test_a_palette_with_transparency_holds_numbers_as_a_mask_and_is_refused_as_an_image_of_one_colour(
    tmp_path: Path,
) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([9] * 768)
    image.save(tmp_path / "p.png", transparency=bytes([0, 255, 128]))
    assert reader.read_mask(tmp_path / "p.png", 0, 2).tolist() == [[0, 1], [2, 1]]
    with pytest.raises(UserFault, match="a drawing in its transparency"):
        reader.read_image(tmp_path / "p.png")


@pytest.mark.parametrize("name", ["m.jpg", "m.png", "m.tif"])
def test_a_mask_that_jpeg_has_blurred_is_refused_under_any_name(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(np.kron(np.eye(2), np.ones((9, 9))).astype(np.uint8))
    kind = {"format": "TIFF", "compression": "jpeg"} if name == "m.tif" else {"format": "JPEG"}
    image.save(tmp_path / name, **kind)
    with pytest.raises(UserFault, match=r"without loss .* came JPEG.*save it as PNG from the source"):
        reader.read_mask(tmp_path / name, 0, 1)


def test_a_changed_byte_far_into_a_compressed_volume_is_found(tmp_path: Path) -> None:
    pytest.importorskip("indexed_gzip", reason="without it nibabel checks a .nii.gz only at its end")
    path = nifti(tmp_path / "x.nii.gz", np.random.default_rng(0).normal(size=(32, 32, 9)).astype(np.float32))
    raw = bytearray(path.read_bytes())
    raw[-5000] ^= 255
    path.write_bytes(raw)
    with pytest.raises(UserFault, match="damaged"):
        reader.read_image(path, 8)


def test_an_image_of_nearly_one_value_keeps_its_others(tmp_path: Path) -> None:
    values = np.zeros((256, 256), np.uint16)
    values[10:20, 10:20] = np.arange(100).reshape(10, 10) * 500 + 1000
    path = picture(tmp_path / "x.png", values)
    ends = reader.ends_of_file(path, "percentile")
    assert ends == reader.Ends(0, 50_500)
    shown = reader.unit(reader.read_image(path), ends, "x")
    assert len(np.unique(shown)) == 101
    black = reader.ends_of_file(picture(tmp_path / "black.png", np.zeros((8, 8), np.uint8)), "percentile")
    assert black == reader.Ends(0, 1)


@pytest.mark.parametrize("factor", [1.0, 1e-9, 1e-12, 1e9])
def test_an_image_of_small_or_large_values_is_shown_in_full_contrast(tmp_path: Path, factor: float) -> None:
    """A diffusion map in square metres a second has values of 0 to 3e-9."""
    values = np.random.default_rng(0).uniform(0, 3, (12, 10, 4)).astype(np.float32)
    shown = []
    for name, volume in (("usual", values), ("scaled", (values * factor).astype(np.float32))):
        path = nifti(tmp_path / f"{name}.nii", volume)
        shown.append(reader.unit(reader.read_image(path, 1), reader.ends_of_file(path, "percentile"), name))
    assert shown[1].max() > 0.9
    assert np.allclose(shown[0], shown[1], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 90.0, -3.0, 2.5e-9, 1e12, 1e30, -1e30])
def test_an_image_of_one_value_is_black(tmp_path: Path, value: float) -> None:
    path = nifti(tmp_path / "flat.nii", np.full((6, 5, 2), value, np.float32))
    ends = reader.ends_of_file(path, "percentile")
    assert not reader.unit(reader.read_image(path, 0), ends, "flat").any()


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_a_picture_of_one_bit_is_black_and_white_as_an_image_and_numbers_as_a_mask(tmp_path: Path, ending: str) -> None:
    drawn = np.array([[True, False], [False, True]])
    path = tmp_path / f"a.{ending}"
    Image.fromarray(drawn).save(path)
    assert np.array_equal(reader.read_image(path)[..., 0], drawn * 255)
    assert np.array_equal(reader.read_mask(path, 0, 1), drawn)


def test_fractions_of_0_to_1_are_refused_where_8_bits_are_expected_and_dark_slices_are_not(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((8, 8, 5)).astype(np.float32)
    for name, volume in (("unit", values), ("bright", values * (1, 1, 1, 1, 255)), ("dark", np.rint(values))):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserFault, match=r"0 to 255 in .*unit.nii.gz.*fractions of 0 to 1.*multiply by 255"):
        reader.ends_of_file(tmp_path / "unit.nii.gz", "uint8")
    assert reader.ends_of_file(tmp_path / "bright.nii.gz", "uint8") == reader.EIGHT_BIT
    assert reader.ends_of_file(tmp_path / "dark.nii.gz", "uint8") == reader.EIGHT_BIT
    assert reader.ends_of_file(tmp_path / "unit.nii.gz", "percentile")[1] <= 1


def test_percentiles_of_exactly_0_and_255_cut_what_is_beyond_them_as_any_others_do(tmp_path: Path) -> None:
    values = np.repeat([0, 255], 200).reshape(20, 20).astype(np.uint16)
    values[1, 1] = 400
    path = picture(tmp_path / "x.png", values)
    ends = reader.ends_of_file(path, "percentile")
    assert ends == reader.Ends(0, 255)
    assert reader.unit(reader.read_image(path), ends, "x").max() == 1
    with pytest.raises(UserFault, match=r"set data\.scale to percentile"):
        reader.unit(reader.read_image(path), reader.ends_of_file(path, "uint8"), "x")
