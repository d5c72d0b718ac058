"""Draws the pictures of concepts.md: `python docs/pictures.py` writes them beside itself.

They have a ground of their own, so that they can be read on light and dark pages.
"""

from html import escape
from pathlib import Path

WIDTH = 760
INK, QUIET, LINE = "#1f2933", "#56616e", "#8b95a1"
CONTROL, PREFILL, DECODE = ("#eceff3", LINE), ("#dbe9f7", "#2f6fb3"), ("#dcefe3", "#2e7d4f")
KEYS, KEPT, QUERY, STATE = "#c2570c", "#2e7d4f", "#7c3aed", "#0f766e"


class Drawing:
    """An SVG under construction; lengths are in pixels.

    Args:
        about: what is to be seen, for those who do not see it.
    """

    def __init__(self, height: int, about: str) -> None:
        colours = (LINE, KEYS, KEPT, QUERY, STATE)
        heads = "".join(
            f'<marker id="{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
            f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            for colour in colours
        )
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'font-family="DejaVu Sans, Verdana, Helvetica, sans-serif">',
            f"<title>{escape(about)}</title><defs>{heads}</defs>",
        ]
        self.box(0.5, 0.5, WIDTH - 1, height - 1, ("#fcfcfa", "#d5d9de"), radius=10)

    def text(
        self,
        x: float,
        y: float,
        said: str,
        *,
        size: int = 13,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{escape(said)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        look: tuple[str, str],
        title: str = "",
        note: str = "",
        radius: int = 6,
    ) -> None:
        fill, edge = look
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f'fill="{fill}" stroke="{edge}"/>'
        )
        middle = y + height / 2 + 5 - (8 if note else 0)
        if title:
            self.text(x + width / 2, middle, title, bold=True)
        if note:
            self.text(x + width / 2, middle + 17, note, size=11, colour=QUIET)

    def arrow(
        self, points: str, colour: str = LINE, *, both: bool = False, width: float = 1.5
    ) -> None:
        """A line through `points`, as in `<polyline>`, with a head at its end, or at both."""
        start = f' marker-start="url(#{colour[1:]})"' if both else ""
        self._parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{start} marker-end="url(#{colour[1:]})"/>'
        )

    def svg(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def services() -> Drawing:
    drawing = Drawing(400, "Who talks to whom: clients, gateway, scheduler, directory, shards")
    drawing.box(24, 50, 120, 56, CONTROL, "HTTP clients", "openai, curl")
    drawing.box(24, 150, 120, 56, CONTROL, "SDK, spsctl", "Python")
    drawing.box(230, 100, 120, 56, CONTROL, "gateway", "text and tokens")
    drawing.box(436, 50, 130, 56, CONTROL, "scheduler", "who, where, when")
    drawing.box(606, 50, 130, 56, CONTROL, "KV directory", "which page is where")
    drawing.arrow("144,78 187,78 187,118 230,118")
    drawing.arrow("144,178 187,178 187,138 230,138")
    drawing.arrow("350,118 393,118 393,78 436,78")
    drawing.text(398, 134, "requests", size=11, colour=QUIET, anchor="start")
    drawing.arrow("566,78 606,78", both=True)

    drawing.box(384, 166, 368, 218, ("#ffffff", "#d5d9de"))
    drawing.box(400, 182, 140, 56, PREFILL, "prefill-0", "first part")
    drawing.box(596, 182, 140, 56, PREFILL, "prefill-1", "second part")
    drawing.box(400, 302, 140, 56, DECODE, "decode-0", "KV, answers queries")
    drawing.box(596, 302, 140, 56, DECODE, "decode-1", "KV, owner: generates")
    drawing.arrow("501,106 501,166")
    drawing.text(509, 144, "plans, to every shard", size=11, colour=QUIET, anchor="start")
    drawing.arrow("540,210 596,210", KEYS, width=2.5)
    drawing.text(568, 203, "K,V", size=11, colour=KEYS, bold=True)
    drawing.arrow("470,238 470,302", KEPT, width=2.5)
    drawing.arrow("666,238 666,302", KEPT, width=2.5)
    drawing.text(568, 266, "K,V of each layer,", size=11, colour=KEPT, bold=True)
    drawing.text(568, 281, "as soon as it is done", size=11, colour=KEPT, bold=True)
    drawing.arrow("596,322 540,322", QUERY, width=2.5)
    drawing.text(568, 315, "q", size=11, colour=QUERY, bold=True)
    drawing.arrow("540,338 596,338", STATE, width=2.5)
    drawing.text(568, 353, "states", size=11, colour=STATE, bold=True)
    drawing.arrow("666,358 666,372 290,372 290,156")
    drawing.text(300, 270, "tokens", size=11, colour=QUIET, anchor="start")

    drawing.arrow("24,288 60,288")
    drawing.text(68, 292, "control: HTTP, ZeroMQ", size=11, colour=QUIET, anchor="start")
    drawing.arrow("24,314 60,314", KEYS, width=2.5)
    drawing.text(68, 318, "in colour: tensors, UCX or TCP", size=11, colour=QUIET, anchor="start")
    drawing.text(24, 30, "The services", bold=True, size=15, anchor="start")
    return drawing


def prefill() -> Drawing:
    drawing = Drawing(380, "A prompt is split over prefill shards, its KV over decode shards")
    drawing.text(24, 30, "One prompt, three prefill shards", bold=True, size=15, anchor="start")
    spans = [(24, 290), (314, 230), (544, 192)]
    for index, (x, width) in enumerate(spans):
        drawing.box(x, 50, width, 30, ("#ffffff", LINE), radius=0)
        drawing.text(x + width / 2, 70, ("beginning", "middle", "end")[index], size=12)
        drawing.arrow(f"{x + width / 2:g},80 {x + width / 2:g},112")
        drawing.box(x + 14, 112, width - 28, 60, PREFILL, f"prefill-{index}")
    drawing.text(736, 30, "the prompt's tokens", size=11, colour=QUIET, anchor="end")
    drawing.arrow("300,132 328,132", KEYS, width=2.5)
    drawing.arrow("530,132 558,132", KEYS, width=2.5)
    drawing.arrow("230,172 230,194 620,194 620,172", KEYS, width=2.5)
    drawing.text(472, 213, "K,V of earlier tokens,", size=11, colour=KEYS, anchor="start")
    drawing.text(472, 229, "to later shards", size=11, colour=KEYS, anchor="start")

    drawing.box(24, 300, 400, 56, DECODE, "decode-0", "KV of its tokens, in pages")
    drawing.box(
        424, 300, 312, 56, DECODE, "decode-1, the owner", "KV of the rest, room for the answer"
    )
    for x in (100, 370, 460, 680):
        drawing.arrow(f"{x},172 {x},300", KEPT, width=2.5)
    drawing.text(112, 250, "each layer's K,V leave", size=11, colour=KEPT, anchor="start")
    drawing.text(112, 266, "while the next is computed", size=11, colour=KEPT, anchor="start")
    return drawing


def decoding() -> Drawing:
    drawing = Drawing(330, "In decoding the query moves, and keys and values stay")
    drawing.text(24, 30, "One token, one layer", bold=True, size=15, anchor="start")
    for x, name, note in ((24, "decode-0", "holder"), (476, "decode-1", "owner")):
        drawing.box(x, 50, 260, 210, DECODE)
        drawing.text(x + 130, 74, f"{name}, {note}", bold=True)
    drawing.box(44, 94, 220, 34, ("#fbe6d3", KEYS), radius=3)
    drawing.text(154, 116, "K,V of tokens 0 to 4095", size=12)
    drawing.box(496, 94, 220, 34, ("#fbe6d3", KEYS), radius=3)
    drawing.text(606, 116, "K,V of the rest, and new ones", size=12)
    drawing.arrow("476,156 284,156", QUERY, width=2.5)
    drawing.text(380, 147, "q, of the whole batch", size=12, colour=QUERY, bold=True)
    drawing.arrow("284,214 476,214", STATE, width=2.5)
    drawing.text(380, 234, "state: out and lse", size=12, colour=STATE, bold=True)
    for x in (154, 606):
        drawing.arrow(f"{x},128 {x},166")
        drawing.text(x, 184, "attention of q", size=12)
        drawing.text(x, 200, "to the keys that are here", size=12)
    drawing.text(606, 240, "the states are merged: exact", size=12, bold=True)
    drawing.arrow("606,206 606,224")
    drawing.text(
        380, 292, "What moves is as large for 1,000 tokens of context as for 100,000.", size=13
    )
    drawing.text(
        380,
        312,
        "out is the attention over some keys, lse says how much it weighs.",
        size=11,
        colour=QUIET,
    )
    return drawing


def csa() -> Drawing:
    drawing = Drawing(350, "CSA: probes find which blocks of keys and values are worth sending")
    drawing.text(
        24, 30, "One layer, between two prefill shards", bold=True, size=15, anchor="start"
    )
    drawing.box(24, 50, 300, 230, PREFILL)
    drawing.text(174, 74, "earlier shard, the owner of keys", bold=True)
    drawing.box(436, 50, 300, 230, PREFILL)
    drawing.text(586, 74, "later shard, the consumer", bold=True)

    for row in range(16):
        probe = row % 5 == 2 or row > 13
        look = (QUERY, QUERY) if probe else ("#ffffff", "#c9d3de")
        drawing.box(456 + 16 * row, 100, 14, 26, look, radius=2)
    drawing.text(586, 144, "its rows; a few are probes", size=11, colour=QUIET)
    drawing.arrow("436,113 324,113", QUERY, width=2.5)
    drawing.text(380, 104, "1. probes", size=12, colour=QUERY, bold=True)

    worth = [9, 1, 0, 4, 0, 0, 8, 0, 1, 5, 0, 2, 0, 0, 7, 5]
    kept = []
    for block, score in enumerate(worth):
        x = 46 + 16 * block
        drawing.box(x, 140 - 4 * score, 14, 4 * score + 1, (QUERY, "none"), radius=0)
        look = (
            (KEYS, KEYS)
            if score > 6
            else ("#f3b98a", KEYS)
            if score > 3
            else ("#ffffff", "#c9d3de")
        )
        drawing.box(x, 150, 14, 26, look, radius=2)
        kept += [look] if score > 3 else []
    drawing.text(174, 196, "2. what each block of 64 keys is worth to them", size=11, colour=QUIET)
    for place, (shade, label) in enumerate(
        ((KEYS, "8 bits"), ("#f3b98a", "4 bits"), ("#ffffff", "stays"))
    ):
        drawing.box(60 + 86 * place, 214, 14, 14, (shade, KEYS if place < 2 else LINE), radius=2)
        drawing.text(80 + 86 * place, 226, label, size=11, colour=QUIET, anchor="start")
    drawing.arrow("324,190 436,190", KEYS, width=2.5)
    drawing.text(380, 181, "3. blocks", size=12, colour=KEYS, bold=True)
    for place, look in enumerate(kept):
        drawing.box(456 + 16 * place, 177, 14, 26, look, radius=2)
    drawing.text(574, 194, "and its own keys", size=11, colour=QUIET, anchor="start")
    drawing.text(586, 236, "4. attention to both, merged", size=12, bold=True)
    drawing.text(
        380,
        308,
        "Real queries decide what travels: with balanced about a quarter of all bytes.",
        size=13,
    )
    drawing.text(
        380,
        328,
        "Further probes only measure: their loss is reported with the answer.",
        size=11,
        colour=QUIET,
    )
    return drawing


PICTURES = {drawn.__name__: drawn for drawn in (services, prefill, decoding, csa)}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
