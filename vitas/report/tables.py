"""The final figures as text."""

from __future__ import annotations

from typing import Any

from vitas.report import tracking


def table(rows: dict[str, dict[str, Any]], images: int) -> str:
    """The final figures as text, a line for each model; below them what shape each has."""
    lines = [f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}{'MACs':>16}{'params':>13}{'images/s':>10}"]
    for name, row in rows.items():
        lines.append(f"{name:<12}{row[tracking.TOP1]:>9.2f}{row[tracking.TOP5]:>9.2f}{row['macs']:>16,}"
                     f"{row['params']:>13,}{row[tracking.THROUGHPUT]:>10.0f}")  # fmt: skip
    lines += [f"{name}: {row['shape']}" for name, row in rows.items()]
    return "\n".join([*lines, f"on {images} test images"])
