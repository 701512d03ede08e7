"""Turns a library's errors on unreadable or damaged files into faults with remedies."""

import errno
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pfedsam.errors import UserFault

GZIP = b"\x1f\x8b"
START = 512  # first bytes of a file, which show its kind


@dataclass(frozen=True)
class Sign:
    """The mark of a kind of file: bytes at an offset, the endings that its name may have, and a remedy."""

    mark: bytes
    what: str
    ends: tuple[str, ...] = ()
    do: str = "convert it to a kind that can be read (NIfTI, DICOM, PNG, JPEG, TIFF, BMP)"
    place: int = 0


TIFF = (".tif", ".tiff")
SIGNS = (
    Sign(b"version https://git-lfs", "a pointer of Git LFS, not the file itself", do="fetch the file: git lfs pull"),
    Sign(GZIP, "gzip", (".gz", ".tgz"), "unpack it (gunzip)"),
    Sign(b"PK\x03\x04", "a zip archive", do="unpack it"),
    Sign(b"\x89PNG", "a PNG picture", (".png",)),
    Sign(b"\xff\xd8\xff", "a JPEG picture", (".jpg", ".jpeg")),
    Sign(b"II*\0", "a TIFF picture", TIFF),
    Sign(b"MM\0*", "a TIFF picture", TIFF),
    Sign(b"BM", "a BMP picture", (".bmp",)),
    Sign(b"GIF8", "a GIF picture", do="save it as PNG"),
    Sign(b"WEBP", "a WebP picture", do="save it as PNG", place=8),
    Sign(b"ftyp", "a HEIC or AVIF picture, or a film", do="save the picture as PNG", place=4),
    Sign(b"%PDF", "a PDF document"),
    Sign(b"NRRD", "an NRRD volume", do="save it as NIfTI (3D Slicer does)"),
    Sign(b"DICM", "DICOM", (".dcm", ".dicom", ".ima"), place=128),
    Sign(b"n+1\0", "NIfTI without compression", (".nii",), place=344),
    Sign(b"n+2\0", "NIfTI without compression", (".nii",), place=4),
    Sign(b"ni1\0", "the header of a NIfTI pair", do="save image and header in one file, as .nii", place=344),
    Sign(b"<", "a web page or similar text, often from a failed download", do="download or copy the file again"),
)


def hindrance(path: Path) -> tuple[str, str] | None:
    """Why a path in a folder cannot be opened as a file, and what to do; None if it can."""
    if not path.is_file():
        return "a broken link, or not a regular file", "put the file itself there"
    if not os.access(path, os.R_OK):
        return "the file can't be read (no permission)", "give yourself permission to read it"
    return None


LINKED = ("a link to a folder; links are not followed", "give the folder itself")
DOCUMENTS = (".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".ods", ".db", ".safetensors", ".onnx")
HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")  # images that begin with, or are, a text


def closed(error: OSError) -> tuple[str, str]:
    """Why a folder cannot be listed, and what to do."""
    return f"the folder can't be read ({error.strerror})", "give yourself permission to read it"


def may_be_image(path: Path) -> bool:
    """Whether a file of a kind that cannot be read here may be an image: neither a text nor a common document."""
    if (ending := path.suffix.lower()) in (*DOCUMENTS, *HEADERS):
        return ending in HEADERS
    with path.open("rb") as file:
        return min(file.read(START), default=ord("\t")) < ord("\t")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error while `path` is read into one `UserFault` that names the file and the remedy."""
    try:
        yield
    except UserFault:
        raise
    except Exception as error:  # with a damaged file the readers raise nearly any exception
        came, do = hindrance(path) or _by_error(error) or disguised(path) or _damaged(path, error)
        raise UserFault(expected=f"a readable file at {path}", came=came, do=do) from None


def _by_error(error: Exception) -> tuple[str, str] | None:
    if isinstance(error, PermissionError):
        return "a file that can't be read (no permission)", "give yourself permission to read it"
    if isinstance(error, MemoryError):
        return "more data than this machine's memory", "cut it into parts, or use a machine with more memory"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "a name that is too long for the file system", "give it a shorter name"
    return None


def disguised(path: Path) -> tuple[str, str] | None:
    """The file's kind by its first bytes, and what to do; None if they fit its name or are unknown."""
    try:
        start, name = _start(path)
    except (OSError, EOFError, zlib.error):
        return None
    if not start:
        return "an empty file (0 bytes)", "copy it again from its source"
    sign = next((one for one in SIGNS if start[one.place :].startswith(one.mark)), None)
    if sign is None:
        return ("a text", "put the file itself there") if min(start) >= ord("\t") else None
    if name.lower().endswith(sign.ends):
        return None
    inside = "" if name == path.name else "unpack it (gunzip), then "
    return f"{sign.what}, which its name does not say", inside + (_renamed(name, sign) or sign.do)


def _start(path: Path) -> tuple[bytes, str]:
    """The first bytes and the name. For a .gz file these are the unpacked bytes and the name without .gz."""
    with path.open("rb") as file:
        start = file.read(START)
    if not (start.startswith(GZIP) and path.name.lower().endswith(".gz")):
        return start, path.name
    with gzip.open(path) as file:
        return file.read(START), path.name[:-3]


def _renamed(name: str, sign: Sign) -> str | None:
    """The remedy if only the name is wrong."""
    if sign.mark == GZIP:
        return "name it .nii.gz" if name.lower().endswith(".nii") else None
    return f"name it {sign.ends[0]}" if sign.ends else None


def _damaged(path: Path, error: Exception) -> tuple[str, str]:
    if "data code" in str(error):  # nibabel's term for the type of voxels
        return "numbers of a type that can't be read", "save it with 8 or 16 bits, or as 32-bit floating point"
    text = " ".join((str(error) or type(error).__name__).replace(str(path), "it").split())
    return f"a damaged or incomplete file ({text})", "copy or export it again, or leave it out"
