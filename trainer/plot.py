"""The picture of a run: its losses over its steps, as a PNG.

It does: draw the training loss (each step faint, smoothed strong), the validations, and the step that was kept.
It does not: open a window or use pyplot's global state. It lies beside the adapter folder, never in it.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.checkpoint import Position

SIZE_INCHES = (9.0, 5.0)
DOTS_PER_INCH = 150
MARGINS = {"left": 0.08, "right": 0.97, "bottom": 0.11, "top": 0.9}
SMOOTHED_SHARE = 0.03  # of all steps: the memory of the running mean
SHORTEST_MEMORY_STEPS = 4.0
INK, FAINT, TRAIN, VALIDATION = "#1f2933", "#d5dbe1", "#2f6fde", "#d9480f"


def draw_losses(position: Position, path: Path, *, title: str) -> None:
    """Draw the losses of a finished run into `path`."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(**MARGINS)
    axes = figure.add_subplot()
    steps = [step for step, _ in position.losses]
    losses = [loss for _, loss in position.losses]
    axes.plot(steps, losses, color=TRAIN, alpha=0.22, linewidth=0.9)
    axes.plot(steps, _smoothed(losses), color=TRAIN, linewidth=2.2, label="training (smoothed)")
    if position.validations:
        _draw_validations(axes, position)
    _dress(axes, title=title, last_step=position.step)
    figure.savefig(path, metadata={"Software": None})


def _draw_validations(axes: Axes, position: Position) -> None:
    steps, losses = zip(*position.validations, strict=True)
    axes.plot(steps, losses, color=VALIDATION, linewidth=1.4, marker="o", markersize=4.5, label="validation")
    if position.best_step is None or position.best_loss is None:
        return
    axes.axvline(position.best_step, color=VALIDATION, linewidth=0.9, linestyle=(0, (4, 4)), alpha=0.7)
    axes.plot([position.best_step], [position.best_loss], color=VALIDATION, marker="*", markersize=15, zorder=5)
    late = position.best_step > position.step / 2
    axes.annotate(
        f"best: {position.best_loss:.4g} at step {position.best_step}",
        (position.best_step, position.best_loss),
        xytext=(-12 if late else 12, 16),
        textcoords="offset points",
        ha="right" if late else "left",
        color=VALIDATION,
        fontsize=10,
    )


def _dress(axes: Axes, *, title: str, last_step: int) -> None:
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=12)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss per label token", color=INK)
    axes.set_xlim(-0.015 * max(1, last_step), max(1, last_step) * 1.015)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.legend(loc="upper right", labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.9)


def _smoothed(losses: list[float]) -> list[float]:
    """A running mean with exponential weights, corrected at its start so that it does not lean to zero."""
    keep = 1 - 1 / max(SHORTEST_MEMORY_STEPS, len(losses) * SMOOTHED_SHARE)
    mean, weight, result = 0.0, 0.0, []
    for loss in losses:
        mean = keep * mean + (1 - keep) * loss
        weight = keep * weight + (1 - keep)
        result.append(mean / weight)
    return result
