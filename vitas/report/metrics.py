"""What each metric is. `python -m vitas.report.metrics > docs/METRICS.md` writes the page; a test compares them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vitas.report import names as t
from vitas.report.tables import RANKINGS


class Axis(NamedTuple):
    """What counts the steps of a kind of stage."""

    kinds: tuple[str, ...]
    stages: str
    """The stages of that kind, in words."""
    step: str


class Metric(NamedTuple):
    """A figure in the lines of some stages."""

    name: str
    unit: str
    meaning: str
    when: str = ""
    """In which runs it is there, if not in all."""


TRAINED = Axis(("supernet", "retrain", "baseline"), "`supernet`, `retrain`, `baseline`", "optimizer steps")
SEARCHED = Axis(("evolve",), "`evolve`; of a search with another name `evolve/NAME`", "generations")
RANKED = Axis(("rank",), "`rank`", "trainings")
EVALUATED = Axis(("evaluate",), "`evaluate`", "always 0")

VALIDATED = "`validate_every`"
SEVERAL = "one a budget of several, with `_NAME` at the end"

METRICS: dict[Axis, list[Metric]] = {
    TRAINED: [
        Metric(t.LOSS, "nats", "mean training loss of the steps since the line before"),
        Metric(t.LR, "", "learning rate"),
        Metric(t.GRAD_NORM, "", "norm of the gradient of this step, before it is clipped"),
        Metric(t.IMAGES_PER_SECOND, "images/s", "of all ranks together, without validations"),
        Metric(
            t.MFU,
            "%",
            "part of the devices' peak: 6 FLOPs a multiply-add and image, against the data sheet",
            "GPUs whose peak is known",
        ),
        Metric(t.EPOCH, "epochs", "passes over the training images so far"),
        Metric(t.LEFT_OUT, "steps", "steps left out because their loss was not finite", "there are such"),
        Metric(t.CHANGED, "", "settings that are others from here on: `{name: [before, now]}`", "there are such"),
        Metric(t.MODEL, "", "what the validation of this line is of: a subnet, the `model`, its `average`", VALIDATED),
        *(
            Metric(f"{images}_{name}", unit, f"{what} on the {which}", f"{VALIDATED}, {stages}")
            for images, which, stages in (
                (t.HOLDOUT, "hold-out", "supernet"),
                (t.TEST, "test images", "other trainings"),
            )
            for name, unit, what in ((t.TOP1, "%", "top-1"), (t.TOP5, "%", "top-5"), (t.LOSS, "nats", "cross-entropy"))
        ),
        Metric(t.SECONDS, "s", "how long this validation took", VALIDATED),
    ],
    SEARCHED: [
        Metric(t.BEST[t.TOP1], "%", f"top-1 of the best candidate so far; {SEVERAL}"),
        Metric(t.BEST[t.LOSS], "nats", f"loss of the best candidate so far; {SEVERAL}", "`loss` is an objective"),
        Metric(t.MEDIAN[t.TOP1], "%", "median top-1 of the generation"),
        Metric(t.MEDIAN[t.LOSS], "nats", "median loss of the generation", "`loss` is an objective"),
        Metric(t.TOP1, "%", "mean top-1 of the generation"),
        Metric(t.FEASIBLE, "%", "part of the generation that is inside a budget"),
        Metric(t.SCORED, "candidates", "scored so far"),
        Metric(t.CANDIDATES_PER_HOUR, "1/h", "candidates scored an hour", "some were not known before"),
        Metric(t.HYPERVOLUME, "", f"part, 0 to 1, of what could be had that the front dominates; {SEVERAL}"),
    ],
    RANKED: [
        *(
            Metric(f"{figure}_{name}", unit, f"{what} of the ranking by {words}; {SEVERAL}")
            for name, words in RANKINGS.items()
            for figure, unit, what in (
                (t.TAU, "", "Kendall's tau"),
                (t.RHO, "", "Spearman's rho"),
                (t.REGRET, "%", "top-1 lost by the favourite"),
            )
        ),
        Metric(t.CEILING, "", f"tau of the true ranking, for all the noise of seeds; {SEVERAL}", "`rank.seeds` > 1"),
    ],
    EVALUATED: [
        Metric(t.MODEL, "", "`found`, `uniform ViT`, or as `retrain.architecture` says"),
        Metric(t.INPUTS, "", "short name of all that the figures come from"),
        Metric(t.TOP1, "%", "top-1 on the test images"),
        Metric(t.TOP5, "%", "top-5 on the test images"),
        Metric("flops", "multiply-adds", "as the paper counts them"),
        Metric("macs", "multiply-adds", "exact"),
        Metric("params", "", "parameters"),
        Metric(t.THROUGHPUT, "images/s", "at batches of `evaluate.throughput_batch`"),
        Metric(t.SHAPE, "", "the architecture in words"),
    ],
}


ABOUT = """\
A run's `metrics.jsonl` has one JSON object a line. Each has a `stage` and a `step`; a step is there once, also in a run
that was killed and goes on. What `retrain.architecture` lists has stages of its own, `retrain/NAME`.

wandb and other trackers get the numbers as `KIND/NAME`, such as `supernet/loss`, on the axis `KIND/step`; those of a
line with a `model` as `KIND/MODEL/NAME`, such as `retrain/average/test_top1`. KIND is the stage up to a slash. Each
stage is a run of wandb's, its job type KIND, its group the name of our run."""


def page() -> str:
    """The text of docs/METRICS.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "<!-- Written by `python -m vitas.report.metrics > docs/METRICS.md`. -->"
    yield ""
    yield ABOUT
    for axis, metrics in METRICS.items():
        yield ""
        yield f"## {axis.stages}"
        yield ""
        yield f"`step`: {axis.step}."
        yield ""
        yield "| name | unit | what | in runs with |"
        yield "|---|---|---|---|"
        for metric in metrics:
            yield f"| `{metric.name}` | {metric.unit} | {metric.meaning} | {metric.when or 'all'} |"
    yield ""
    yield "## On wandb alone"
    yield ""
    yield "| name | what |"
    yield "|---|---|"
    for name in t.CHOSEN:
        yield f"| `evolve/{name}` | histogram of what a generation has chosen |"
    yield "| `evolve/front` | the front of the search, a table |"
    yield "| `evolve/architecture` | the best architecture of each budget, a picture |"
    yield "| summary `found/top1`, `uniform_vit/macs`, ... | the final figures of `evaluate` |"
    yield "| artifacts | by `tracking.artifacts` the best architectures, or the final weights as well |"


if __name__ == "__main__":
    print(page(), end="")
