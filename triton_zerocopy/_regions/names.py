"""Names of regions: nobody can guess one, and none is used twice."""

from __future__ import annotations

import secrets
from typing import Final

NAME_PREFIX: Final = "tzc"


def new_name(owner_id: str) -> str:
    """Return a region name that nobody can guess and that is never used again."""
    return f"{NAME_PREFIX}-{owner_id}-{secrets.token_hex(16)}"
