"""Who may read the files that this process makes."""

import os
import re

from pfedsam.errors import UserFault

USUAL = "077"


def private_files() -> None:
    """From now on only this process's user can read the files that it makes. PFEDSAM_UMASK=027 lets the group read.

    Raises:
        UserFault: PFEDSAM_UMASK is no umask.
    """
    os.umask(_umask())


def file_mode() -> int:
    """The permissions of a file that this package makes in any process, also in one whose own umask is wider.

    Raises:
        UserFault: as for `private_files`.
    """
    return 0o666 & ~_umask()


def _umask() -> int:
    text = os.environ.get("PFEDSAM_UMASK", USUAL)
    if not re.fullmatch("0?[0-7]{3}", text):
        raise UserFault(expected="PFEDSAM_UMASK as three digits of 0 to 7", came=repr(text), do="write e.g. 027")
    return int(text, 8)
