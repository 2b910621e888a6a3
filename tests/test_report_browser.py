"""The page of a run as people see it, in Debian's Chromium: nothing asked of anywhere, all drawn, and quick."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import Browser
from conftest import QUICKSTART, SHORT
from runs_by_hand import large

from vitas.report.page import compare, compared, page
from vitas.report.page.figures import figures

pytestmark = pytest.mark.browser

DRAWN = "line, polyline, circle, rect, path"
BROKEN = f"""[...document.querySelectorAll('svg.plot')].filter(svg => {{
    const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll('{DRAWN}')];
    return box.width < 50 || box.height < 20 || !marks.length || /NaN|undefined|Infinity|None/.test(svg.outerHTML);
}}).map(svg => svg.getAttribute('aria-label'))"""
HOVER = """(async () => { const missed = [];
    for (const svg of document.querySelectorAll('svg[data-points], svg.candidates')) {
        svg.scrollIntoView({block: 'center'});
        const dot = svg.dataset.points ? JSON.parse(svg.dataset.points)[0]
            : (circle => [+circle.getAttribute('cx'), +circle.getAttribute('cy')])(svg.querySelector('circle'));
        const at = new DOMPoint(dot[0], dot[1]).matrixTransform(svg.getScreenCTM());
        svg.dispatchEvent(new PointerEvent('pointermove', {clientX: at.x, clientY: at.y, bubbles: true}));
        const tip = document.getElementById('tip');
        if (tip.hidden || tip.textContent.length < 5) missed.push(svg.getAttribute('aria-label'));
        svg.dispatchEvent(new PointerEvent('pointerleave'));
        if (!tip.hidden) missed.push('stays');
    } return missed; })()"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


def opened(browser: Browser, file: Path) -> None:
    """Opens a page at all widths and in both schemes; whatever it may show, this holds."""
    for width, scheme in ((1280, "dark"), (390, "light"), (1280, "light")):
        browser.open(file, width=width, scheme=scheme)
        assert browser.console == []
        assert browser.requests == [file.resolve().as_uri()]
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(BROKEN) == []
        dark = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        assert dark == (scheme == "dark")
    assert browser.run(HOVER) == []


def written(run: Path, file: Path) -> Path:
    page.write(run, file)
    assert file.stat().st_size < 6e6
    return file


def test_the_page_of_a_large_run(browser, tmp_path):
    run = large(tmp_path / "large", count=2000)
    file = written(run, tmp_path / "report.html")
    opened(browser, file)
    assert browser.run("document.querySelectorAll('svg.candidates circle').length") == 2000
    names = browser.run("[...document.querySelectorAll('h2')].map(title => title.textContent)")
    assert names == [
        "Asked for",
        "Result",
        "Architectures",
        "Search",
        "Choices",
        "Ranking",
        "Trainings",
        "Time",
        "Go on",
    ]
    # In seconds of the page's own thread: others are at work on this machine, too.
    browser.do("Performance.enable", timeDomain="threadTicks")
    browser.open(file)
    spent = {one["name"]: one["value"] for one in browser.do("Performance.getMetrics")["metrics"]}
    browser.do("Performance.disable")
    assert 0 < spent["TaskDuration"] < 2


def test_the_reader_picks_a_cost_and_sees_an_architecture(browser, tmp_path):
    run = large(tmp_path / "large", count=300)
    browser.open(written(run, tmp_path / "report.html"))
    found = figures(run)["searches"][0]
    best = next(one for one in found["shown"] if one["key"] in found["best"].values())
    dot = "document.querySelector('svg.candidates circle.best').getBoundingClientRect()"
    place = f"(box => [box.x + box.width / 2, box.y + box.height / 2])({dot})"
    before = browser.run(place)
    assert browser.run("document.querySelector('svg.candidates').dataset.axis") == "flops"
    assert browser.run("document.querySelectorAll('svg.candidates .band').length") == 1
    browser.run("document.querySelector('input[value=params]').click()")
    assert browser.run("document.querySelector('svg.candidates').dataset.axis") == "params"
    assert browser.run("document.querySelector('svg.candidates g.x').textContent").endswith("parameters")
    assert browser.run("document.querySelectorAll('svg.candidates .band').length") == 0
    browser.run("document.querySelector('svg.candidates').scrollIntoView({block: 'center'})")
    after = browser.run(place)
    assert after[0] != before[0]
    browser.point(*after, click=True)
    tip = browser.run("document.getElementById('tip').textContent")
    assert best["key"] in tip and f"{best['top1']:.2f} % top-1" in tip and f"patch {best['shape'][0]}" in tip
    pinned = browser.run("document.querySelector('.pinned').textContent")
    first = next(number for number, block in enumerate(best["shape"][2]) if block)
    heads, qkv, mlp = best["shape"][2][first]
    assert f"block {first + 1}: {heads} heads, q/k/v {qkv}, MLP {mlp}" in pinned
    bars = browser.run("document.querySelectorAll('.pinned svg .mlp, .pinned svg .skipped').length")
    assert bars == 16


def test_the_page_of_an_empty_folder_of_a_cut_journal_and_of_a_comparison(browser, tmp_path):
    (tmp_path / "empty").mkdir()
    opened(browser, written(tmp_path / "empty", tmp_path / "report.html"))
    assert "Nothing is trained or scored yet." in browser.run("document.body.textContent")
    runs = [large(tmp_path / f"run{seed}", count=50, seed=seed) for seed in (0, 1)]
    journal = runs[0] / "evolution" / "candidates.jsonl"
    journal.write_bytes(journal.read_bytes()[:-200])
    opened(browser, written(runs[0], tmp_path / "report.html"))
    assert browser.run("document.querySelectorAll('svg.candidates circle').length") == 49
    (tmp_path / "compare.html").write_text(compared.page(compare.compare(runs)))
    opened(browser, tmp_path / "compare.html")


@pytest.mark.timeout(1200)
def test_the_pages_of_a_real_run_killed_in_each_stage_and_done(browser, tmp_path):
    settings = [*SHORT, "data.workers=0", f"output={tmp_path}", "supernet.validate_every=1", "retrain.epochs=2"]
    command = [sys.executable, "-m", "vitas", "run", str(QUICKSTART), *settings, "evolve.population=8"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = tmp_path / "quickstart"
    for stage in ("supernet", "evolve", "retrain", "baseline"):
        with subprocess.Popen(command, **quiet) as process:
            try:
                while not _is_at(run, stage) and process.poll() is None:
                    time.sleep(0.02)
                assert process.poll() is None, f"{stage}: was done before it was killed"
            finally:
                process.kill()
        opened(browser, written(run, tmp_path / "report.html"))
        text = browser.run("document.body.textContent")
        assert "go on where it stopped" in text and "What could not be read" not in text
    subprocess.run(command, check=True, **quiet)
    opened(browser, run / "report.html")
    rows = json.loads((run / "evaluation.json").read_text())
    text = browser.run("document.body.textContent")
    assert f"{rows['found']['top1']:.2f}" in text and "on 360 test images" in text and "go on where" not in text
    assert browser.run("document.querySelectorAll('svg.shape').length") == 3  # found, uniform, the paper's


def _is_at(run: Path, stage: str) -> bool:
    """Whether a run is at work on a stage, and has done some of it."""
    try:
        if json.loads((run / "times.json").read_text())[-1]["stage"] != stage:
            return False
        told = (run / "metrics.jsonl").read_text()
    except (OSError, ValueError, IndexError):
        return False
    return f'"stage": "{stage}"' in told or stage == "baseline"
