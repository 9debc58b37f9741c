"""Names of regions and of their owner's file: nobody can guess one, and none is used twice.

======================  =========================================================
``tzc-OWNER-REGION``    a region: at the server, and in /dev/shm if it is a file
``tzc-OWNER.owner``     the file that a living owner holds locked
======================  =========================================================
"""

from __future__ import annotations

import re
import secrets
from typing import Final

NAME_PREFIX: Final = "tzc"
_REGION: Final = re.compile(rf"{NAME_PREFIX}-([0-9a-f]{{16}})-[0-9a-f]{{32}}")
_OWNER_FILE: Final = re.compile(rf"{NAME_PREFIX}-([0-9a-f]{{16}})\.owner")


def new_owner_id() -> str:
    """Return an id that nobody can guess, for one client's regions."""
    return secrets.token_hex(8)


def new_name(owner_id: str) -> str:
    """Return a region name that nobody can guess and that is never used again."""
    return f"{NAME_PREFIX}-{owner_id}-{secrets.token_hex(16)}"


def owner_file_name(owner_id: str) -> str:
    """Return the name of an owner's file."""
    return f"{NAME_PREFIX}-{owner_id}.owner"


def owner_of_region(name: str) -> str | None:
    """Return the id of the owner that a region's name carries; None if it is not ours."""
    match = _REGION.fullmatch(name)
    return match[1] if match else None


def owner_of_file(name: str) -> str | None:
    """Return the id of the owner whose file has this name; None if it is no such file."""
    match = _OWNER_FILE.fullmatch(name)
    return match[1] if match else None
