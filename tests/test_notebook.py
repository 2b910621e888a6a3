"""The notebook, cell by cell, in a kernel of its own."""

import time

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.launch
def test_the_notebook_searches_digits_and_draws_what_it_found(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", 4)
    client = NotebookClient(notebook, timeout=550, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    began = time.monotonic()
    client.execute()  # raises if a cell does
    took = time.monotonic() - began
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    text = {cell.source.split("\n")[0]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (report,) = text["print(result.report())"]
    assert "<- best" in report.text and "on 360 test images" in report.text
    top1 = float(next(outputs for line, outputs in text.items() if "vitas.evaluate" in line)[-1].data["text/plain"])
    assert top1 > 90, f"{took:.0f} s"
    assert (tmp_path / "runs" / "tuned" / "evaluation.json").is_file()
