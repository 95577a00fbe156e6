# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of `xenpt report`: one HTML file that needs nothing else."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from xenpt.htmltext import table_html
from xenpt.pictures.inline import inline_svg
from xenpt.pictures.picture import Picture

Choice = tuple[int, ...]  # the option of each control
Variants = dict[Choice, Picture]


@dataclass(frozen=True, slots=True)
class Control:
    """What a reader may choose.

    :ivar options: in words; a slider has one place for each
    :ivar first: the option that is chosen first
    """

    label: str
    options: tuple[str, ...]
    slider: bool = False
    first: int = 0


@dataclass(frozen=True, slots=True)
class Section:
    """A picture of the page, in as many variants as its controls have choices.

    :ivar name: its id
    :ivar title: the same for all variants
    :ivar variants: the picture of each choice, by the option of each control
    :ivar note: what to say where there is no picture
    :ivar explorers: of a variant, JSON for what JavaScript draws in place of its picture
    """

    name: str
    title: str
    variants: Variants
    controls: tuple[Control, ...] = ()
    explorers: dict[Choice, object] = field(default_factory=dict)
    note: str = ""


def page(
    title: str,
    introduction: str,
    sections: Sequence[Section],
    footer: str,
    *,
    drawn: Callable[[], None] = lambda: None,
) -> str:
    """The whole file.

    :param introduction: HTML above the pictures
    :param footer: HTML below them
    :param drawn: called after each section
    :raises MissingExtraError: matplotlib is not installed
    """
    here = files("xenpt.pictures")
    style = here.joinpath("page.css").read_text("utf-8")
    script = here.joinpath("page.js").read_text("utf-8")
    links = "".join(
        f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections
    )
    parts = []
    for section in sections:
        parts.append(_section(section))
        drawn()
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{introduction}
<nav aria-label="Pictures"><ol>{links}</ol></nav>
</header>
<main>
{body}
</main>
<footer>
{footer}
</footer>
<div id="tip" role="tooltip" hidden></div>
<script>
{script}</script>
</body>
</html>
"""


def _section(section: Section) -> str:
    controls = "\n".join(
        _control(section.name, i, control) for i, control in enumerate(section.controls)
    )
    chosen = tuple(control.first for control in section.controls)
    variants = "\n".join(
        _variant(section, choice, picture, hidden=choice != chosen)
        for choice, picture in section.variants.items()
    )
    form = f'<form class="controls">\n{controls}\n</form>\n' if controls else ""
    kinds = ""
    if section.variants:
        names = section.variants[chosen].kinds
        kinds = " ".join(f'<span class="kind {name}">{name}</span>' for name in names)
    note = f"<p>{escape(section.note)}</p>\n" if section.note else ""
    return (
        f'<section id="{section.name}">\n<h2>{escape(section.title)} {kinds}</h2>\n'
        f"{note}{form}{variants}\n</section>"
    )


def _control(name: str, i: int, control: Control) -> str:
    """A slider, or a button for each option."""
    label = escape(control.label)
    if control.slider:
        last = len(control.options) - 1
        options = escape(json.dumps(control.options))
        return (
            f'<div class="slider"><label>{label} <input type="range" min="0" max="{last}" '
            f'value="{control.first}" data-options="{options}" name="{name}-{i}"></label> '
            f"<output>{escape(control.options[control.first])}</output></div>"
        )
    buttons = "".join(
        f'<label><input type="radio" name="{name}-{i}" value="{k}"'
        f"{' checked' if k == control.first else ''}> {escape(option)}</label>"
        for k, option in enumerate(control.options)
    )
    return f"<fieldset><legend>{label}</legend>{buttons}</fieldset>"


def _variant(section: Section, choice: Choice, picture: Picture, *, hidden: bool) -> str:
    key = "-".join(map(str, choice))
    prefix = "-".join(filter(None, (section.name, key)))
    wide, narrow = (
        inline_svg(picture, narrow=narrow, prefix=f"{prefix}{'n' if narrow else 'w'}")
        for narrow in (False, True)
    )
    return f"""<div class="variant" data-choice="{key}"{" hidden" if hidden else ""}>
<figure>
<div class="picture">
{wide}
{narrow}
</div>{_explorer(section.explorers.get(choice))}
<figcaption>{escape(picture.caption)}</figcaption>
</figure>
<details>
<summary>The numbers</summary>
<div class="scroll">
{table_html(picture.table)}
</div>
</details>
</div>"""


def _explorer(data: object) -> str:
    if data is None:
        return ""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    script = f'<script type="application/json">{text}</script>'
    return f'\n<div class="explorer" hidden>{script}</div>'
