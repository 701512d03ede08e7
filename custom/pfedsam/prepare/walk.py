"""All files below a folder, told apart by kind; what is no file that can be read is named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pfedsam.data.nifti import NIFTI
from pfedsam.data.picture import PICTURES
from pfedsam.data.readable import hindrance
from pfedsam.data.volume import Kind, kind_of, stem_of
from pfedsam.prepare.found import Dropped

MARK = "names.salt"  # a file of every folder that prepare has written


@dataclass(frozen=True)
class File:
    """A file that may be an image or a mask; `parts` are the folders between the root and it."""

    path: Path
    root: Path
    kind: Kind

    @property
    def parts(self) -> tuple[str, ...]:
        return self.path.relative_to(self.root).parts[:-1]

    @property
    def name(self) -> str:
        """The path below the folder given, as the report shows it."""
        return str(self.path.relative_to(self.root))

    @property
    def stem(self) -> str:
        """The file name without its ending, `.nii.gz` counted as one."""
        return stem_of(self.path)


def files_below(root: Path) -> Iterator[File | Dropped]:
    """Each file of a kind that is read here, and with the reason each that is not; hidden ones are passed over."""
    refused: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        ours = [name for name in folders if Path(folder, name, MARK).is_file()]
        folders[:] = [name for name in folders if name not in ours]
        yield from (_prepared(Path(folder, name), root) for name in ours)
        yield from (d for name in folders if (d := _odd_folder(Path(folder, name), root)))
        for name in sorted(files):
            if not name.startswith(".") and name.upper() != "DICOMDIR":
                yield _classified(Path(folder, name), root)
    for error in refused:
        where = os.path.relpath(error.filename, root)
        yield Dropped(where, f"the folder can't be read ({error.strerror})", "give yourself the right to read it")


def _classified(path: Path, root: Path) -> File | Dropped:
    name = str(path.relative_to(root))
    if hindered := hindrance(path):
        return Dropped(name, *hindered)
    if path.stat().st_size == 0:
        return Dropped(name, "the file is empty (0 bytes)", "copy it again from where it came")
    kind = kind_of(path)
    if kind is None:
        return Dropped(
            name,
            "a kind of file that is not read here (NIfTI, DICOM, PNG, JPEG, TIFF and BMP are)",
            "nothing, if it is no image or mask; else convert it",
        )
    return File(path, root, kind)


def _prepared(path: Path, root: Path) -> Dropped:
    why = "a folder that pfedsam prepare wrote: its cases would come in a second time, as other patients"
    return Dropped(str(path.relative_to(root)), why, "nothing; or give that folder alone")


def _odd_folder(path: Path, root: Path) -> Dropped | None:
    name = str(path.relative_to(root))
    if path.is_symlink():
        return Dropped(name, "a link to a folder, which is not followed", "give the folder itself")
    if name.lower().endswith((*NIFTI, *PICTURES)):
        return Dropped(name, "a folder that is named like a file", "rename it; files in it are looked at")
    return None
