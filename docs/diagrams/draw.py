"""Draw the diagrams of the documentation from their text sources: `python docs/diagrams/draw.py`.

A source has a `title` line, and then boxes on a grid and arrows between them:

    box NAME COLUMN ROW "heading" "text" KIND
    arrow FROM TO "label" [shift of the label in pixels]
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 58, 110, 64, 14
# Kind → fill and outline.
COLORS = {
    "outside": ("#f4f4f4", "#777777"),
    "process": ("#fff6e5", "#b36b00"),
    "table": ("#eef6f2", "#1f6f54"),
    "view": ("#eef2fa", "#2f5aa8"),
}


@dataclass(frozen=True)
class Box:
    """A box on the grid; `x` and `y` are its centre."""

    column: int
    row: int
    heading: str
    text: str
    kind: str

    @property
    def x(self) -> float:
        """The centre, from the left."""
        return MARGIN + self.column * (BOX_WIDTH + GAP_X) + BOX_WIDTH / 2

    @property
    def y(self) -> float:
        """The centre, from the top."""
        return MARGIN + self.row * (BOX_HEIGHT + GAP_Y) + BOX_HEIGHT / 2

    def edge_towards(self, other: Box) -> tuple[float, float]:
        """Where the line between the two centres leaves this box."""
        dx, dy = other.x - self.x, other.y - self.y
        scale = min(
            (BOX_WIDTH / 2 + 3) / abs(dx) if dx else float("inf"),
            (BOX_HEIGHT / 2 + 3) / abs(dy) if dy else float("inf"),
        )
        return self.x + dx * scale, self.y + dy * scale

    def as_svg(self) -> str:
        """The rectangle and its two lines of text."""
        fill, outline = COLORS[self.kind]
        left, top = self.x - BOX_WIDTH / 2, self.y - BOX_HEIGHT / 2
        return (
            f'<rect x="{left:g}" y="{top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" '
            f'fill="{fill}" stroke="{outline}" stroke-width="1.5"/>'
            f'<text x="{self.x:g}" y="{self.y - 4:g}" font-weight="bold">{escape(self.heading)}</text>'
            f'<text x="{self.x:g}" y="{self.y + 15:g}" fill="#444444" font-size="12">{escape(self.text)}</text>'
        )


def arrow(start: Box, end: Box, label: str, shift: float) -> str:
    """A straight arrow between two boxes, with its label on a white background."""
    (x1, y1), (x2, y2) = start.edge_towards(end), end.edge_towards(start)
    line = (
        f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" fill="none" stroke="#555555" stroke-width="1.5" '
        'marker-end="url(#head)"/>'
    )
    if not label:
        return line
    # Above a horizontal arrow, on any other one.
    x, y = (x1 + x2) / 2, (y1 + y2) / 2 + shift - (11 if y1 == y2 else 0)
    width = 6.2 * len(label) + 6
    return (
        f'{line}<rect x="{x - width / 2:.1f}" y="{y - 9:.1f}" width="{width:.1f}" height="17" fill="#ffffff"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" font-size="12">{escape(label)}</text>'
    )


def draw(source: str) -> str:
    """The SVG of a source."""
    title, boxes, arrows = "", {}, []
    for words in (shlex.split(line, comments=True) for line in source.splitlines()):
        match words:
            case ["title", *rest]:
                title = " ".join(rest)
            case ["box", name, column, row, heading, text, kind]:
                boxes[name] = Box(int(column), int(row), heading, text, kind)
            case ["arrow", start, end, label, *shift]:
                arrows.append(arrow(boxes[start], boxes[end], label, float(shift[0]) if shift else 0.0))
    width = max(box.x for box in boxes.values()) + BOX_WIDTH / 2 + MARGIN
    height = max(box.y for box in boxes.values()) + BOX_HEIGHT / 2 + MARGIN
    parts = [*arrows, *(box.as_svg() for box in boxes.values())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        'aria-labelledby="title" font-family="system-ui, sans-serif" font-size="14" text-anchor="middle" '
        'fill="#222222">\n'
        f'<title id="title">{escape(title)}</title>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0l8 4-8 4z" fill="#555555"/></marker></defs>\n'
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    """Draw each source next to it."""
    for source in sorted(FOLDER.glob("*.txt")):
        source.with_suffix(".svg").write_text(draw(source.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
