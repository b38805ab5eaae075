"""Curves of what a bench measured, as SVG for README and docs. Needs matplotlib, from requirements-dev.txt."""

from __future__ import annotations

from pathlib import Path

Curves = dict[str, list[tuple[float, float]]]  # points (x, y) by name


def draw(file: Path, curves: Curves, x_label: str, y_label: str) -> None:
    """Both axes logarithmic, so that what grows in proportion is a straight line at 45 degrees. Deterministic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "voxtral", "svg.fonttype": "none", "font.family": "sans-serif"}):
        axes = (figure := Figure(figsize=(6, 3.6), layout="constrained")).subplots()
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        xs = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(xs, [f"{x:g}" for x in xs], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, format="svg", metadata={"Date": None})
