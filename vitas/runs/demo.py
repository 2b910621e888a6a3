"""A web page on which one drops an image and sees what the model says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitas.config import UserError, one_line
from vitas.data.images import UNREADABLE
from vitas.runs.predict import Classifier


def page(folder: Path, top: int = 5) -> Any:
    """The page for the model of a folder, as a `gradio.Interface`.

    Raises:
        UserError: gradio is missing; or as `Classifier.load`.
    """
    classifier = Classifier.load(folder)
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("vitas demo needs gradio: pip install 'vitas[demo]'") from None

    def classify(file: str | None) -> dict[str, float]:
        if file is None:
            raise gradio.Error("Drop an image first.", duration=None, print_exception=False)
        try:
            image = classifier.prepared({"bytes": None, "path": file})
        except UNREADABLE as error:
            raise gradio.Error(
                f"Not an image, or damaged: {one_line(error)}", duration=None, print_exception=False
            ) from None
        (guesses,) = classifier.guess([image], top)
        return dict(guesses)

    return gradio.Interface(
        classify,
        # A file rather than gradio's image: what it is, is found here as in training, and told in a line if it is none.
        gradio.File(label="Image", type="filepath"),
        gradio.Label(num_top_classes=top, label="What it is"),
        title=folder.resolve().name,
        flagging_mode="never",
    )
