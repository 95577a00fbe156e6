# SPDX-License-Identifier: GPL-2.0-or-later
"""`Sweep`: the rows of a sweep as NumPy columns, their growth, and as tables of other libraries."""

import csv
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from xenpt.errors import MissingExtraError, UsageError
from xenpt.journal import json_line
from xenpt.output import write_file
from xenpt.shown import Shown
from xenpt.sweeprow import COLUMNS, INPUTS, RESULTS, Row

Array = npt.NDArray[Any]
_ABSENT: Final[dict[type, Any]] = {int: 0, float: np.nan, bool: False, str: ""}
_DTYPES: Final[dict[type, Any]] = {int: np.int64, float: np.float64, bool: np.bool_, str: np.str_}

#: Quantities whose growth is fitted, as sums of columns.
QUANTITIES: Final = {
    "entries_walked": tuple(f"cleanup_entries_read_{level}" for level in ("l1", "l2", "l3")),
    "tables_freed": tuple(f"cleanup_tables_freed_{level}" for level in ("l1", "l2", "l3")),
    "pages_made_writable": ("cleanup_update_va_mapping",),
    "cleanup_hypercalls": ("cleanup_hypercalls",),
    "boot_hypercalls": ("boot_hypercalls",),
    "cleanup_seconds_modelled": ("cleanup_seconds_modelled",),
    "boot_seconds_modelled": ("boot_seconds_modelled",),
}


@dataclass(frozen=True)
class Sweep(Shown):
    """The rows of a sweep, in the order of its axes, the memory sizes innermost."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def columns(self) -> dict[str, Array]:
        """One array of each column; a masked one where values are absent.

        dtypes: int64, float64, bool, and `<U` for texts.
        """
        return {name: _column([row[name] for row in self.rows], COLUMNS[name]) for name in COLUMNS}

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def series(self) -> list["Sweep"]:
        """The rows by memory size only: one Sweep for each combination of the other inputs.

        Where no size is given, it is that of the host which decides on the memory.
        """
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(tuple(_held(row).values()), []).append(row)
        return [Sweep(tuple(rows)) for rows in found.values()]

    def quantity(self, name: str) -> Array:
        """One of QUANTITIES of each row, as floats; NaN where it is absent."""
        columns = (self.columns[column] for column in QUANTITIES[name])
        total = sum(np.ma.filled(column.astype(np.float64), np.nan) for column in columns)
        return np.asarray(total)

    def exponents(self, *, nr_largest: int | None = None) -> dict[str, float | None]:
        """How each of QUANTITIES grows with memory: e of `quantity ~ nr_pages ** e`.

        The slope of the least-squares line through the logarithms of the counts; None where there
        are fewer than two sizes. For the rows of one of `series`.

        :param nr_largest: fit to so many of the largest guests that boot; 2: the slope at the end
        """
        size = np.ma.filled(self.columns["nr_pages"], 0).astype(np.float64)
        return {name: _exponent(size, self.quantity(name), nr_largest) for name in QUANTITIES}

    def growth(self) -> list[dict[str, Any]]:
        """`exponents` of each of `series`, with its inputs, for JSON."""
        return [
            _held(one.rows[0])
            | {"nr_rows": len(one), "exponents": one.exponents()}
            | {"exponents_at_end": one.exponents(nr_largest=2)}
            for one in self.series
        ]

    # --- Files ---------------------------------------------------------------------------------

    def as_json_lines(self) -> str:
        """One JSON object a line, each with all that it needs to be understood."""
        return "".join(map(json_line, self.rows))

    def as_csv(self) -> str:
        """A line of names and one for each row; absent is empty, true and false are words."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow(_csv_cell(row[name]) for name in COLUMNS)
        return text.getvalue()

    def as_parquet(self) -> bytes:
        """The contents of a Parquet file.

        :raises MissingExtraError: pyarrow is not installed
        """
        parquet = _extra("pyarrow.parquet")
        sink = io.BytesIO()
        parquet.write_table(self.to_arrow(), sink)
        return sink.getvalue()

    def to_json_lines(self, path: str | Path) -> None:
        """Write `as_json_lines` to a file, whole or not at all."""
        write_file(str(path), self.as_json_lines())

    def to_csv(self, path: str | Path) -> None:
        """Write `as_csv` to a file, whole or not at all."""
        write_file(str(path), self.as_csv())

    def to_parquet(self, path: str | Path) -> None:
        """Write `as_parquet` to a file, whole or not at all."""
        write_file(str(path), self.as_parquet())

    # --- Tables of other libraries ---------------------------------------------------------------

    def to_arrow(self) -> Any:
        """A pyarrow.Table; absent is null.

        :raises MissingExtraError: pyarrow is not installed
        """
        arrow = _extra("pyarrow")
        types = {
            int: arrow.int64(),
            float: arrow.float64(),
            bool: arrow.bool_(),
            str: arrow.string(),
        }
        arrays = {
            name: arrow.array([row[name] for row in self.rows], type=types[kind])
            for name, kind in COLUMNS.items()
        }
        return arrow.table(arrays)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame; absent is NA, in pandas' own dtypes.

        :raises MissingExtraError: pandas is not installed
        """
        pandas = _extra("pandas")
        types = {int: "Int64", float: "Float64", bool: "boolean", str: "string"}
        return pandas.DataFrame(
            {
                name: pandas.array([row[name] for row in self.rows], dtype=types[kind])
                for name, kind in COLUMNS.items()
            }
        )

    def to_xarray(self) -> Any:
        """An xarray.Dataset: a dimension for each input that varies; what is constant is in attrs.

        A combination that no row has, or an absent count, is NaN, "" or False.

        :raises MissingExtraError: xarray is not installed
        :raises UsageError: two rows have the same inputs by name, such as two files of one name
        """
        xarray = _extra("xarray")
        labels = {name: list(dict.fromkeys(row[name] for row in self.rows)) for name in INPUTS}
        labels = {name: values for name, values in labels.items() if len(values) > 1}
        places = [
            tuple(values.index(row[name]) for name, values in labels.items()) for row in self.rows
        ]
        if len(set(places)) < len(places):
            raise UsageError("two rows have the same inputs by name: no cube of them")
        at = tuple(np.array(places, np.intp).reshape(len(places), len(labels)).T)
        shape = [len(values) for values in labels.values()]
        variables: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        for name, kind in COLUMNS.items():
            values = [row[name] for row in self.rows]
            if name not in RESULTS and len(set(values)) == 1:
                constants |= {} if values[0] is None else {name: values[0]}
            elif name not in labels:
                variables[name] = (tuple(labels), _cube(values, kind, at, shape))
        coordinates = {name: _column(values, COLUMNS[name]) for name, values in labels.items()}
        filled = {name: np.ma.filled(values) for name, values in coordinates.items()}
        return xarray.Dataset(variables, coords=filled, attrs=constants)


def _held(row: Row) -> Row:
    """The inputs that are the same in all rows of a series."""
    free = "host_pages" if row["memory_pages"] is None else "memory_pages"
    return {name: row[name] for name in INPUTS if name != free}


def _column(values: Sequence[Any], kind: type) -> Array:
    absent = [value is None for value in values]
    data = [_ABSENT[kind] if value is None else value for value in values]
    array = np.array(data, _DTYPES[kind])
    if not any(absent):
        return array
    return np.ma.masked_array(array, mask=absent, fill_value=_ABSENT[kind])


def _cube(values: Sequence[Any], kind: type, at: tuple[Array, ...], shape: list[int]) -> Array:
    """Values at their places; whole numbers become floats where one is absent."""
    has_holes = None in values or len(values) < np.prod(shape)
    dtype = np.float64 if kind is int and has_holes else _DTYPES[kind]
    absent = np.nan if dtype is np.float64 else _ABSENT[kind]
    data = np.array([absent if value is None else value for value in values], dtype)
    cube = np.full(shape, absent, data.dtype)
    cube[at] = data if at else data[0]
    return cube


def _exponent(size: Array, quantity: Array, nr_largest: int | None) -> float | None:
    usable = np.flatnonzero((size > 0) & (quantity > 0))
    chosen = usable[np.argsort(size[usable], kind="stable")][-nr_largest if nr_largest else None :]
    x, y = np.log2(size[chosen]), np.log2(quantity[chosen])
    spread = x - x.mean() if len(x) else x
    if not spread.any():
        return None
    return float((spread * y).sum() / (spread * spread).sum())


def require_parquet() -> None:
    """Find out before a long sweep.

    :raises MissingExtraError: pyarrow is not installed
    """
    _extra("pyarrow.parquet")


def _csv_cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value  # None becomes empty


def _extra(module: str) -> Any:
    """A module of an extra, imported.

    :raises MissingExtraError: it is not installed
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], "data") from error
