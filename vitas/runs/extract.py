"""A subnet of a trained supernet as a model of its own."""

from __future__ import annotations

from pathlib import Path

from vitas import recipe
from vitas.config import UserError, parse
from vitas.data import augment
from vitas.files import make_folder
from vitas.models import saved
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer
from vitas.report import card
from vitas.runs import claims, found
from vitas.sections import Data
from vitas.spaces.space import SearchSpace


def extract(run: Path, name: str, output: Path) -> VisionTransformer:
    """Writes a subnet of a run's supernet as a model folder, with the supernet's weights; needs none of the data.

    Args:
        run: The folder of a run.
        name: What `retrain.architecture` takes: `best`, `front:2`, a key, a name, a YAML file.
        output: The folder for the model.

    Raises:
        UserError: There is no such run, supernet or architecture, or it is not in the supernet's space.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run / 'recipe.yaml'}: No such file or directory: expected the folder of a run")
    settings = recipe.of_run(run)
    folder = settings.supernet_folder
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights}: No such file or directory: the run has no trained supernet")
    made_with = claims.made_with(folder)
    if not {"space", "classes", "data", "supernet"} <= made_with.keys():
        raise UserError(f"{folder / 'settings.yaml'}: expected what the supernet was trained with; copy it as well")
    architecture = found.architecture(name, settings.search_folder)
    space = parse(SearchSpace, made_with["space"], source=str(folder / "settings.yaml"))
    classes = list(made_with["classes"].values())
    how = {key: made_with["supernet"][key] for key in ("sharing", "attention")}
    net = Supernet(space, len(classes), **how)
    saved.load_weights(net, weights)
    model = net.extract(architecture)
    data = parse(Data, made_with["data"], source=str(folder / "settings.yaml"))
    model.pretrained_cfg |= augment.preprocessing(space.image_size, data) | {"label_names": classes}
    make_folder(output)
    if (output / "settings.yaml").is_file() and claims.made_with(output).keys() >= {"retrain"}:
        raise UserError(f"{output}: holds a model that was trained there: name another folder by -o")
    saved.save_model(output, model)
    about = {key: made_with[key] for key in ("seed", "data", "classes", "supernet") if key in made_with}
    claims.sign(output, {"extracted": {"run": settings.name, "architecture": name}} | about)
    card.write(output)
    return model
