# SPDX-License-Identifier: GPL-2.0-or-later
"""`Picture`: a figure, the table of its numbers, and what kind of numbers they are."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from xenpt.errors import MissingExtraError, UsageError
from xenpt.output import write_file
from xenpt.pictures.style import SETTINGS
from xenpt.report import Table

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNTED, MEASURED, MODELLED = "counted", "measured", "modelled"
FORMATS: Final = ("svg", "png")
WIDE: Final = 9.6  # inches of the figure of a screen or a page,
NARROW: Final = 4.3  # and of that of a phone
PNG_DPI: Final = 160
_PLACE: Final = re.compile(r'(?<= )(?:d|x|y|width|height)="[^"]*"')
_DECIMALS: Final = re.compile(r"(?<=\d)\.(\d{1,2})\d*")
_DEFAULTS: Final = re.compile(r"; stroke-linejoin: miter(?=[;\"])")
_SPACE: Final = re.compile(r"\s*\n\s*")


class Sheet:
    """What a picture is drawn on.

    :ivar narrow: for a phone: panels stand one below the other
    :ivar tips: what is to be said of an artist, by the id that it has in SVG
    """

    def __init__(self, figure: "Figure", *, narrow: bool) -> None:
        self.figure, self.narrow = figure, narrow
        self.tips: dict[str, str] = {}

    def panels(self, nr: int, **options: Any) -> "list[Axes]":
        """`nr` panels, side by side where there is room."""
        shape = (nr, 1) if self.narrow else (1, nr)
        axes = self.figure.subplots(*shape, squeeze=False, **options)
        return list(axes.flat)

    def tip(self, artist: "Artist", text: str) -> None:
        """Say `text` where a reader points at `artist`."""
        name = f"tip{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = text


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a result.

    :ivar name: one word, of files and of the parts of a page
    :ivar kinds: what its numbers are: COUNTED, MEASURED, MODELLED
    :ivar caption: what is to be seen, and what times are made of
    :ivar draw: draws it on a sheet
    :ivar table: its numbers
    :ivar height: inches of the wide figure
    :ivar narrow_height: inches of the narrow one
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    caption: str
    draw: Callable[[Sheet], None]
    table: Table
    height: float = 4.2
    narrow_height: float = 7.0

    def figure(self, *, narrow: bool = False) -> "Figure":
        """The figure, to change or to save.

        :raises MissingExtraError: matplotlib is not installed
        """
        with drawn(self, narrow=narrow) as sheet:
            return sheet.figure

    def as_bytes(self, form: str) -> bytes:
        """The contents of an SVG or PNG file, the same whenever it is drawn.

        :raises MissingExtraError: matplotlib is not installed
        """
        with drawn(self) as sheet:
            file = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
            sheet.figure.savefig(file, format=form, dpi=PNG_DPI, metadata=metadata)
        contents = file.getvalue()
        return short_svg(contents.decode()).encode() if form == "svg" else contents

    def save(self, path: str | Path) -> None:
        """Write an SVG or PNG file, as its name says, whole or not at all.

        :raises UsageError: another name
        :raises MissingExtraError: matplotlib is not installed
        """
        write_file(str(path), self.as_bytes(plot_format(path)))

    def _repr_svg_(self) -> str:
        return self.as_bytes("svg").decode()


@contextmanager
def drawn(picture: Picture, *, narrow: bool = False, **settings: Any) -> Iterator[Sheet]:
    """The picture on a sheet; matplotlib keeps its settings for as long as this lasts.

    :param settings: of matplotlib, more or others; with `_` for `.`
    :raises MissingExtraError: matplotlib is not installed
    """
    matplotlib = require_matplotlib()
    others = {name.replace("_", ".", 1): value for name, value in settings.items()}
    size = (NARROW, picture.narrow_height) if narrow else (WIDE, picture.height)
    with matplotlib.rc_context(SETTINGS | others):
        from matplotlib.figure import Figure

        sheet = Sheet(Figure(size, layout="constrained"), narrow=narrow)
        picture.draw(sheet)
        yield sheet


def short_svg(text: str) -> str:
    """The same picture in fewer bytes: places have two decimals, default styles are left out."""

    def rounded(found: re.Match[str]) -> str:
        decimals = found[1].rstrip("0")
        return f".{decimals}" if decimals else ""

    def shortened(place: re.Match[str]) -> str:
        return _DECIMALS.sub(rounded, place[0])

    text = _DEFAULTS.sub("", _PLACE.sub(shortened, text))
    return _SPACE.sub(" ", text).replace("> <", "><")


def require_matplotlib() -> Any:
    """matplotlib, to be found missing before a long computation.

    :raises MissingExtraError: it is not installed
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    return cast(Any, matplotlib)


def plot_format(path: str | Path) -> str:
    """`svg` or `png`, as the file's name ends.

    :raises UsageError: it ends otherwise
    """
    form = Path(path).suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"plot {str(path)!r}: the name must end in .svg or .png")
    return form
