"""The commands about architectures and models: vitas describe | import | extract | predict | export | push | demo."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from vitas.commands.common import AddCommand, add_json, print_facts
from vitas.config import UserError, one_line
from vitas.files import expanded, write_atomically


def add(add_command: AddCommand) -> None:
    """Adds the commands."""
    describe = add_command(
        "describe", _describe, "print an architecture, block by block, and its costs; or compare two"
    )
    describe.add_argument(
        "architecture", metavar="NAME|FILE", help="a name, such as vitas_c; a YAML file, or a folder that holds one"
    )
    describe.add_argument("other", metavar="NAME|FILE", nargs="?", help="another one, to be printed beside it")
    describe.add_argument("--classes", metavar="N", type=int, default=1000, help="classes (default: 1000)")
    add_json(describe)

    importing = add_command("import", _import, "turn a checkpoint of the original release into a model")
    importing.add_argument("file", metavar="FILE.pth.tar", help="the checkpoint")
    importing.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the model")
    importing.add_argument("--config", metavar="NET.json", help="its model config, if it is not a published network")

    a_model = "the folder of a model, or its weights"
    extracting = add_command(
        "extract",
        _extract,
        "turn a subnet of a trained supernet into a model, with the supernet's weights",
        "A start for a training on other images: retrain.init=DIR.",
    )
    extracting.add_argument("run", metavar="RUN", help="the folder of a run with a trained supernet")
    extracting.add_argument(
        "architecture", metavar="ARCHITECTURE", help="best, best:BUDGET, front:2, a key, a name, or a YAML file"
    )
    extracting.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the model")

    predicting = add_command(
        "predict",
        _predict,
        "tell what a model says of images",
        "Damaged files are passed over, and told at the end.",
    )
    predicting.add_argument("model", metavar="DIR", help=a_model)
    predicting.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders, or patterns")
    predicting.add_argument("--top", metavar="N", type=int, default=5, help="classes of each image (default: 5)")
    predicting.add_argument("--batch_size", metavar="N", type=int, default=64, help="of one forward (default: 64)")
    add_json(predicting)
    predicting.add_argument("--csv", metavar="FILE", help="write a table there instead of printing")

    exporting = add_command(
        "export",
        _export,
        "write a model for other programs: ONNX, torch.export, safetensors; and compare it with PyTorch",
        "ONNX carries class names and preprocessing as metadata. It needs pip install 'vitas[export]'.",
    )
    exporting.add_argument("model", metavar="DIR", help=a_model)
    exporting.add_argument("--format", choices=["onnx", "pt2", "safetensors"], required=True, help="of the file")
    exporting.add_argument("-o", "--output", metavar="FILE", help="default: in DIR, named by what it is")
    exporting.add_argument("--dynamic-batch", action="store_true", help="for any number of images at once (else one)")
    exporting.add_argument("--half", action="store_true", help="in float16; images and logits stay float32")
    exporting.add_argument("--quantize", choices=["dynamic"], help="linear layers with 8 bits, in onnxruntime")
    add_json(exporting)

    pushing = add_command("push", _push, "send a model to the Hugging Face Hub, with its card")
    pushing.add_argument("model", metavar="DIR", help=a_model)
    pushing.add_argument("name", metavar="USER/NAME", help="its name there; made if there is none")
    pushing.add_argument("--private", action="store_true", help="for you alone, if it is made")
    pushing.add_argument(
        "--dry-run", action="store_true", help="write what would be sent to DIR/push, and send nothing"
    )

    showing = add_command(
        "demo", _demo, "show a web page on which one drops an image", "It needs pip install 'vitas[demo]'."
    )
    showing.add_argument("model", metavar="DIR", help=a_model)
    showing.add_argument("--top", metavar="N", type=int, default=5, help="classes that are shown (default: 5)")
    showing.add_argument("--host", default="127.0.0.1", help="address to serve at (default: this machine alone)")
    showing.add_argument("--port", metavar="N", type=int, default=7860, help="default: 7860")


def _describe(options: argparse.Namespace) -> None:
    from vitas.models import registry
    from vitas.report import blocks
    from vitas.spaces import cost
    from vitas.spaces.architecture import MOST_CLASSES

    if not 1 <= options.classes <= MOST_CLASSES:
        raise UserError(f"--classes: expected 1 to {MOST_CLASSES:,}, got {options.classes}")
    given = [options.architecture, *([options.other] if options.other else [])]
    named = {name: registry.find(name) for name in given}
    facts = {}
    for name, architecture in named.items():
        costs = cost.count(architecture, options.classes)
        facts[name] = {"flops_paper": costs["flops"], "macs": costs["macs"], "params": costs["params"]}
    if options.json:
        whole = {name: facts[name] | {"architecture": one.model_dump(mode="json")} for name, one in named.items()}
        print_facts(whole if options.other else whole[options.architecture], as_json=True)
    elif options.other:
        print("\n".join(blocks.side_by_side(named, facts)))
    else:
        architecture = named[options.architecture]
        print(architecture.to_yaml(), end="")
        print_facts(facts[options.architecture], as_json=False)
        print("\n".join(blocks.bars(architecture)))


def _import(options: argparse.Namespace) -> None:
    from vitas.models import registry, release, saved, vit
    from vitas.report import card

    config = options.config and expanded(options.config)
    architecture, state = release.convert(expanded(options.file), config)
    model = vit.from_state(architecture, state, release.PREPROCESSING)
    folder = expanded(options.output)
    try:
        saved.save_model(folder, model)
        card.write(folder)
    except OSError as error:
        raise UserError(f"{options.output}: {error.strerror}") from None
    params = sum(value.numel() for value in state.values())
    name = registry.name_of(architecture) or "a network of its own"
    print(f"{options.output}: {name}, {params:,} parameters, {model.num_classes} classes")


def _extract(options: argparse.Namespace) -> None:
    from vitas.runs.extract import extract

    folder = expanded(options.output)
    model = extract(expanded(options.run), options.architecture, folder)
    params = sum(parameter.numel() for parameter in model.parameters())
    shape = model.architecture.in_words
    print(f"{folder}: {shape}, {params:,} parameters, {model.num_classes} classes; retrain.init={folder}")


def _predict(options: argparse.Namespace) -> None:
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    from vitas.report.terminal import progress, say
    from vitas.runs import predict

    files = predict.find(options.images)
    classifier = predict.Classifier.load(expanded(options.model))
    found: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    prints = not (options.json or options.csv)
    with progress("predict", len(files), "image", show=len(files) > 1, leave=False) as bar:
        for file, said in predict.predict(classifier, files, top=options.top, batch_size=options.batch_size):
            bar.update()
            if isinstance(said, str):
                unreadable[file] = said
                continue
            found[file] = said
            if prints:
                say(f"{file}  " + ", ".join(f"{name} {100 * chance:.1f} %" for name, chance in said))
    if not found:
        file, why = next(iter(unreadable.items()))
        raise UserError(f"{file}: cannot be read: {why}" + (f", and {len(files) - 1} more" if len(files) > 1 else ""))
    if options.csv:
        _write_csv(expanded(options.csv), found)
    if options.json:
        rows = {file: [{"class": name, "probability": chance} for name, chance in said] for file, said in found.items()}
        print(json.dumps({"images": rows, "unreadable": unreadable}))
    for file, why in unreadable.items():
        print(f"{file}: passed over: {why}", file=sys.stderr)


def _write_csv(file: Path, found: dict[str, list[tuple[str, float]]]) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    many = len(next(iter(found.values())))
    table.writerow(["file", *(f"{what}_{rank}" for rank in range(1, many + 1) for what in ("class", "probability"))])
    for name, said in found.items():
        table.writerow([name, *(cell for guess in said for cell in (guess[0], f"{guess[1]:.6f}"))])
    write_atomically(file, text.getvalue())


def _export(options: argparse.Namespace) -> None:
    from vitas.models import export, saved

    folder = expanded(options.model)
    model = saved.load_model(folder)
    weights = saved.weights_file(folder)
    kind = "_half" * options.half + "_int8" * bool(options.quantize)
    file = expanded(options.output) if options.output else weights.parent / f"model{kind}.{options.format}"
    if file.exists() and file.samefile(weights):
        raise UserError(f"{file}: is the model itself: name another file by -o")
    how = {"dynamic_batch": options.dynamic_batch, "half": options.half, "quantize": bool(options.quantize)}
    made = export.export(model, file, options.format, **how)
    if options.json:
        print(json.dumps(made._asdict() | {"file": str(made.file)}))
        return
    before = weights.stat().st_size
    print(f"{made.file}: {made.bytes / 1e6:.2f} MB (the model: {before / 1e6:.2f} MB)")
    print(f"largest difference from PyTorch: {made.difference:.1e}, of logits up to {made.logits:.1f}")
    print(f"images/s: {made.throughput:,.0f} (PyTorch: {made.throughput_torch:,.0f}), batch {made.batch}, on the CPU")


def _push(options: argparse.Namespace) -> None:
    from vitas.runs import push

    folder = expanded(options.model)
    if not options.dry_run:
        print(f"{options.name}: {push.push(folder, options.name, private=options.private)}")
        return
    for file in push.write(folder, options.name, folder / "push"):
        print(f"{file}: {file.stat().st_size:,} bytes")
    print(f"nothing was sent; without --dry-run these files go to {options.name}")


def _demo(options: argparse.Namespace) -> None:
    from vitas.runs import demo

    page = demo.page(expanded(options.model), options.top)
    try:
        page.launch(server_name=options.host, server_port=options.port)
    except OSError as error:  # gradio's, that the port is taken
        raise UserError(f"--port: {one_line(error)}") from None
