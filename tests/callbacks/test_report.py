"""The page holds everything, needs nothing, and its sliders work in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks import report
from callbacks.report import Report, evenly
from config.convert import write_yaml
from utils.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with two kinds of pictures, one at thirty steps."""
    run = RunFolder(tmp_path / "brisk-brook")
    settings = {
        "task": "segmentation",
        "data": {"name": "voc", "root": "</script><b>x"},
        "backbone": {"name": "vit_small", "layers": "last4"},
    }
    run.path.mkdir()
    write_yaml(settings, run.hparams)
    run.write_summary(
        {"status": "finished", "test/miou": 0.25, "test/iou/cat": 0.5, "test/iou/dog": 0.125}
    )
    (run.path / "metrics.csv").write_text("step,train/loss,val/loss\n0,2.0,\n1,1.5,1.7\n")
    rng = np.random.default_rng(0)
    for kind, steps in (("feature_maps", range(0, 300, 10)), ("views/train", [5])):
        for step in steps:
            file = run.figures / kind / f"step-{step:07d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (60, 90, 3), np.uint8)).save(file)
    return run


def test_the_page_holds_everything_and_needs_nothing(folder):
    Report(folder).write()
    page = (folder.path / "report.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<figure") == 2
    assert page.count('data-step="') == 12 + 1
    assert 'data-step="0"' in page
    assert 'data-step="290"' in page
    for words in ("test/miou", "0.25", "cat", "width:50.0%", "backbone.layers", "last4"):
        assert words in page
    assert "</script><b>x" not in page
    assert "&lt;/script&gt;&lt;b&gt;x" in page
    links = re.findall(r'(?:src|href)="([^"]{5})', page) + re.findall(r"url\(", page)
    assert set(links) == {"data:"}


def test_at_most_twelve_steps_from_the_first_to_the_last():
    files = [Path(f"step-{step}.png") for step in range(100)]
    chosen = evenly(files)
    assert len(chosen) == 12
    assert (chosen[0], chosen[-1]) == (files[0], files[-1])
    assert evenly(files[:12]) == files[:12]


def test_pictures_shrink_until_the_page_is_small_enough(folder, monkeypatch):
    rng = np.random.default_rng(0)
    for step in range(4):
        noise = Image.fromarray(rng.integers(0, 255, (1200, 1500, 3), np.uint8))
        file = folder.figures / "big" / f"step-{step:07d}.png"
        file.parent.mkdir(exist_ok=True)
        noise.save(file)
    monkeypatch.setattr(report, "MAX_BYTES", 1_000_000)
    Report(folder).write()
    assert (folder.path / "report.html").stat().st_size <= 1_000_000


def test_a_run_that_just_started_has_a_page(tmp_path):
    run = RunFolder(tmp_path / "new")
    run.path.mkdir()
    write_yaml({"task": "t", "data": {"name": "d"}, "backbone": {"name": "b"}}, run.hparams)
    Report(run).write()
    assert "No step has been logged yet" in (run.path / "report.html").read_text()


def test_every_task_leaves_a_report(train):
    for task in ("barlow_twins", "segmentation"):
        code, run = train(
            task,
            task=task,
            callbacks__report__enabled="true",
            callbacks__views__enabled="true",
            trainer__max_epochs=1,
        )
        assert code == 0
        page = (run / "report.html").read_text()
        assert "finished" in page
        assert "views · train" in page
        assert json.loads((run / "summary.json").read_text())["status"] == "finished"


_PROBE = """<script>
  const key = name => document.dispatchEvent(new KeyboardEvent("keydown", {key: name}));
  const state = id => {
    const figure = document.getElementById(id);
    const images = [...figure.querySelectorAll("img")];
    const shown = images.filter(image => !image.hidden);
    return [shown.length, shown[0].dataset.step, figure.querySelector("output").textContent,
            shown[0].naturalWidth];
  };
  window.addEventListener("load", () => {
    const seen = [state("feature_maps")];
    key("ArrowLeft"); seen.push(state("feature_maps"));
    for (let i = 0; i < 30; i++) key("ArrowLeft");
    seen.push(state("feature_maps"));
    key("ArrowRight"); seen.push(state("feature_maps"));
    const slider = document.querySelector("#feature_maps input");
    slider.value = 11; slider.dispatchEvent(new Event("input")); seen.push(state("feature_maps"));
    document.getElementById("views/train").dispatchEvent(new Event("mouseenter"));
    key("ArrowLeft"); seen.push(state("feature_maps"));
    document.body.innerHTML = "<pre>SEEN" + JSON.stringify(seen) + "SEEN</pre>";
  });
</script>"""


@pytest.mark.slow
def test_sliders_and_arrow_keys_work_in_chromium(folder):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    Report(folder).write()
    page = folder.path / "report.html"
    page.write_text(page.read_text().replace("</body>", _PROBE + "</body>"))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"file://{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(done.stdout.split("SEEN")[1])
    steps = [
        int(file.stem[5:]) for file in evenly(sorted((folder.figures / "feature_maps").iterdir()))
    ]
    expected = [steps[-1], steps[-2], steps[0], steps[1], steps[-1], steps[-1]]
    assert [(n, int(step), int(label)) for n, step, label, _ in seen] == [
        (1, step, step) for step in expected
    ]
    assert all(width == 90 for *_, width in seen)
