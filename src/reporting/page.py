"""Document of sections, written as Markdown and as one self-contained HTML file.

The HTML file needs no network and no script: it contains styles, vector figures and pictures.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOOTER = "Written by reslab, task=report."
#: A number, alone or followed by a unit, a spread or a second number.
NUMBER = re.compile(r"[-+<]?\d[\d.,e+]*( .*)?")
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1d21; margin: 0 auto; padding: 1rem; max-width: 78rem; }
h1 { font-size: 1.6rem; margin: 0.4rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.4rem; }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.table { overflow-x: auto; border: 1px solid #d8dce1; border-radius: 4px; margin: 0.6rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eceef1; }
th { background: #f3f5f7; font-weight: 600; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { position: sticky; left: 0; text-align: left; }
td:first-child { background: #fff; } tr.marked td { background: #eef4fb; }
td.text, th.text, th.long { text-align: left; }
td.long { white-space: normal; min-width: 16rem; text-align: left; overflow-wrap: anywhere; }
.warning { border-left: 4px solid #b3541e; background: #fdf3ec; padding: 0.4rem 0.8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 46rem; } figcaption { font-size: 0.85rem; color: #4a5058; }
svg, img { width: 100%; height: auto; }
footer { margin-top: 2rem; font-size: 0.85rem; color: #4a5058; }
@media (max-width: 40rem) {
  body { font-size: 15px; padding: 0.6rem; }
  td:first-child, th:first-child { min-width: 6.5rem; max-width: 10rem; white-space: normal; overflow-wrap: break-word; }
}
"""


@dataclass(frozen=True)
class Table:
    """Rows of text cells; `marked` is the first cell of the row that others are compared with."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: str | None = None


@dataclass(frozen=True)
class Picture:
    """Figure: an SVG element, or a picture file that the page embeds."""

    caption: str
    svg: str | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Section:
    """Heading and its content, in the order of the fields."""

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


# ---- Markdown


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the document as GitHub Markdown; figures are in the HTML page only."""
    blocks = [f"# {title}"]
    for section in sections:
        blocks.append(f"## {section.title}")
        blocks += section.paragraphs
        blocks += [f"> **Warning:** {text}" for text in section.warnings]
        if section.points:
            blocks.append("\n".join(f"- {point}" for point in section.points))
        blocks += [_format_markdown_table(table) for table in section.tables]
        if section.pictures:
            blocks.append("\n".join(f"- figure in report.html: {p.caption}" for p in section.pictures))
    return "\n\n".join([*blocks, FOOTER]) + "\n"


def _format_markdown_table(table: Table) -> str:
    ruler = ["---" if _cell_class(cells) else "---:" for cells in zip(*table.rows, strict=True)]
    lines = [table.columns, ruler, *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---- HTML


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Return the document as one HTML file for wide and narrow screens; all text is escaped."""
    title = html.escape(title)
    body = "\n".join(_format_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{body}\n<footer><p>{FOOTER}</p></footer>\n</body>\n</html>\n"
    )


def _format_section(section: Section) -> str:
    parts = [f"<section>\n<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in section.warnings]
    if section.points:
        points = "".join(f"<li>{html.escape(point)}</li>" for point in section.points)
        parts.append(f"<ul>{points}</ul>")
    parts += [_format_html_table(table) for table in section.tables]
    if section.pictures:
        parts.append(f'<div class="figures">{"".join(_format_figure(p) for p in section.pictures)}</div>')
    return "\n".join([*parts, "</section>"])


def _format_html_table(table: Table) -> str:
    classes = [_cell_class([row[i] for row in table.rows]) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(column)}</th>' for column, kind in zip(table.columns, classes, strict=True)
    )
    rows = []
    for row in table.rows:
        marked = ' class="marked"' if table.marked is not None and row[0] == table.marked else ""
        texts = [html.escape(cell).replace("_", "_<wbr>") for cell in row]  # lines may break after underscores
        cells = "".join(f"<td{kind}>{text}</td>" for text, kind in zip(texts, classes, strict=True))
        rows.append(f"<tr{marked}>{cells}</tr>")
    return (
        f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell_class(cells: Sequence[str]) -> str:
    """Return the class attribute of a column: numbers right-aligned, text left-aligned, long text wrapped."""
    if any(len(cell) > 40 for cell in cells):
        return ' class="long"'
    return "" if all(cell == "-" or NUMBER.fullmatch(cell) for cell in cells) else ' class="text"'


def _format_figure(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    if picture.file is not None:
        data = base64.b64encode(picture.file.read_bytes()).decode()
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    else:
        image = (picture.svg or "").replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
