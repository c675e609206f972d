"""The page holds everything, needs nothing, and its sliders work in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks.report import Report, evenly
from config.convert import write_yaml
from tests.pages import NASTY, Page, check_needs_no_network
from utils import page as pages
from utils.run_folder import RunFolder, write_environment


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
    assert page.count("<figure") == 2
    assert page.count('data-step="') == 12 + 1
    assert 'data-step="0"' in page
    assert 'data-step="290"' in page
    for words in ("test/miou", "0.25", "cat", "width:50.0%", "backbone.layers", "last4"):
        assert words in page
    assert "</script><b>x" not in page
    assert "&lt;/script&gt;&lt;b&gt;x" in page
    check_needs_no_network(page)
    assert "resampled" not in page


def test_pictures_keep_their_pixels(folder):
    see_through = folder.figures / "masks" / "step-0000005.png"
    see_through.parent.mkdir()
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (1700, 1600, 4), np.uint8)).save(see_through)
    Report(folder).write()
    shown = Page((folder.path / "report.html").read_text()).pictures
    for kind, step in (("feature_maps", 0), ("feature_maps", 290), ("views/train", 5)):
        drawn = np.asarray(Image.open(folder.figures / kind / f"step-{step:07d}.png"))
        np.testing.assert_array_equal(shown[f"{kind}, step {step}"], drawn)
    # Hidden colours behind full transparency, and wider than any page, count as well.
    np.testing.assert_array_equal(shown["masks, step 5"], np.asarray(Image.open(see_through)))


def test_names_are_text(tmp_path):
    run = RunFolder(tmp_path / NASTY.replace("/", "|"))
    run.path.mkdir()
    settings = {"task": NASTY, "data": {"name": NASTY, NASTY: NASTY}, "backbone": {"name": NASTY}}
    write_yaml(settings, run.hparams)
    summary = {"status": "finished", "reason": NASTY, "alarms": [f"alarm {NASTY}"], NASTY: 0.25}
    run.write_summary(summary | {f"test/iou/{NASTY}": 0.5})
    write_environment(run, {"device": NASTY})
    file = run.figures / run.name / "step-0000000.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(file)
    Report(run).write()
    source = (run.path / "report.html").read_text()
    page = Page(source)
    assert page.tags.count("script") == 1
    # The result, the class, four settings, the device.
    assert page.cells.count(NASTY) == 7
    assert f"data.{NASTY}" in page.cells
    assert f"{NASTY}: {NASTY} on {NASTY} · finished" in page.text
    assert f"alarm {NASTY}" in page.text
    assert page.text.count(run.name) == 3  # title, heading, picture
    assert list(page.pictures) == [f"{run.name}, step 0"]
    check_needs_no_network(source)


def test_at_most_twelve_steps_from_the_first_to_the_last():
    files = [Path(f"step-{step}.png") for step in range(100)]
    chosen = evenly(files)
    assert len(chosen) == 12
    assert (chosen[0], chosen[-1]) == (files[0], files[-1])
    assert evenly(files[:12]) == files[:12]


def test_pictures_shrink_only_as_far_as_needed_and_the_page_says_so(folder, monkeypatch):
    rng = np.random.default_rng(0)
    for step in range(2):
        noise = Image.fromarray(rng.integers(0, 255, (1200, 1500, 3), np.uint8))
        file = folder.figures / "big" / f"step-{step:07d}.png"
        file.parent.mkdir(exist_ok=True)
        noise.save(file)
    monkeypatch.setattr(pages, "MAX_BYTES", 2_500_000)
    Report(folder).write()
    page = (folder.path / "report.html").read_text()
    assert len(page.encode()) <= 2_500_000
    (width,) = re.findall(r"wider than (\d+) pixels were resampled", page)
    shown = Page(page).pictures
    assert shown["big, step 1"].shape == (round(1200 * int(width) / 1500), int(width), 3)
    assert int(width) > 280
    small = np.asarray(Image.open(folder.figures / "feature_maps" / "step-0000000.png"))
    np.testing.assert_array_equal(shown["feature_maps, step 0"], small)


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
