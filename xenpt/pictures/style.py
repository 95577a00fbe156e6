# SPDX-License-Identifier: GPL-2.0-or-later
"""How all pictures look: colours that everybody can tell apart, each with a hatch of its own."""

from typing import Any, Final

INK: Final = "#1b1b1c"
MUTED: Final = "#66676a"
GRID: Final = "#d5d6d8"
PAPER: Final = "#fefefe"
BAD: Final = "#c0321f"  # limits, and what is lost; never told from others by its colour alone
#: Samples of viridis from dark to light, taken in this order.
FILLS: Final = ("#472d7b", "#31688e", "#27ad81", "#fde725", "#7ad151", "#21918c", "#b8de29")
HATCHES: Final = ("", "///", "---", "xx", "\\\\\\", "++", "|||")
LINES: Final = ("-", "--", ":", "-.")
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
#: Colours in which lines stand out on paper: viridis without its light end.
STROKES: Final = FILLS[:3]

#: Where a page is dark, each colour has another value; the page's CSS knows it by this name.
CSS_NAMES: Final = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper", BAD: "--bad",
    **{colour: f"--fill{i}" for i, colour in enumerate(FILLS)},
}  # fmt: skip

FONT_SIZE: Final = 9  # points, of a picture that is drawn as wide as it is shown
#: matplotlib's settings, wherever a picture is drawn.
SETTINGS: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it along: the same anywhere
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "hatch.linewidth": 0.7,
    "hatch.color": INK,
    "lines.linewidth": 1.6,
    "patch.linewidth": 0.7,
    "svg.hashsalt": "xenpt",  # the same figure gives the same file
}
