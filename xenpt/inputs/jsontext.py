# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON from outside: of bounded size, depth and numbers, so that whoever uses it need not fear."""

import json
import math
from typing import Any, NoReturn

from xenpt.errors import InputError

MAX_BYTES = 4 << 20  # the answer of a boot has some kilobytes
MAX_DEPTH = 32  # of objects and lists in one another; an answer has less than ten
MAX_DIGITS = 40  # of a number


def parse_json(data: bytes, source: object) -> Any:
    """The value that a JSON text is.

    :param source: name of the file, for messages
    :raises InputError: not JSON, or larger, deeper or of longer numbers than any that xenpt writes
    """
    if len(data) > MAX_BYTES:
        raise InputError(source, f"JSON of more than {MAX_BYTES >> 20} MiB")
    try:
        found = json.loads(data, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(source, f"not JSON: {error}") from None
    if _is_deeper(found, MAX_DEPTH):
        raise InputError(source, f"JSON nested more than {MAX_DEPTH} deep")
    return found


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:MAX_DIGITS]} is too large")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in items)
