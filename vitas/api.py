"""The stages as Python functions: each builds a recipe from its arguments, and runs that as the command line does."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch

from vitas.config import UserError, parse
from vitas.data import looked, sources
from vitas.files import expanded, make_folder, write_atomically
from vitas.models.saved import load_model, save_model
from vitas.models.vit import VisionTransformer
from vitas.recipe import Recipe, merge
from vitas.runs import fitted, stages
from vitas.runs.result import Result
from vitas.sections import Data
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget
from vitas.spaces.named import NAMED
from vitas.spaces.space import SearchSpace
from vitas.train.stop import EXIT_INTERRUPTED, SIGNALS

Images = datasets.Dataset | str | Path
"""A dataset in memory, or what `data.train` of a recipe names: a folder, files, a name on the Hub, `digits`."""


def search(
    train: Images,
    test: Images | None = None,
    *,
    budget: Mapping[str, Any] | Budget,
    output: str | Path,
    space: str | SearchSpace = "tiny",
    image_size: int | None = None,
    epochs: float = 100,
    batch_size: int | None = None,
    lr: float | None = None,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
    stages: Sequence[str] = ("supernet", "evolve", "retrain", "evaluate"),
    **sections: Mapping[str, Any],
) -> Result:
    """Finds an architecture inside a budget, trains it, and tests it. The same call again goes on where it stopped.

    Args:
        train: The training images.
        test: The test images; left out, those that lie beside the training images, or a fifth of each class of these.
        budget: Windows of costs, such as `{"macs": [0.5e6, 1e6]}`: a recipe's section `budget`.
        output: Folder of the run.
        space: The architectures: `tiny` (images of 16 to 32 pixels), `small` (64 to 96), the paper's `384` or `768`
            (224), or one of your own.
        image_size: Of a ready space, in pixels; left out, the largest of its sizes that the images fill.
        epochs: Of the supernet, and of the retraining.
        batch_size: Images of an optimizer step; left out, about a twentieth of the images, 1024 at most.
        lr: Peak learning rate; left out, by width and batch, half as much for the supernet.
        augment: Training augmentation: a recipe's section `supernet.augment`.
        seed: Seed of everything random.
        stages: What is done.
        sections: Anything else that a recipe says, by section: `evolve={"population": 20}`, `data={"workers": 0}`.

    Raises:
        UserError: An argument is not as expected, in one line.
    """
    folder, source = expanded(output), _data(train, test, expanded(output), sections.get("data"))
    split, _ = sources.open_splits(_parsed(source), cache=folder / "cache")
    if isinstance(space, str):
        if space not in NAMED:
            raise UserError(f"space: expected one of {', '.join(NAMED)}, or a SearchSpace, got {space}")
        side = image_size or looked.look(split).side
        space = fitted.space_of(space, side)
    if image_size is not None:
        space = parse(SearchSpace, space.model_dump() | {"image_size": image_size}, source="space")
    values = _values(folder, source, split, space, epochs, seed, stages, batch_size=batch_size, lr=lr, augment=augment)
    values["budget"] = budget.model_dump() if isinstance(budget, Budget) else budget
    if lr is None:
        values["supernet"] = fitted.supernet(values["supernet"])
    return _run(merge(values, dict(sections)), "vitas.search")


def retrain(
    architecture: Architecture | str,
    train: Images,
    test: Images | None = None,
    *,
    output: str | Path,
    supernet: Result | str | Path | None = None,
    epochs: float = 100,
    batch_size: int | None = None,
    lr: float | None = None,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
    **sections: Mapping[str, Any],
) -> Result:
    """Trains one architecture, and tests it. The same call again goes on where it stopped.

    Args:
        architecture: Such as `result.best`; or a name, such as `vitas_c`, or a YAML file.
        train: The training images.
        test: The test images, as of `search`.
        output: Folder of the run.
        supernet: A run whose supernet's weights it starts from; left out, from new ones.
        epochs: Of the training.
        batch_size: As of `search`.
        lr: As of `search`.
        augment: As of `search`.
        seed: Seed of everything random.
        sections: As of `search`.

    Raises:
        UserError: An argument is not as expected, in one line.
    """
    from vitas.models import registry

    _check("architecture", architecture, (Architecture, str, Path), "an Architecture, a name or a file")
    folder, source = expanded(output), _data(train, test, expanded(output), sections.get("data"))
    if isinstance(architecture, Architecture):
        file = folder / "architectures" / f"{architecture.key}.yaml"
        make_folder(folder)
        write_atomically(file, architecture.to_yaml())
        architecture = str(file)
    shape = registry.find(architecture := str(architecture))
    split, _ = sources.open_splits(_parsed(source), cache=folder / "cache")
    given: dict[str, Any] = {"retrain": {"architecture": architecture}}
    if supernet is None:
        space = _around(shape)
    else:
        made = supernet if isinstance(supernet, Result) else Result(supernet)
        space = made.recipe.space
        given = merge(given, {"supernet": {"from": str(made.folder)}, "retrain": {"init": "supernet"}})
    values = _values(
        folder,
        source,
        split,
        space,
        epochs,
        seed,
        ["retrain", "evaluate"],
        batch_size=batch_size,
        lr=lr,
        augment=augment,
    )
    del values["supernet"]
    return _run(merge(merge(values, given), dict(sections)), "vitas.retrain")


def evaluate(
    model: VisionTransformer | str | Path,
    data: Images,
    *,
    output: str | Path | None = None,
    **sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Tests a model: `top1` and `top5` in percent, `images`, costs, and `throughput` in images/s.

    Images are prepared as the model's `pretrained_cfg` says, and classes are told by their names.

    Args:
        model: A model, or a folder or file that `load_model` reads.
        data: The test images.
        output: Folder in which the decoded images are kept for another time; left out, they are not kept.
        sections: As of `search`.

    Raises:
        UserError: An argument is not as expected, in one line; the data has classes that the model has not.
    """
    _check("model", model, (VisionTransformer, str, Path), "a vitas.VisionTransformer, a folder or a file")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "evaluation" if output is None else expanded(output)
        if isinstance(model, VisionTransformer):
            weights = Path(scratch) / "model"
            save_model(weights, model)
        else:
            weights, model = expanded(model), load_model(model)
        known = model.pretrained_cfg
        prepared = {key: known[key] for key in ("mean", "std", "crop_pct") if known.get(key) is not None}
        source = {"test": _source(data, folder, "test")} | prepared | {"workers": fitted.workers()}
        values = _named(folder) | {
            "stages": ["evaluate"],
            "data": source,
            "space": _around(model.architecture).model_dump(),
            "evaluate": {"weights": str(weights)},
        }
        (row,) = _run(merge(values, dict(sections)), "vitas.evaluate").figures.values()
        return row


def rank(run: Result | str | Path, *, sample: int | None = None, seeds: int | None = None, epochs: float | None = None,
         **sections: Mapping[str, Any]) -> list[dict[str, Any]]:  # fmt: skip
    """Finds out whether a run's supernet ranks architectures as training each of them alone does.

    Args:
        run: A run with a trained supernet.
        sample: Architectures that are trained, of each budget.
        seeds: Trainings of each.
        epochs: Of a training.
        sections: As of `search`.

    Returns:
        Of each budget how well the rankings by supernet, costs and DSS agree with the trainings (Kendall's tau,
        Spearman's rho, regret), and the architectures: the `tables` of `ranking.json`.

    Raises:
        UserError: An argument is not as expected, in one line.
    """
    settings = (run if isinstance(run, Result) else Result(run)).recipe
    given = {"sample": sample, "seeds": seeds, "epochs": epochs}
    asked = {name: value for name, value in given.items() if value is not None}
    values = merge(settings.model_dump(mode="json"), {"stages": ["rank"], "rank": asked})
    result = _run(merge(values, dict(sections)), "vitas.rank")
    return json.loads((result.folder / "rank" / "ranking.json").read_text())["tables"]


def _run(values: dict[str, Any], source: str) -> Result:
    """Runs a recipe in this process, and leaves torch's threads and what signals do as they were."""
    settings = parse(Recipe, values, source=source)
    handlers, threads = {number: signal.getsignal(number) for number in SIGNALS}, torch.get_num_threads()
    try:
        stages.run(settings)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt from None
        raise
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
    return Result(settings.folder)


def _values(folder: Path, source: dict[str, Any], split: Any, space: SearchSpace, epochs: float, seed: int,
            stages: Sequence[str], **given: Any) -> dict[str, Any]:  # fmt: skip
    """The values of a recipe whose settings fit images and space, but for those that are given."""
    fitting = fitted.data(len(split.indices), space)
    training = fitted.training(round(len(split.indices) * (1 - fitting["holdout"])), space, epochs)
    training = merge(training, {name: value for name, value in given.items() if value is not None})
    return _named(folder) | {
        "seed": seed,
        "stages": list(stages),
        "data": fitting | source,
        "space": space.model_dump(),
        "evolve": fitted.search(),
        "supernet": training,
        "retrain": training,
    }


def _named(folder: Path) -> dict[str, Any]:
    return {"name": folder.name, "output": str(folder.parent)}


def _data(train: Images, test: Images | None, folder: Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    _check("data", given, (Mapping, type(None)), "keys and values")
    source = {"train": _source(train, folder, "train")} | dict(given or {})
    if test is not None:
        return source | {"test": _source(test, folder, "test")}
    return source if source.keys() & {"test", "test_part"} else source | looked.where_test_is(_parsed(source))


def _parsed(source: dict[str, Any]) -> Data:
    return parse(Data, source, source="data")


def _source(images: Images, folder: Path, part: str) -> str:
    """What a recipe calls these images; those in memory are written into the run folder, once.

    They are known by their fingerprint, which in another process is the same if they were made in the same way.
    """
    _check(part, images, (datasets.Dataset, str, Path), "a datasets.Dataset, a path or a name")
    if isinstance(images, (str, Path)):
        return str(images)
    place = folder / "data" / f"{part}-{images._fingerprint}"
    if not place.is_dir():
        make_folder(place.parent)
        written = place.with_name(f"{place.name}.{os.getpid()}.part")
        images.with_format(None).save_to_disk(str(written))
        try:
            written.rename(place)
        except OSError:  # another rank was faster
            shutil.rmtree(written)
    return str(place)


def _check(name: str, value: Any, kinds: tuple[type, ...], expected: str) -> None:
    """Refuses an argument that is none of these."""
    if not isinstance(value, kinds):
        kind = type(value)
        of = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
        raise UserError(f"{name}: expected {expected}, got {of}{kind.__name__}")


def _around(architecture: Architecture) -> SearchSpace:
    """A space for a recipe that searches none: of the size of an architecture."""
    block = max(architecture.kept, key=lambda block: block.qkv_dim)
    values = {name: {"max": width, "ratios": [1.0]} for name, width in (
        ("embed_dim", architecture.embed_dim), ("qkv_dim", block.qkv_dim), ("mlp_dim", block.mlp_dim)
    )}  # fmt: skip
    of_all = {"image_size": architecture.image_size, "patch_size": [architecture.patch_size]}
    return SearchSpace.model_validate(
        of_all | values | {"depth": len(architecture.blocks), "heads": [block.heads], "identity": "none"}
    )
