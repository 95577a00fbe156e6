# SPDX-License-Identifier: GPL-2.0-or-later
"""`Shown`: results that a notebook shows by themselves, as HTML and as a picture.

How they are shown is the business of rows far below. So they do not import it: it is looked up by
name when somebody asks.
"""

from importlib import import_module
from typing import Any

_HOME = "xenpt.notebook"


class Shown:
    """A result with a picture and an HTML form."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        html: str = import_module(_HOME).as_html(self)
        return html

    def plot(self) -> Any:
        """The `Picture` of it, which a notebook shows; its `save(path)` writes SVG or PNG.

        :raises UsageError: there is nothing to draw
        """
        return import_module(_HOME).as_picture(self)
