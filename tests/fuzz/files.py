"""Targets: images and masks as a hospital's folder may hold them. NIfTI, DICOM and pictures with changed headers.

One changed file beside three right ones: `prepare` and `predict` say what is wrong with it, and do the rest.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel
import numpy as np
import pydicom
from data.dicoms import enhanced, write_seg, write_series
from fuzz.harness import Target, fresh, mutated
from fuzz.stores import model
from hypothesis import strategies as st
from PIL import Image
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID

from pfedsam.data import reader
from pfedsam.errors import UserFault
from pfedsam.inference.predictor import Predictor, load_model
from pfedsam.predict.masks import usual_way
from pfedsam.predict.run import predict
from pfedsam.predict.scans import find_scans
from pfedsam.predict.segmentation import Classes
from pfedsam.prepare.site import Wish, prepare

SIDE = 16
Edit = Callable[[bytes], bytes]


@cache
def predictor() -> Predictor:
    with fresh() as folder:
        (folder / "m.safetensors").write_bytes(model()[0])
        return load_model(folder / "m.safetensors", device="cpu")


@cache
def samples() -> dict[str, bytes]:
    """A small right file of each kind, by the end of its name."""
    values = (np.arange(SIDE * SIDE * 3).reshape(SIDE, SIDE, 3) % 251).astype(np.uint8)
    found = {}
    for name, picture in pictures(values).items():
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        how = {"exif": exif} if name.endswith(("png", "jpg")) else {}
        picture.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(name.split(".")[1], name.split(".")[1]), **how)
        found[name] = file.getvalue()
    volume = nibabel.Nifti1Image(values.astype(np.int16), np.diag([0.5, 0.75, 2, 1]))
    found["a.nii"] = volume.to_bytes()
    found["a.nii.gz"] = gzip.compress(found["a.nii"], 1, mtime=0)
    numbers = map(UID, (f"1.2.3.{i}" for i in count(1000)))
    with fresh() as folder, patch("data.dicoms.generate_uid", lambda: next(numbers)):  # the same in every run
        series = write_series(folder / "series", values[:, :, :2].astype(np.uint16))
        found["a.dcm"], found["b.dcm"] = (file.read_bytes() for file in series)
        found["enhanced.dcm"] = enhanced(folder / "enhanced", values.astype(np.uint16)).read_bytes()
        drawn = (values[:, :, :2] > 99).astype(np.uint8)
        found["seg.dcm"] = write_seg(folder / "seg.dcm", series, drawn, ["x"]).read_bytes()
    return found


def pictures(values: Any) -> dict[str, Image.Image]:
    grey = Image.fromarray(values[..., 0])
    return {
        "a.png": grey,
        "rgb.png": Image.fromarray(values),
        "palette.png": Image.fromarray(values).quantize(9),
        "deep.png": Image.fromarray(values[..., 0].astype(np.uint16) * 200),
        "a.jpg": Image.fromarray(values),
        "a.tif": grey,
        "deep.tif": Image.fromarray(values[..., 0].astype(np.uint16) * 200),
        "a.bmp": grey,
    }


def right(folder: Path, count: int = 3) -> None:
    """Three right pairs of pictures. No two images are alike."""
    values = np.asarray(Image.open(io.BytesIO(samples()["a.png"])))
    for i in range(count):
        for sub in ("images", "masks"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(values, i + 1)).save(folder / f"images/right{i}.png")
        mask = Image.fromarray(np.uint8(np.eye(SIDE) * (1 + i % 2)))
        mask.save(folder / f"masks/right{i}.png")


def mask_beside(folder: Path, name: str) -> None:
    """The mask of the changed image, in its format."""
    if "nii" in name:
        nibabel.Nifti1Image(np.ones((SIDE, SIDE, 3), np.uint8), np.diag([0.5, 0.75, 2, 1])).to_filename(
            folder / "masks/odd.nii"
        )
    elif name.endswith("dcm"):
        (folder / "masks/odd.dcm").write_bytes(samples()["seg.dcm"])
    else:
        Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(folder / "masks/odd.png")


def odd_image(drawn: tuple[str, bytes], folder: Path) -> None:
    """One changed image: everything else is prepared and predicted."""
    name, data = drawn
    source = folder / "in"
    right(source)
    mask_beside(source, name)
    end = name.split(".", 1)[1]
    (source / f"images/odd.{end}").write_bytes(data)
    if end == "dcm":
        (source / "images/odd2.dcm").write_bytes(samples()["b.dcm"])
    report = prepare([source], out(folder, data), Wish(patient="each"))
    assert not [one for one in report["dropped"] if "right" in one["file"]], report["dropped"]
    assert report["cases"] >= 3
    way = usual_way(predictor())
    scans = [one for one in find_scans(source / "images") if str(getattr(one, "name", "")) not in ("right0", "right1")]
    done = list(predict(predictor(), scans, folder / "masks", way, Classes(["x"], {})))
    assert sum(one.fault is None for one in done) >= 1
    readers(source / f"images/odd.{end}")


def odd_mask(drawn: tuple[str, bytes], folder: Path) -> None:
    """One changed mask: prepare ends with a report, or with a fault of all."""
    name, data = drawn
    source = folder / "in"
    right(source, 2)
    end = name.split(".", 1)[1]
    if end == "dcm":
        for one in ("a.dcm", "b.dcm"):
            (source / f"images/{one}").write_bytes(samples()[one])
    elif "nii" in end:
        (source / "images/odd.nii").write_bytes(samples()["a.nii"])
    else:
        (source / "images/odd.png").write_bytes(samples()["a.png"])
    (source / f"masks/odd.{end}").write_bytes(data)
    readers(source / f"masks/odd.{end}")
    prepare([source], out(folder, data), Wish(patient="each"))


def out(folder: Path, data: bytes) -> Path | None:
    """Where prepare writes: nowhere in three of four examples, because its page takes the longest."""
    return None if zlib.crc32(data) % 4 else folder / "out"


def readers(path: Path) -> None:
    """Training's readers end in a value or a fault."""
    for plane in ("axial", "stored"):
        for use in (reader.header, lambda p, plane=plane: reader.read_image(p, 1, plane)):
            with suppress(UserFault):
                use(path)
        with suppress(UserFault):
            reader.read_mask(path, 0, 3, plane=plane)


WORDS = (0, 1, 2, 3, 255, 2**15 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
REALS = (0.0, -0.0, 1e-300, 1e300, 3e38, -1.0, 1e-38, float("nan"), float("inf"))


@st.composite
def nifti(draw: st.DrawFn) -> tuple[str, bytes]:
    """A NIfTI file with one to four fields of its header changed."""
    data = bytearray(samples()["a.nii"])
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(list(FIELDS)))
        place, kind, count = FIELDS[name]
        values = WORDS if kind in "hB" else REALS
        bits = {"h": 0xFFFF, "B": 0xFF}.get(kind, 0)
        found = [draw(st.sampled_from(values)) for _ in range(count)]
        raw = [v & bits for v in found] if bits else found
        data[place : place + struct.calcsize(f"<{count}{kind}")] = packed(kind, raw)
    if draw(st.booleans()):
        return "odd.nii", bytes(data)
    return "odd.nii.gz", gzip.compress(bytes(data), 1, mtime=0)


def packed(kind: str, values: list[Any]) -> bytes:
    if kind == "f":
        with np.errstate(all="ignore"):
            return np.array(values, np.float64).astype("<f4").tobytes()
    return struct.pack(f"<{len(values)}{kind.upper()}", *values)


FIELDS = {  # of NIfTI-1: place, kind, how many
    **{f"dim{i}": (40 + 2 * i, "h", 1) for i in range(8)},
    **{"datatype": (70, "h", 1), "bitpix": (72, "h", 1), "pixdim": (76, "f", 8), "vox_offset": (108, "f", 1)},
    **{"slope": (112, "f", 2), "units": (123, "B", 1), "qform": (252, "h", 1), "sform": (254, "h", 1)},
    **{"quatern": (256, "f", 6), "srow": (280, "f", 12), "extension": (348, "B", 4), "size": (0, "h", 2)},
}


@st.composite
def png(draw: st.DrawFn) -> tuple[str, bytes]:
    """A PNG with right checksums around a changed header, or with added chunks."""
    name = draw(st.sampled_from(["a.png", "rgb.png", "palette.png", "deep.png"]))
    chunks = [(kind, bytes(body)) for kind, body in split(samples()[name])]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(chunks) - 1))
        kind, body = chunks[at]
        how = draw(st.sampled_from(["change", "change", "add", "drop", "text"]))
        if how == "change" and body:
            chunks[at] = kind, draw(mutated(body, 13))
        elif how == "drop" and len(chunks) > 1:
            del chunks[at]
        elif how == "text":
            chunks.insert(at, (b"zTXt", b"x\0\0" + zlib.compress(bytes(draw(st.sampled_from([9, 10**7]))))))
        else:
            extra = draw(st.sampled_from([b"eXIf", b"iCCP", b"tRNS", b"acTL", b"gAMA", b"PLTE", b"IEND", b"IDAT"]))
            chunks.insert(at, (extra, draw(st.binary(max_size=20))))
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return name, samples()[name][:8] + body


def split(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


@st.composite
def tiff(draw: st.DrawFn) -> tuple[str, bytes]:
    """A TIFF with one to four entries of its directory changed."""
    name = draw(st.sampled_from(["a.tif", "deep.tif"]))
    data = bytearray(samples()[name])
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    for _ in range(draw(st.integers(1, 4))):
        entry = start + 2 + 12 * draw(st.integers(0, count - 1))
        place, size = draw(st.sampled_from([(0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4)]))
        value = draw(st.sampled_from(WORDS) | st.integers(0, 2**16 - 1)) & (2 ** (8 * size) - 1)
        data[entry + place : entry + place + size] = value.to_bytes(size, "little")
    return name, bytes(data)


@st.composite
def dicom(draw: st.DrawFn, *names: str) -> tuple[str, bytes]:
    """A DICOM file in which elements hold other bytes, under any value representation."""
    name = draw(st.sampled_from(names))
    data = pydicom.dcmread(io.BytesIO(samples()[name]))
    places = list(inside(data))
    for _ in range(draw(st.integers(1, 3))):
        place, tags = draw(st.sampled_from(places[:1] * 3 + places))
        tag = draw(st.sampled_from(tags + [Tag(word) for word in LOOKED_AT]))
        if draw(st.integers(0, 4)) == 0:
            place.pop(tag, None)
        else:
            place[tag] = element(draw, tag)
    file = io.BytesIO()
    try:
        data.save_as(file, enforce_file_format=False)
    except Exception:
        return name, samples()[name]
    return name, file.getvalue()


def inside(data: Any) -> Iterator[tuple[Any, list[Any]]]:
    """A data set and those of its sequences, each with its tags. What is changed later is not looked at."""
    yield data, list(data.keys())
    for one in list(data):
        for item in one.value[:1] if one.VR == "SQ" else ():
            yield from inside(item)


def element(draw: st.DrawFn, tag: Any) -> RawDataElement:
    known = dictionary_VR(tag) if keyword_for_tag(tag) else "UN"
    kind = known if draw(st.integers(0, 3)) else draw(st.sampled_from(["UN", "DS", "IS", "US", "FD", "LO", "OB", "AT"]))
    value = draw(st.sampled_from(VALUES) | st.binary(max_size=8))
    return RawDataElement(tag, kind.split(" ")[0], len(value), value, 0, False, True)


LOOKED_AT = ("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
LOOKED_AT += ("SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "PatientID")
LOOKED_AT += ("ModalityLUTSequence", "PhotometricInterpretation", "SOPClassUID", "Modality", "SeriesInstanceUID")
LOOKED_AT += ("SegmentSequence", "SpecificCharacterSet", "PlanarConfiguration", "SliceThickness", "FrameOfReferenceUID")
VALUES = (b"", b"1e-300\\1e-300 ", b"1e300\\1 ", b"abc ", b"nan\\nan ", b"1\\0\\0", b"1\\2\\3\\4\\5\\6 ", b"1000000000")
VALUES += (
    b"99999999999999999999999 ",
    b"\xff\xff",
    b"\0\0",
    b"\xff\xff\xff\xff",
    b"\x80\xfe\xff ",
    b"ISO_IR 999",
    b"-1",
)
VALUES += (b"1.2.840.10008.5.1.4.1.1.66.4", b"PALETTE COLOR ", b"RGB ", b"MONOCHROME1 ", b"\x01\0\x01\0", b"\0" * 8)
PICTURES = [name for name in samples() if not name.endswith(("dcm", "nii", "gz"))]
BYTES = st.sampled_from(sorted(samples())).flatmap(
    lambda name: st.tuples(st.just(name), mutated(samples()[name], 2048 if name.endswith("dcm") else 400))
)
TARGETS = (
    Target("images: bytes", BYTES, odd_image, 40),
    Target("images: NIfTI", nifti(), odd_image, 40),
    Target("images: DICOM", dicom("a.dcm", "enhanced.dcm"), odd_image, 50),
    Target("images: PNG", png(), odd_image, 30),
    Target("images: TIFF", tiff(), odd_image, 30),
    Target(
        "masks", BYTES | nifti() | dicom("seg.dcm", "seg.dcm", "a.dcm", "enhanced.dcm") | png() | tiff(), odd_mask, 60
    ),
)
