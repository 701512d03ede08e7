"""Small files that would fill a memory, or take for ever, if their headers were believed."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from data.dicoms import change, enhanced, write_series
from PIL import Image
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

SMALL = np.arange(256, dtype=np.uint8).reshape(16, 16)
MEGABYTE = bytes(2**20)


def many(piece: bytes, times: int) -> bytes:
    """`times` copies of `piece`, packed as gzip members one behind the other."""
    return gzip.compress(piece, mtime=0) * times


def png_of(width: int, height: int, extra: bytes = b"") -> bytes:
    """A black grey picture, packed."""
    packer, packed = zlib.compressobj(9), bytearray()
    for _ in range(height):
        packed += packer.compress(bytes(width + 1))
    packed += packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", bytes(packed)) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(MEGABYTE) for _ in range(megabytes)) + packer.flush()


def nifti_head(shape: tuple[int, ...], kind: type = np.uint8, offset: float = 352) -> bytes:
    head = nibabel.Nifti1Header()
    head.set_data_dtype(kind)
    head.set_data_shape(shape)
    head.set_sform(np.eye(4), 1)
    raw = bytearray(head.binaryblock)
    raw[108:112] = struct.pack("<f", offset)
    return bytes(raw)


def sized(kind: str, place: int, form: str, *sides: int) -> Callable[[Path], bytes]:
    """A small picture whose header claims other sides."""

    def made(_: Path) -> bytes:
        file = io.BytesIO()
        Image.fromarray(SMALL).save(file, kind)
        data = bytearray(file.getvalue())
        at = data.index(b"\xff\xc0") + 5 if kind == "JPEG" else place
        data[at : at + struct.calcsize(form)] = struct.pack(form, *sides)
        return bytes(data)

    return made


def tiff_of_pages(pages: int) -> bytes:
    entries = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, 8), (278, 16), (279, 256)]
    size, data = 2 + 12 * len(entries) + 4, bytearray(b"II*\0" + struct.pack("<I", 264) + SMALL.tobytes())
    for i in range(pages):
        after = len(data) + size if i < pages - 1 else 0
        body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        data += struct.pack("<H", len(entries)) + body + struct.pack("<I", after)
    return bytes(data)


def tiff_of_side(side: int) -> bytes:
    data = bytearray(tiff_of_pages(1))
    for entry in (266, 278):
        data[entry + 8 : entry + 12] = struct.pack("<I", side)
    return bytes(data)


def dicom(folder: Path, **tags: object) -> bytes:
    (file,) = write_series(folder / "made", SMALL[:, :, None].astype(np.uint16))
    return change(file, **tags).read_bytes()


def frames_without_end(folder: Path) -> bytes:
    """A position shared by 10**9 frames, of which one is there."""
    file = enhanced(folder / "made", SMALL[:, :, None].astype(np.uint16))
    data = pydicom.dcmread(file)
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.PlanePositionSequence = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    data.NumberOfFrames = 10**9
    data.save_as(file)
    return file.read_bytes()


def deflated(folder: Path) -> bytes:
    """A whole DICOM file packed, with 1 GB of zeros in one element."""
    (file,) = write_series(folder / "made", SMALL[:, :, None].astype(np.uint16))
    data = pydicom.dcmread(file)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(file)
    start = file.read_bytes()[: 144 + read_file_meta_info(file).FileMetaInformationGroupLength]
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = packer.compress(b"\x09\0\0\0OB\0\0" + struct.pack("<I", 2**30))
    return start + body + b"".join(packer.compress(MEGABYTE) for _ in range(1024)) + packer.flush()


BOMBS: dict[str, Callable[[Path], bytes]] = {
    "pixels.png": lambda _: png_of(13_000, 13_000),
    "text.png": lambda _: png_of(16, 16, chunk(b"zTXt", b"a\0\0" + packed_zeros(1024))),
    "profile.png": lambda _: png_of(16, 16, chunk(b"iCCP", b"a\0\0" + packed_zeros(1024))),
    "sides.jpg": sized("JPEG", 0, ">HH", 65_500, 65_500),
    "sides.bmp": sized("BMP", 18, "<ii", 40_000, 40_000),
    "sides.tif": lambda _: tiff_of_side(100_000),
    "pages.tif": lambda _: tiff_of_pages(100_000),
    "four_gb.nii.gz": lambda _: gzip.compress(nifti_head((2048, 2048, 1024))) + many(bytes(2**24), 256),
    "int8_of_two_gb.nii.gz": lambda _: gzip.compress(nifti_head((1280, 1280, 1280))) + many(bytes(2**24), 125),
    "extension.nii.gz": lambda _: (
        gzip.compress(nifti_head((16, 16, 3), offset=2.0**31) + b"\1\0\0\0" + struct.pack("<ii", 2**31 - 16 - 352, 4))
        + many(bytes(2**24), 129)
    ),
    "spacing.dcm": lambda folder: dicom(folder, PixelSpacing=[1e-300, 1e-300]),
    "frames.dcm": lambda folder: dicom(folder, NumberOfFrames=10**9),
    "shared_frames.dcm": frames_without_end,
    "sides.dcm": lambda folder: dicom(folder, Rows=65_535, Columns=65_535),
    "deflated.dcm": deflated,
}
