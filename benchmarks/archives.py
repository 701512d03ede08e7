"""Unpacks archives that somebody else made: nothing leaves the folder, and nothing fills the disk."""

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pfedsam.data.readable import readable
from pfedsam.errors import UserFault

ENTRIES = 1_000_000  # most files and folders in an archive; the largest public set that we know has 300 000
FREE, RATIO = 1_000_000_000, 100  # bytes that any archive may unpack to; above that, so many times its own size


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(path: Path, folder: Path) -> None:
    """Unpack the archive below `folder`. The standard library lets no entry leave it, nor grow above its stated size.

    Raises:
        UserFault: the archive unpacks to far more than its size, or to too many entries; or it is damaged, or a tar's
            entry leads out of the folder.
    """
    with readable(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                _check(path, (entry.file_size for entry in packed.infolist()))
                packed.extractall(folder)
        else:
            with tarfile.open(path) as rolled:
                _check(path, (entry.size for entry in rolled))
                rolled.extractall(folder, filter="data")


def files_in(path: Path) -> list[tuple[str, bytes]]:
    """The name and content of each file in a tar, without unpacking it.

    Raises:
        UserFault: as `unpack`.
    """
    with tarfile.open(path) as tar:
        _check(path, (entry.size for entry in tar))
        members = [tarfile.data_filter(entry, "") for entry in tar.getmembers()]  # no name may lead elsewhere
        files = [(entry, tar.extractfile(entry)) for entry in members]
        return [(entry.name, file.read()) for entry, file in files if file is not None]


def _check(path: Path, sizes: Iterable[int]) -> None:
    most, total = max(FREE, RATIO * path.stat().st_size), 0
    for count, size in enumerate(sizes, 1):
        total += size
        if total > most or count > ENTRIES:
            raise UserFault(
                expected=f"an archive of at most {ENTRIES} entries and {most / 1e9:.1f} GB at {path}",
                came="more",
                do="download it again; if it is right, unpack it yourself and name the folder",
            )
