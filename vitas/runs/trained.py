"""What is trained already, and a stage starts from: a supernet, this run's or another one's, or a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitas.config import UserError
from vitas.data.splits import Split
from vitas.models import saved
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer
from vitas.runs import claims
from vitas.runs.run import Run
from vitas.spaces.architecture import Architecture


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained supernet, and what it was trained with."""

    run: Run
    folder: Path
    seed: int
    holdout: float
    sharing: str
    attention: str

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / "model.safetensors"

    @cached_property
    def checksum(self) -> str:
        """The sum of its weights. All ranks ask for it."""
        return self.run.checksum(self.weights)

    @property
    def trained_on(self) -> Split:
        """The training images that it has seen."""
        return self.run.train.hold_out(self.holdout, self.seed)[0]

    @property
    def held_out(self) -> Split:
        """The training images that it has not seen."""
        return self.run.train.hold_out(self.holdout, self.seed)[1]

    def load(self) -> Supernet:
        """The supernet, with its weights."""
        net = self.run.new_supernet(sharing=self.sharing, attention=self.attention)
        saved.load_weights(net, self.weights)
        return net

    def model(self, architecture: Architecture) -> VisionTransformer:
        """The subnet with the supernet's weights, for images of the supernet's size."""
        net = self.load()
        return net.extract(architecture.model_copy(update={"image_size": net.space.image_size}))


@dataclass(frozen=True)
class TrainedModel:
    """A trained model of any classes and image size."""

    run: Run
    weights: Path
    """The file of its weights."""

    @cached_property
    def checksum(self) -> str:
        """The sum of its weights. All ranks ask for it."""
        return self.run.checksum(self.weights)

    def model(self, architecture: Architecture) -> VisionTransformer:
        """The model; its blocks are those of the architecture."""
        model = saved.load_model(self.weights)
        check_blocks(model, architecture, self.weights)
        return model


def check_blocks(model: VisionTransformer, architecture: Architecture, weights: Path | str) -> None:
    """Sees to it that a model can be where the training of an architecture starts.

    Raises:
        UserError: They differ in more than the size of images, and the place of skipped blocks.
    """
    for name in ("patch_size", "embed_dim", "kept"):
        theirs, ours = getattr(model.architecture, name), getattr(architecture, name)
        if theirs != ours:
            shapes = f"{model.architecture.in_words}; retrain.architecture is {architecture.in_words}"
            raise UserError(f"retrain.init: {weights}: another architecture than retrain.architecture: {shapes}")


def start(run: Run) -> TrainedSupernet | TrainedModel | None:
    """What stage `retrain` starts from, by `retrain.init`; None for new weights."""
    init = run.recipe.retrain.init
    if run.recipe.retrain.starts_from_model:
        return TrainedModel(run, saved.weights_file(init))
    return find(run, "retrain.init: supernet") if init == "supernet" else None


def find(run: Run, purpose: str) -> TrainedSupernet:
    """The trained supernet, for a stage that needs it for `purpose`.

    Raises:
        UserError: There is none; or it was trained on other images, or is of another space; says which keys differ.
    """
    recipe, folder = run.recipe, run.recipe.supernet_folder
    elsewhere = recipe.supernet.trained_in is not None
    if not (folder / "model.safetensors").is_file():
        help = "supernet.from names a run, or its folder supernet" if elsewhere else "add stage supernet"
        raise UserError(
            f"{folder / 'model.safetensors'}: No such file or directory: {purpose} needs a supernet; {help}"
        )
    how = {name: getattr(recipe.supernet, name) for name in ("sharing", "attention")}
    own = {"seed": recipe.seed, "holdout": recipe.data.holdout, "supernet": how}
    made_with = claims.made_with(folder)
    if elsewhere and not {"space", *own} <= made_with.keys():
        raise UserError(f"{folder / 'settings.yaml'}: expected what the supernet was trained with; copy it as well")
    # Of this run's own supernet all is compared: another seed or hold-out would score candidates on images that it
    # was trained on. One from elsewhere brings its own along.
    needed = run.settings("space") | own
    if elsewhere:
        needed = {name: value for name, value in needed.items() if name not in own}
    if different := claims.missing_or_other(run.with_classes(made_with), claims.plain(needed)) if made_with else []:
        lines = ", ".join(f"{key}: {old}, and the recipe now says {new}" for key, old, new in different)
        help = "" if elsewhere else "; give the run another name, or train the supernet again"
        raise UserError(f"{folder}: trained with {lines}{help}")
    made_with = made_with or own
    return TrainedSupernet(
        run=run,
        folder=folder,
        seed=made_with["seed"],
        holdout=made_with["holdout"],
        **{name: made_with["supernet"][name] for name in how},
    )
