"""A model on the Hugging Face Hub: what goes there, and how."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vitas.config import UserError, one_line
from vitas.files import make_folder
from vitas.models import saved
from vitas.report import card
from vitas.version import __version__

SENT = ("model.safetensors", "config.json", "architecture.yaml")


def write(folder: Path, hub: str, output: Path) -> list[Path]:
    """Writes all that the Hub gets of a model folder into `output`; returns the files.

    Raises:
        UserError: The folder holds no whole model, or `hub` is no name of a model.
    """
    _check_name(hub)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'}: No such file or directory: it says classes and preprocessing")
    saved.load_model(folder)  # whole, and fitting together
    make_folder(output)
    sent = [name for name in (*SENT, card.EVALUATION) if (folder / name).is_file()]
    for name in sent:
        shutil.copyfile(folder / name, output / name)
    card.write(folder, output, hub)
    return [output / name for name in (*sent, card.README, card.PICTURE)]


def push(folder: Path, hub: str, *, private: bool = False) -> str:
    """Uploads a model folder as the model `USER/NAME`, which is made if there is none; returns its address.

    Raises:
        UserError: As `write`; or the Hub is not reached, or refuses.
    """
    with TemporaryDirectory() as scratch:
        write(folder, hub, Path(scratch))
        api = HfApi(library_name="vitas", library_version=__version__)
        try:
            address = api.create_repo(hub, private=private, exist_ok=True)
            api.upload_folder(repo_id=hub, folder_path=scratch, commit_message="Add model")
        except Exception as error:  # network, login and rights: the client raises dozens of kinds
            raise UserError(f"{hub}: not sent to the Hub: {one_line(error)}; hf auth login logs in") from None
    return str(address)


def _check_name(hub: str) -> None:
    try:
        validate_repo_id(hub)
    except HFValidationError as error:
        raise UserError(f"{one_line(hub)}: expected USER/NAME: {one_line(error)}") from None
    if hub.count("/") != 1:
        raise UserError(f"{hub}: expected USER/NAME")
