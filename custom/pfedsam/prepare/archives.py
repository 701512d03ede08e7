"""Unpacking what a user has downloaded, into a folder and never beside it."""

import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from pfedsam.data.readable import readable
from pfedsam.errors import UserFault


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip or tar file."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(path: Path, folder: Path) -> None:
    """The archive's files and folders in `folder`.

    Raises:
        UserFault: an entry would lie outside, is a link or a device, is larger than the disk, or is damaged.
    """
    with readable(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                for entry in packed.infolist():
                    _check(path, entry.filename, (entry.external_attr >> 16) & 0o170000 in (0, 0o100000, 0o040000))
                _check_room(path, sum(entry.file_size for entry in packed.infolist()), folder)
                packed.extractall(folder)
        else:
            with tarfile.open(path) as rolled:
                for member in rolled:
                    _check(path, member.name, member.isfile() or member.isdir())
                _check_room(path, sum(member.size for member in rolled), folder)
                rolled.extractall(folder, filter="data")


def _check(path: Path, name: str, plain: bool) -> None:
    place = PurePosixPath(name.replace("\\", "/"))  # of no parts for ".", the folder that `tar -czf set.tar.gz .` packs
    if not plain or place.is_absolute() or ".." in place.parts or ":" in "".join(place.parts[:1]):
        raise UserFault(
            expected=f"plain files below one folder in {path}",
            came=f"the entry {name}, which leads elsewhere",
            do="do not unpack this archive: download it again from its source",
        )


def _check_room(path: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserFault(
            expected=f"{size / 1e9:.1f} GB of free disk to unpack {path}", came=f"{free / 1e9:.1f} GB", do="make room"
        )
