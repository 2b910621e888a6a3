"""Architectures drawn block by block: as text, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import zip_longest

from vitas.spaces.architecture import Architecture, Block

WIDTH = 80
"""Columns of a drawing."""


def bars(architecture: Architecture) -> list[str]:
    """A line for each block, with bars as long as q, k and v and as the MLP are wide."""
    widest = _widest([architecture])
    room = (WIDTH - 32) // 2
    lines = [f"{'block':<7}{'heads':>5}  {'qkv':>5}  {'':<{room}} {'mlp':>5}"]
    for number, block in enumerate(architecture.blocks, 1):
        if block is None:
            lines.append(f"{number:<7}{'-':>5}  skipped")
        else:
            qkv, mlp = (_bar(wide / widest, room) for wide in (block.qkv_dim, block.mlp_dim))
            line = f"{number:<7}{block.heads:>5}  {block.qkv_dim:>5}  {qkv} {block.mlp_dim:>5}  {mlp}"
            lines.append(line.rstrip())
    return lines


def side_by_side(architectures: Mapping[str, Architecture], facts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Two architectures, each in a column: shape, costs, and blocks with bars on one scale."""
    widest = _widest(list(architectures.values()))
    half = (WIDTH - 14) // len(architectures)
    room = (half - 14) // 2

    def row(name: str, cells: Sequence[str]) -> str:
        return f"{name:<14}" + "".join(f"{cell:<{half}}" for cell in cells).rstrip()

    def drawn(block: Block | None) -> str:
        if block is None:
            return "  - skipped"
        qkv, mlp = (_bar(wide / widest, room) for wide in (block.qkv_dim, block.mlp_dim))
        return f"{block.heads:>3} {block.qkv_dim:>4} {qkv}{block.mlp_dim:>4} {mlp}"

    both = list(architectures.values())
    lines = [row("", [name if len(name) < half else f"…{name[2 - half :]}" for name in architectures])]
    lines += [row(name.replace("_", " "), [str(getattr(one, name)) for one in both]) for name in _SHAPE]
    lines.append(row("depth", [str(len(one.kept)) for one in both]))
    lines += [
        row(name.replace("_", " "), [f"{each[name]:,}" for each in facts.values()])
        for name in next(iter(facts.values()))
    ]
    lines.append(row("block", [f"{'h':>3} {'qkv':>4} {'':<{room}}{'mlp':>4}" for _ in both]))
    for number, blocks in enumerate(zip_longest(*(one.blocks for one in both), fillvalue="none"), 1):
        lines.append(row(str(number), ["" if isinstance(block, str) else drawn(block) for block in blocks]))
    return lines


_SHAPE = ("image_size", "patch_size", "embed_dim")


def picture(architecture: Architecture) -> bytes:
    """A PNG: each block a row, with bars for its width (that of all), q, k and v, and the MLP."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(architecture.blocks)
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * count), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, block in enumerate(architecture.blocks):
        if block is None:
            axes.text(0, place, " skipped", va="center", color="0.5")
            continue
        axes.barh(place - 0.2, block.qkv_dim, 0.36, color="tab:blue")
        axes.barh(place + 0.2, block.mlp_dim, 0.36, color="tab:orange")
        axes.text(block.qkv_dim, place - 0.2, f" {block.heads} heads", va="center", fontsize=7)
    axes.axvline(architecture.embed_dim, color="0.6", linestyle=":")
    axes.set(yticks=range(count), yticklabels=range(1, count + 1), ylim=(count - 0.5, -0.5), ylabel="block")
    axes.set_xlabel("channels: q, k and v (blue), MLP (orange), width (dotted)")
    axes.set_title(architecture.in_words, fontsize=10)
    axes.margins(x=0.15)
    png = BytesIO()
    canvas.print_png(png)
    return png.getvalue()


def _widest(architectures: Sequence[Architecture]) -> int:
    return max((max(block.qkv_dim, block.mlp_dim) for one in architectures for block in one.kept), default=1)


def _bar(part: float, room: int) -> str:
    """A bar over a part of so many columns, to an eighth of one."""
    whole, eighths = divmod(round(8 * part * room), 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[eighths] if eighths else "")).ljust(room)
