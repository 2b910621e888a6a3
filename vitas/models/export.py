"""A model in the formats that others run: ONNX, PyTorch's exported programs, safetensors. Run after it is written."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vitas.config import UserError, one_line
from vitas.files import write_atomically
from vitas.models.measured import median_seconds
from vitas.models.vit import VisionTransformer, from_state
from vitas.version import __version__

FORMATS = ("onnx", "pt2", "safetensors")
EXACT = 1e-4
"""How far logits in float32 may be from PyTorch's, where those are below 1; above in proportion."""
SIZES = (1, 7)
"""Batches by which a model for any batch is tried."""
THROUGHPUT_BATCH = 32


class Exported(NamedTuple):
    """A file, and how what it holds compares with the model in PyTorch."""

    file: Path
    bytes: int
    difference: float
    """The largest of any logit, on random images."""
    logits: float
    """The largest logit, without sign, in PyTorch."""
    batch: int
    """At which images/s were measured."""
    throughput: float
    """Images/s of the file."""
    throughput_torch: float
    """Images/s of PyTorch in float32, with as many threads."""


def export(
    model: VisionTransformer,
    file: Path,
    format: str,
    *,
    dynamic_batch: bool = False,
    half: bool = False,
    quantize: bool = False,
) -> Exported:
    """Writes a model in a format of `FORMATS`, reads it back, runs it on the CPU, and compares.

    Images go in and logits come out in float32, whatever is between. ONNX needs the extra `vitas[export]`; its input is
    `images` (batch, 3, height, width), its output `logits` (batch, classes), and its metadata holds what `about` says.

    Args:
        model: Takes images of its own size.
        file: What is written, whole or not at all.
        format: Which format.
        dynamic_batch: Whether any number of images goes in at once, or just one.
        half: Weights and arithmetic in float16.
        quantize: Weights of linear layers in 8 bits, activations quantized as they come (onnxruntime's dynamic mode).

    Raises:
        UserError: The format cannot do it; a package is missing; the logits in float32 are others than PyTorch's.
    """
    if quantize and (format != "onnx" or half):
        raise UserError(f"--quantize: needs --format onnx without --half, got {format}{' --half' * half}")
    if dynamic_batch and format == "safetensors":
        raise UserError("--dynamic-batch: safetensors holds weights alone, which take any batch anyway")
    model = deepcopy(model).cpu().eval().float()
    how = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}[format]
    try:
        with _quiet():
            content, run = how(model, _Whole(model, half).eval(), dynamic_batch, quantize)
    except ImportError as error:
        raise UserError(f"--format {format}: {error.name} is missing: pip install 'vitas[export]'") from None
    except UserError:
        raise
    except Exception as error:  # exporters and runtimes raise dozens of kinds
        raise UserError(f"{format}: cannot be exported: {one_line(error) or type(error).__name__}") from None
    any_batch = dynamic_batch or format == "safetensors"
    difference, largest = _compare(model, run, SIZES if any_batch else SIZES[:1])
    if not difference <= (np.inf if half or quantize else EXACT * max(1.0, largest)):
        raise UserError(f"{format}: its logits differ from PyTorch's by {difference:.1e}; nothing was written")
    write_atomically(file, content)
    batch = THROUGHPUT_BATCH if any_batch else 1
    images = _images(model, batch)
    seconds = {name: median_seconds(partial(work, images), torch.device("cpu"), 0.5)
               for name, work in {"file": run, "torch": torch.inference_mode()(model)}.items()}  # fmt: skip
    return Exported(file, len(content), difference, largest, batch, batch / seconds["file"], batch / seconds["torch"])


def about(model: VisionTransformer) -> dict[str, str]:
    """What goes with a model into a file, as JSON each: architecture, class names, and the preprocessing of images."""
    names = {"label_names": "class_names"} | {
        key: key for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    }
    known = {ours: model.pretrained_cfg[theirs] for theirs, ours in names.items() if theirs in model.pretrained_cfg}
    known |= {"architecture": model.architecture.model_dump(mode="json"), "vitas": __version__}
    return {name: json.dumps(value) for name, value in known.items()}


Runs = Callable[[Tensor], Tensor]
"""From images to logits, by what was read back from a file's content."""


class _Whole(nn.Module):
    """From float32 images to float32 logits, with nothing else to choose."""

    def __init__(self, model: VisionTransformer, half: bool) -> None:
        super().__init__()
        self.dtype = torch.float16 if half else torch.float32
        self.model = deepcopy(model).to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


def _program(model: VisionTransformer, whole: nn.Module, dynamic_batch: bool) -> Any:
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    return torch.export.export(whole, (_images(model, 2 if dynamic_batch else 1),), dynamic_shapes=shapes)


def _onnx(model: VisionTransformer, whole: nn.Module, dynamic_batch: bool, quantize: bool) -> tuple[bytes, Runs]:
    import onnxruntime
    import onnxscript  # noqa: F401  # what torch's exporter needs, and would only tell half-way

    program = torch.onnx.export(
        _program(model, whole, dynamic_batch), input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    graph: Any = program.model_proto
    if quantize:
        graph = _quantized(graph)
    for key, value in about(model).items():
        graph.metadata_props.add(key=key, value=value)
    content = graph.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _quantized(graph: Any) -> Any:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with TemporaryDirectory() as scratch:
        before, after = Path(scratch) / "before.onnx", Path(scratch) / "after.onnx"
        onnx.save(graph, before)
        quantize_dynamic(before, after, op_types_to_quantize=["MatMul", "Gemm"])
        return onnx.load(after)


def _pt2(model: VisionTransformer, whole: nn.Module, dynamic_batch: bool, _: bool) -> tuple[bytes, Runs]:
    file = BytesIO()
    program = _program(model, whole, dynamic_batch)
    torch.export.save(program, file, extra_files={f"{name}.json": value for name, value in about(model).items()})
    file.seek(0)
    return file.getvalue(), torch.inference_mode()(torch.export.load(file).module())


def _safetensors(model: VisionTransformer, whole: Any, _: bool, __: bool) -> tuple[bytes, Runs]:
    state = {name: value.contiguous() for name, value in whole.model.state_dict().items()}
    content = save(state, about(model))
    whole.model = from_state(model.architecture, load(content))
    return content, torch.inference_mode()(whole)


def _compare(model: VisionTransformer, run: Runs, sizes: tuple[int, ...]) -> tuple[float, float]:
    """The largest difference of a logit, which is NaN if any of the file's is, and the largest logit."""
    differences, largest = [], 0.0
    for size in sizes:
        images = _images(model, size)
        with torch.inference_mode():
            expected = model(images)
        differences.append((run(images) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return float(np.max(differences)), largest


def _images(model: VisionTransformer, count: int) -> Tensor:
    return torch.randn(count, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(count))  # pyright: ignore[reportOptionalIterable]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters have to say of their own inner life."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
