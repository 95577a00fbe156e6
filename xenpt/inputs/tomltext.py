# SPDX-License-Identifier: GPL-2.0-or-later
"""TOML from outside."""

import tomllib
from typing import Any

from xenpt.errors import InputError

MAX_BYTES = 1 << 20  # of a file that somebody writes by hand


def parse_toml(data: bytes, source: object) -> dict[str, Any]:
    """The table that a TOML text is.

    :param source: name of the file, for messages
    :raises InputError: not TOML
    """
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8
        raise InputError(source, f"not TOML: {error}") from error
