"""The report of a run, from its folder alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICKSTART, ROOT
from runs_by_hand import large, write_lines

from vitas import recipe
from vitas.config import UserError
from vitas.report import tracking
from vitas.report.numbers import amount, duration, label, ticks
from vitas.report.page import choices, compare, compared, curves, page, plots, searched
from vitas.report.page.figures import figures
from vitas.runs import reporting
from vitas.runs.reporting import Reporting
from vitas.subnets import subnets


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return large(tmp_path_factory.mktemp("runs") / "whole", count=120)


def vitas(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vitas", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


def test_the_figures_are_those_of_the_files(run):
    found = figures(run)
    assert found["told"] == []
    json.dumps(found, allow_nan=False)  # plain data, and no NaN in it
    assert [part["share"] for part in found["progress"]] == [1.0] * 5
    (search,) = found["searches"]
    lines = [json.loads(line) for line in (run / "evolution" / "candidates.jsonl").read_text().splitlines()]
    assert [one["key"] for one in search["shown"]] == [line["key"] for line in lines]
    assert search["costs"][0]["name"] == "flops"  # that with a window comes first
    best = max(line["top1"] for line in lines)
    top1, *_ = search["generations"]["panels"]
    assert top1["lines"][0]["points"][-1] == [40, best]
    sentences = found["sentences"]
    assert len(sentences) == 3
    assert f"scored {len(lines)} architectures" in sentences[0] and f"{best:.2f} %" in sentences[0]
    # Two shares of 50,000 images: 1.96 times the root of the sum of their variances.
    assert "2.51 points more than the uniform ViT" in sentences[1] and "±0.54 points" in sentences[1]
    assert "689 device-hours" in sentences[2] and "64 % of it for stage supernet" in sentences[2]
    assert sum(row["device_hours"] for row in found["time"]) == pytest.approx(8 * 310120 / 3600)
    assert [one["name"] for one in found["architectures"]] == ["found", "uniform ViT", "vitas_b"]
    assert found["trained"]["steps"] == 300_000 and found["trained"]["looked_at"] == choices.STEPS_LOOKED_AT
    for training in found["trainings"]:
        assert [panel["name"] for panel in training["panels"]] == [
            "loss",
            "top-1",
            "top-5",
            "learning rate",
            "images/s",
        ]


@pytest.mark.parametrize("until", ["supernet", "evolve", "retrain"])
def test_a_run_that_has_come_so_far_has_a_page(tmp_path, until):
    folder = large(tmp_path / "run", count=20, until=until)
    found = figures(folder)
    done = {part["stage"]: part["share"] for part in found["progress"]}
    assert found["told"] == []
    assert done[until] == (1.0 if until != "supernet" else pytest.approx(1.0)) and done["evaluate"] == 0
    assert any(command["command"].startswith("accelerate launch -m vitas") for command in found["next"])
    assert "<svg" in page.page(found)


def test_an_empty_folder_has_a_page_and_none_has_a_line(tmp_path):
    assert "Nothing is trained or scored yet." in page.page(figures(tmp_path))
    with pytest.raises(UserError, match="nowhere: no such folder; expected that of a run"):
        figures(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["recipe.yaml", "metrics.jsonl", "times.json", "evaluation.json", "evolution/candidates.jsonl",
     "evolution/front.json", "evolution/best.yaml", "supernet/settings.yaml", "rank/ranking.json",
     "retrain/architecture.yaml"],
)  # fmt: skip
def test_whatever_is_cut_or_damaged_leaves_the_rest(run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(choices, "STEPS_LOOKED_AT", 20)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    whole = (folder / name).read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"\xff\xfe\0",
        b"[1, 2]\n",
        b'{"key": 1, "stage": [], "step": {}}\n',
        b'{"tables": [{"architectures": [1], "rankings": {"supernet": {"tau": 1}}}]}',
    ):
        (folder / name).write_bytes(content)
        found = figures(folder)
        text = page.page(found)
        json.dumps(found, allow_nan=False)
        assert "</html>" in text
        assert found["told"] == [] or any(line.partition(":")[0] in text for line in found["told"])
    if name != "evaluation.json":
        assert found["final"]
    if name != "evolution/candidates.jsonl":
        assert found["searches"]


def test_a_journal_that_is_cut_shows_all_whole_lines(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    file = folder / "evolution" / "candidates.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    found = figures(folder)
    assert found["searches"][0]["scored"] == 119 and found["told"] == []


def test_a_run_of_another_version_shows_what_is_known(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    file = folder / "recipe.yaml"
    file.write_text(file.read_text() + "novelty: {strength: 3}\n")
    journal = folder / "evolution" / "candidates.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    new = ("fidelity", "images", "loss", "generation", "params")
    write_lines(journal, [{name: value for name, value in line.items() if name not in new} for line in lines])
    (folder / "times.json").unlink()
    found = figures(folder)
    assert any("novelty" in line for line in found["told"])
    assert found["searches"][0]["scored"] == 120 and [c["name"] for c in found["searches"][0]["costs"]] == [
        "flops",
        "macs",
    ]
    assert found["trainings"] and found["final"] and found["effects"]
    # Without times, those of the trainings by their speed: 300,000 steps of 1024 images at about 2,600 a second.
    supernet = next(row for row in found["time"] if row["stage"] == "supernet")
    assert supernet["estimated"] and supernet["seconds"] == pytest.approx(300_000 * 1024 / 2600, rel=0.01)
    assert "</html>" in page.page(found)


def candidate(top1: float, patch: int, *heads: int | None) -> dict:
    blocks = [number and {"heads": number, "qkv_dim": 48, "mlp_dim": 64} for number in heads]
    return {"top1": top1, "architecture": {"patch_size": patch, "embed_dim": 8, "blocks": blocks}}


def test_effects_are_means_less_that_of_all_that_could_have_the_choice():
    entries = [candidate(10, 4, 1, 1), candidate(12, 4, 1, None), candidate(20, 8, 1, 2), candidate(22, 8, 2, 2)]
    rows = {(row["kind"], row["block"], row["value"]): row for row in choices.effects(entries)}
    assert rows["patch_size", 0, 4]["effect"] == -5 and rows["patch_size", 0, 8]["effect"] == 5
    assert rows["depth", 0, 1]["effect"] == -4 and rows["depth", 0, 1]["low"] is None  # of a single candidate
    assert rows["heads", 2, 2]["effect"] == pytest.approx(21 - 52 / 3)  # of those that have a second block
    assert rows["heads", 0, 2]["effect"] == pytest.approx((20 + 2 * 22) / 3 - (2 * 10 + 12 + 2 * 20 + 2 * 22) / 7)
    assert rows["embed_dim", 0, 8]["effect"] == 0 and rows["embed_dim", 0, 8]["candidates"] == 4
    assert choices.effects(entries[:1]) == []


def test_intervals_hold_what_they_promise():
    """Of 400 searches without any effect, and one of two points, about 95 % of the intervals hold the truth."""
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        patches = rng.permutation([4, 8] * 20)
        scores = rng.normal(60, 3, 40) + 2 * (patches == 8)
        rows = choices.effects([candidate(score, int(patch), 1) for score, patch in zip(scores, patches, strict=True)])
        row = next(row for row in rows if (row["kind"], row["value"]) == ("patch_size", 8))
        held.append(row["low"] <= 1 <= row["high"])
    assert 0.92 < np.mean(held) < 0.98


def test_how_often_a_choice_is_trained_is_counted_over_the_very_steps():
    chosen = recipe.load(QUICKSTART, ["supernet.epochs=6"])
    found = choices.trained(chosen, 10, {"": 0.3}, 60, 114)
    assert found["steps"] == found["looked_at"] == 60
    shares = {(row["kind"], row["block"], row["value"]): row["share"] for row in found["choices"]}
    drawn = [subnets(chosen, 10, {"": 0.3}, step, 114)[0] for step in range(60)]
    assert shares["patch_size", 0, 8] == np.mean([net.patch_size == 8 for net in drawn])
    assert shares["depth", 0, 3] == np.mean([len(net.kept) == 3 for net in drawn])
    twos = [[bool(block and block.heads == 2) for block in net.blocks] for net in drawn]
    assert [shares["heads", block + 1, 2] for block in range(4)] == pytest.approx(np.mean(twos, axis=0))
    assert shares["heads", 0, 2] == pytest.approx(np.mean(twos))


def test_the_front_of_a_cost_is_what_none_beats():
    rng = np.random.default_rng(0)
    entries = [{"key": f"{at}", "top1": float(top1), "macs": int(macs), "throughput": int(-macs)}
               for at, (top1, macs) in enumerate(rng.integers(0, 12, (60, 2)))]  # fmt: skip

    def is_beaten(one, by):
        return (
            by["top1"] >= one["top1"]
            and by["macs"] <= one["macs"]
            and (by["top1"], by["macs"]) != (one["top1"], one["macs"])
        )

    expected = {(one["macs"], one["top1"]) for one in entries if not any(is_beaten(one, other) for other in entries)}
    by_key = {one["key"]: one for one in entries}
    for cost in ("macs", "throughput"):
        found = searched.pareto(entries, cost)
        assert [(by_key[key]["macs"], by_key[key]["top1"]) for key in found] == sorted(expected)


def test_of_many_candidates_all_on_a_front_are_kept_and_of_long_curves_the_means():
    entries = [{"key": str(number)} for number in range(10_000)]
    kept = searched.thinned(entries, {"1", "9998"}, most=4000)
    assert len(kept) < 4000 and {"1", "9998"} <= {one["key"] for one in kept}
    points = curves.thinned([(step, step % 2) for step in range(10_000)], most=300)
    assert len(points) <= 300 and points[-1] == [9999, 1] and points[0][1] == pytest.approx(0.5, abs=0.05)


def test_figures_go_by_the_names_that_metrics_have():
    ours = {tracking.LOSS, tracking.LR, tracking.IMAGES_PER_SECOND, tracking.LEFT_OUT, tracking.TOP1, tracking.TOP5}
    assert ours <= curves.FIGURES.keys()
    assert (f"{tracking.HOLDOUT}_", f"{tracking.TEST}_") == curves.IMAGES
    assert {tracking.STAGE, tracking.STEP, tracking.EPOCH, tracking.MODEL, tracking.SECONDS} == curves.UNTOLD


def test_numbers_are_short():
    assert [amount(value) for value in (0.5, 123, 98_765, 4.57e6, 1.3e9, 1.34e43)] == [
        "0.5", "123", "98.8 k", "4.57 M", "1.3 G", "1.34e+43"]  # fmt: skip
    assert [duration(value) for value in (0.4, 41, 200, 18_600, 273_600)] == [
        "0.4 s", "41 s", "3 min 20 s", "5 h 10 min", "3 d 4 h"]  # fmt: skip
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(900e6, 1e9, 4) == [900e6, 950e6, 1000e6]
    for low, high in ((0.97, 1.02), (1e-4, 3e-4), (-3, 1e6), (5, 5)):
        marks = ticks(low, high)
        texts = [label(mark, marks[1] - marks[0] if len(marks) > 1 else 1) for mark in marks]
        assert len(set(texts)) == len(marks) > (low < high)


def test_a_name_in_a_run_does_no_harm_to_its_page(tmp_path):
    folder = large(tmp_path / "run", count=20)
    evil = "</script><script>alert('&\"')</script>"
    rows = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({evil: rows["found"]}))
    journal = folder / "evolution" / "candidates.jsonl"
    journal.write_text(journal.read_text().replace('"key": "a', f'"key": {json.dumps(evil)[:-1]}', 1))
    lines = [{"stage": evil, "step": 1, "epoch": 1.0, "loss": 1.0, "model": evil}]
    write_lines(folder / "metrics.jsonl", lines)
    assert "<script>alert" not in page.page(figures(folder))


def test_the_commands_write_page_json_and_plots_without_torch(run, tmp_path):
    done = vitas("report", run, "-o", "mine/page.html", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout == "mine/page.html\n", done.stderr
    assert " torch" not in done.stderr and "matplotlib" not in done.stderr
    text = (tmp_path / "mine" / "page.html").read_text()
    assert len(text.encode()) < 6e6 and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    told = vitas("report", run, "--json", "--png", "plots", cwd=tmp_path)
    assert json.loads(told.stdout.splitlines()[0])["searches"][0]["scored"] == 120
    drawn = {file.name for file in (tmp_path / "plots").iterdir()}
    assert drawn == {"training_supernet.png", "training_retrain.png", "training_baseline.png", "evolution_flops.png",
                     "evolution_generations.png", "evolution_macs.png", "evolution_params.png", "architectures.png",
                     "choices.png"}  # fmt: skip
    missing = vitas("report", "nothing", cwd=tmp_path)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


def test_several_runs_are_compared_over_their_seeds(tmp_path):
    found = [
        large(tmp_path / f"{sharing}{seed}", count=20, seed=seed, **{"supernet.sharing": sharing})
        for sharing in ("ordinal", "bilateral")
        for seed in (0, 1, 2)
    ]
    together = compare.compare([*found, large(tmp_path / "young", count=20, until="supernet")])
    assert together["differ"] == ["supernet.sharing"]
    ordinal, bilateral = together["groups"]
    assert (ordinal["group"], ordinal["runs"]) == ("supernet.sharing=ordinal", 3)
    assert ordinal["found"] == {"mean": pytest.approx(75.41), "deviation": pytest.approx(0.1), "runs": 3}
    assert (bilateral["runs"], bilateral["found"]["runs"]) == (4, 3)  # the young one has no outcome yet
    first, *lines = compare.table(together).splitlines()
    assert first.split()[:2] == ["runs", "top-1"] and len(lines) == 2 and "75.41 ± 0.10" in lines[0]
    curve = next(panel for panel in together["panels"] if panel["name"].startswith("supernet: loss"))
    assert len(curve["lines"]) == 7 and "<svg" in compared.page(together)
    assert {file.name for file in plots.write(together, tmp_path / "plots")} == {"curves.png", "fronts.png"}
    twice = compare.compare([found[0], found[0].parent / "." / found[0].name, found[1]])
    assert [row["run"] for row in twice["runs"]] == ["ordinal0", "ordinal1"]
    done = vitas("compare", *found[:2], "-o", "both.html", cwd=tmp_path)
    assert "alike" in done.stdout and done.stdout.endswith("both.html\n") and (tmp_path / "both.html").is_file()


def test_runs_whose_settings_look_alike_when_they_are_cut_are_of_two_groups(tmp_path):
    places = ["a/" + "x" * 60 + end + "y" * 30 for end in "12"]
    runs = [large(tmp_path / f"r{at}", count=20, **{"data.train": place}) for at, place in enumerate(places)]
    groups = compare.compare(runs)["groups"]
    assert [group["runs"] for group in groups] == [1, 1] and groups[0]["group"] != groups[1]["group"]


def test_the_page_says_which_images_scored_the_candidates(tmp_path):
    folder = large(tmp_path / "run", count=20)
    assert "on the test images" not in page.page(figures(folder)).partition("Trained alone")[0]
    (folder / "evolution" / "settings.yaml").write_text("evolve: {score_on: test}\n")
    assert "top-1 % in the supernet, on the test images" in page.page(figures(folder))
    assert "% top-1 on the test images with" in " ".join(figures(folder)["sentences"])


def test_while_a_run_goes_on_its_page_and_times_are_kept_fresh_by_another_process(tmp_path, monkeypatch):
    folder = large(tmp_path / "run", count=20, until="supernet")
    (folder / "times.json").unlink()
    monkeypatch.setattr(reporting, "EVERY", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Reporting(folder, {"devices": 2}) as told:
        with told.stage("supernet"):
            end = time.monotonic() + 120
            while not (folder / "report.html").is_file() and time.monotonic() < end:
                time.sleep(0.1)
            assert "device-hours" in (folder / "report.html").read_text()
        (times,) = json.loads((folder / "times.json").read_text())
        assert times["stage"] == "supernet" and times["devices"] == 2 and times["seconds"] > 0.3
        (folder / "report.html").unlink()
    assert (folder / "report.html").is_file()
    with Reporting(folder, {"devices": 2}) as told, told.stage("supernet"):
        pass  # it was done already
    assert len(json.loads((folder / "times.json").read_text())) == 1


def test_a_report_that_fails_ends_nothing(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(page, "page", fails)
    with Reporting(tmp_path, {}) as told, told.stage("supernet"):
        pass
    assert capsys.readouterr().out == f"warning: {tmp_path}/report.html could not be written: no way\n"
    with pytest.raises(SystemExit), Reporting(tmp_path, {}) as told, told.stage("supernet"):
        sys.exit(75)
    assert capsys.readouterr().out == ""
