# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture as SVG inside a page: its ids are its own, its colours the page's, and it has tips."""

import html
import io
import re

from xenpt.pictures.picture import Picture, drawn, short_svg
from xenpt.pictures.style import CSS_NAMES

_STYLE = re.compile(r"\s*<style.*?</style>", re.DOTALL)
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^)"]*)')
_HEAD = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>")
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_COLOUR = re.compile("|".join(CSS_NAMES))


def inline_svg(picture: Picture, *, narrow: bool, prefix: str) -> str:
    """The `<svg>` element of a picture, with class `wide` or `narrow`.

    What may be pointed at has an attribute `data-tip`.

    :param prefix: of all its ids, for a page has many pictures
    :raises MissingExtraError: matplotlib is not installed
    """
    with drawn(picture, narrow=narrow, svg_fonttype="none", savefig_facecolor="none") as sheet:
        file = io.StringIO()
        sheet.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        tips = sheet.tips
    text = file.getvalue()
    text = _STYLE.sub("", _METADATA.sub("", text[text.index("<svg") :]))
    kind = "narrow" if narrow else "wide"
    label = html.escape(picture.title)
    head = f'<svg class="{kind}" role="img" aria-label="{label}" viewBox="\\1">'
    text = _HEAD.sub(head, text, count=1)
    text = _COLOUR.sub(lambda found: f"var({CSS_NAMES[found[0]]})", text)
    return _own_ids(short_svg(text), prefix, tips).replace("xlink:href", "href")


def _own_ids(text: str, prefix: str, tips: dict[str, str]) -> str:
    """Ids that are referred to get a prefix, those with a tip become it, all others go."""
    used = {found[1] for found in _REFERENCE.findall(text)}

    def renamed(found: re.Match[str]) -> str:
        name = found[1]
        if name in tips:
            return f' data-tip="{html.escape(tips[name])}"'
        return f' id="{prefix}-{name}"' if name in used else ""

    return _REFERENCE.sub(rf"\g<1>{prefix}-\g<2>", _ID.sub(renamed, text))
