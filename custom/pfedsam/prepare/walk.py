"""All files below a folder, by kind. Files that cannot be used are reported."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedsam.data.nifti import NIFTI
from pfedsam.data.picture import PICTURES
from pfedsam.data.readable import LINKED, closed, hindrance
from pfedsam.data.volume import ENDINGS, Kind, kind_of, stem_of
from pfedsam.files import encodable
from pfedsam.prepare.found import Dropped, Reason

HIDDEN = ("hidden, because its name begins with a dot", "nothing, if it is not needed; otherwise rename it")
READ = tuple(end for ends in ENDINGS.values() for end in ends)
OF_MAC = "._"  # macOS writes such a file beside each file on a foreign disk
FOREIGN = ("its name is not in UTF-8", "rename it: old shares and archives have names in other codes")
MARK = "names.salt"  # a file in every folder that prepare has written


@dataclass(frozen=True)
class File:
    """A file that may be an image or a mask. `parts` are the folders between the root and the file."""

    path: Path
    root: Path
    kind: Kind

    @property
    def parts(self) -> tuple[str, ...]:
        return self.path.relative_to(self.root).parts[:-1]

    @property
    def name(self) -> str:
        """The path below the given folder, as the report shows it."""
        return str(self.path.relative_to(self.root))

    @property
    def stem(self) -> str:
        """The file name without its ending. `.nii.gz` counts as one ending."""
        return stem_of(self.path)


def files_below(root: Path) -> Iterator[File | Dropped]:
    """Each file of a kind that can be read, and each other file with the reason.

    A hidden file is skipped without a word if its name does not end as an image's.
    """
    refused: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=refused.append):
        yield from (Dropped(_shown(Path(folder, name), root), *HIDDEN) for name in _hidden(folders, files))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in [Path(folder, name) for name in folders]:
            if why := _odd(path):
                yield Dropped(_shown(path, root), *why)
        folders[:] = [name for name in folders if encodable(name) and not Path(folder, name, MARK).is_file()]
        for path in [Path(folder, name) for name in sorted(files) if not name.startswith(".")]:
            if path.name.upper() != "DICOMDIR":
                kind = _kind(path)
                yield File(path, root, kind) if isinstance(kind, str) else Dropped(_shown(path, root), *kind)
    for error in refused:
        where = os.path.relpath(error.filename, root)
        yield Dropped(where, *closed(error))


def _hidden(folders: Sequence[str], files: Sequence[str]) -> list[str]:
    """The hidden folders, and the hidden files that their names say are images or masks."""
    named = [name for name in files if name.lower().endswith(READ) and not name.startswith(OF_MAC)]
    return sorted(name for name in (*folders, *named) if name.startswith("."))


def _shown(path: Path, root: Path) -> str:
    """A path below the root as a text that a report can hold, whatever bytes its name has."""
    return str(path.relative_to(root)).encode(errors="backslashreplace").decode()


def _kind(path: Path) -> Kind | Reason:
    """A file's kind, or the reason why it cannot be read."""
    if not encodable(path.name):
        return FOREIGN
    if hindered := hindrance(path):
        return hindered
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)", "copy it again from its source"
    return kind_of(path) or (
        "a kind of file that cannot be read here (NIfTI, DICOM, PNG, JPEG, TIFF and BMP can)",
        "nothing, if it is not an image or mask; otherwise convert it",
    )


def _odd(folder: Path) -> Reason | None:
    """Why a folder is skipped, or is not what its name says."""
    if not encodable(folder.name):
        return FOREIGN
    if (folder / MARK).is_file():
        why = "a folder that pfedsam prepare wrote: its cases would count a second time, as other patients"
        return why, "nothing; or give only that folder"
    if folder.is_symlink():
        return LINKED
    if folder.name.lower().endswith((*NIFTI, *PICTURES)):
        return "a folder with a name like a file", "rename it; the files in it are still read"
    return None
