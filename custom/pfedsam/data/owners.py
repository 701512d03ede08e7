"""Whether each image belongs to one site: what two sites read alike is no federation of the two."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pfedsam.errors import UserFault


def require_own(images: Mapping[str, Iterable[Path]]) -> None:
    """Check that no two sites have a file in common, by any path to it.

    Args:
        images: the image files of each site.

    Raises:
        UserFault: two have. The message names them, and one file.
    """
    owner: dict[str, str] = {}
    for site, files in images.items():
        for file in sorted({os.path.realpath(file) for file in files}):
            if (other := owner.setdefault(file, site)) != site:
                raise UserFault(
                    expected="each image at one site",
                    came=f"{file} at both {other} and {site}",
                    do="name a folder for each site, or name each row's site in the datalist's column site",
                )
