"""All files below a folder, told apart by kind; what is no file that can be read is named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pfedsam.data.nifti import NIFTI
from pfedsam.data.picture import PICTURES
from pfedsam.data.readable import hindrance
from pfedsam.data.volume import Kind, kind_of, stem_of
from pfedsam.prepare.found import Dropped, Reason

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
        for path in [Path(folder, name) for name in folders]:
            if why := _odd(path):
                yield Dropped(str(path.relative_to(root)), *why)
        folders[:] = [name for name in folders if not Path(folder, name, MARK).is_file()]
        for path in [Path(folder, name) for name in sorted(files) if not name.startswith(".")]:
            if path.name.upper() != "DICOMDIR":
                kind = _kind(path)
                yield File(path, root, kind) if isinstance(kind, str) else Dropped(str(path.relative_to(root)), *kind)
    for error in refused:
        where = os.path.relpath(error.filename, root)
        yield Dropped(where, f"the folder can't be read ({error.strerror})", "give yourself the right to read it")


def _kind(path: Path) -> Kind | Reason:
    """A file's kind, or why it is none that is read here."""
    if hindered := hindrance(path):
        return hindered
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)", "copy it again from where it came"
    return kind_of(path) or (
        "a kind of file that is not read here (NIfTI, DICOM, PNG, JPEG, TIFF and BMP are)",
        "nothing, if it is no image or mask; else convert it",
    )


def _odd(folder: Path) -> Reason | None:
    """Why a folder is not looked into, or is not what its name says."""
    if (folder / MARK).is_file():
        why = "a folder that pfedsam prepare wrote: its cases would come in a second time, as other patients"
        return why, "nothing; or give that folder alone"
    if folder.is_symlink():
        return "a link to a folder, which is not followed", "give the folder itself"
    if folder.name.lower().endswith((*NIFTI, *PICTURES)):
        return "a folder that is named like a file", "rename it; files in it are looked at"
    return None
