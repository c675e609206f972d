"""The page holds everything, needs nothing, and its sliders work in a browser."""

import html
import itertools
import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from callbacks.report import MAX_STEPS, Report
from config.yaml_files import write_yaml
from tests.pages import NASTY, Page, check_fits_narrow_screens, check_needs_no_network
from utils import page as pages
from utils.logging import RunFolderLogger
from utils.metrics_file import read_metrics
from utils.run_folder import RunFolder
from utils.spacing import evenly_from_first_to_last


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
        {
            "status": "finished",
            "test/miou": 0.25,
            "test/iou/cat": 0.5,
            "test/iou/dog": 0.125,
            "val/dense_knn_miou": 0.375,
            "before/val/dense_knn_miou": 0.0625,
            "train/mass_lift": 1.28943,
            "before/train/mass_lift": -0.00053267,
            "in_words": ["It has learnt cats."],
            "alarms": ["The rate is high (step 3)"],
        }
    )
    run.write_environment({"command": ["python", "main.py", "--run.name", "brisk brook"]})
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
    assert page.count("<figure") == 2 + 1  # the curves
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


@pytest.mark.parametrize(
    ("step", "damaged", "taken"),
    [(2, False, True), (1, False, False), (3, False, False), (2, True, False)],
)
def test_curves_are_drawn_anew_only_where_their_picture_is_of_other_steps(
    folder, step, damaged, taken
):
    file = folder.figures / "learning_curves" / f"step-{step:07d}.png"
    file.parent.mkdir()
    drawn = np.random.default_rng(2).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(drawn).save(file)
    if damaged:
        file.write_bytes(file.read_bytes()[:-999])
    Report(folder).write()
    shown = Page((folder.path / "report.html").read_text()).pictures["learning curves"]
    assert np.array_equal(shown, drawn) == taken
    assert taken or shown.shape[1] > 300  # three panels


def test_the_page_opens_with_what_came_out_and_ends_with_what_is_looked_up(folder):
    Report(folder).write()
    source = (folder.path / "report.html").read_text()
    order = (
        "It has learnt cats.",
        "The rate is high",
        "<b>0.25</b><span>mIoU, test images",
        "<b>0.375</b><span>dense k-NN mIoU, held-out training images<br>before training 0.0625",
        "<b>1.289</b><span>mass lift of attention on objects, training images<br>"
        "before training -0.0005",
        "python main.py --run.name &#39;brisk brook&#39;",
        'id="feature_maps"',
        'id="views/train"',
        "learning curves",
        "IoU by class, test",
        "<summary>All numbers",
        "test/miou",
        "<summary>Settings",
        "backbone.layers",
        "<summary>Environment",
    )
    places = [source.find(words) for words in order]
    assert -1 not in places
    assert places == sorted(places)
    numbers = source.partition("<summary>All numbers")[2].partition("<summary>Settings")[0]
    assert not re.search("iou/cat|learnt cats|rate is high", numbers)  # said above
    check_fits_narrow_screens(source)
    assert "prefers-color-scheme: dark" in source


def test_what_speaks_against_a_run_is_said_above_its_pictures(folder):
    def above() -> str:
        Report(folder).write()
        return Page((folder.path / "report.html").read_text().partition("<img")[0]).text

    told = {
        "reason": ("stopped by hand", "stopped by hand"),
        "transductive": (True, "TRANSDUCTIVE"),
        "readout_failures": ({"dense_knn": 2, "views": 1}, "dense_knn failed 2x."),
        "wall_seconds": (90.0, "1.5 minutes"),
    }
    plain, first = folder.read_summary(), above()
    for name, (value, words) in told.items():
        assert words not in first
        folder.write_summary(plain | {name: value})
        assert words in above()
    folder.write_environment({"started": "2026-11-30T12:43:24.5+01:00", "device": "some GPU"})
    assert "segmentation: vit_small on voc · finished · 2026-11-30 12:43 · some GPU" in above()


def test_pictures_and_classes_come_in_the_order_they_are_read(folder):
    for kind in ("aaa", "attention_maps/val", "segmentation_predictions/test"):
        (folder.figures / kind).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder.figures / kind / "step-0000001.png")
    ious = {f"test/iou/{name}": iou for name, iou in (("a", 0.1), ("b", 0.9), ("c", 0.5))}
    folder.write_summary({"status": "finished"} | ious)
    Report(folder).write()
    source = (folder.path / "report.html").read_text()
    kinds = list(dict.fromkeys(name.partition(",")[0] for name in Page(source).pictures))
    known = ["segmentation_predictions/test", "attention_maps/val", "feature_maps"]
    assert kinds == [*known, "aaa", "views/train", "learning curves"]
    assert re.findall(r"<td>([abc])</td>", source) == ["b", "c", "a"]


def test_a_page_has_what_was_logged_until_it_is_written(folder):
    logger = RunFolderLogger(folder)
    logger.log_metrics({"train/loss": 0.125}, step=7)
    clock = iter((0.0, 100.0, 100.0, 100.0))
    report = Report(folder, lambda: next(clock))
    report.on_train_epoch_end(SimpleNamespace(loggers=[logger]), None)  # type: ignore[arg-type]
    assert read_metrics(folder.path / "metrics.csv")[7] == {"train/loss": 0.125}


def test_at_most_six_numbers_and_no_raw_key_before_the_pictures(folder):
    many = dict.fromkeys(
        ("test/accuracy", "val/miou", "val/knn_accuracy", "val/linear_accuracy", "val/loss"), 0.5
    )
    folder.write_summary(folder.read_summary() | many | {"train/loss": math.nan, "steps": 7})
    Report(folder).write()
    above = (folder.path / "report.html").read_text().partition("<body>")[2].partition("<img")[0]
    assert above.count("<li>") == 6
    assert not re.search(r"(test|val|train)/", above)


def test_a_run_that_goes_on_shows_its_last_numbers(folder):
    (folder.path / "summary.json").unlink()
    Report(folder).write()
    source = (folder.path / "report.html").read_text()
    assert "running" in source
    for number in ("1.7</b><span>loss, held-out", "1.5</b><span>loss, train", "2</b><span>steps"):
        assert number in source
    # Of a run that is over what its best step came to counts, not what came last.
    folder.write_summary({"status": "finished", "val/loss": 1.25})
    Report(folder).write()
    assert "1.25</b><span>loss, held-out" in (folder.path / "report.html").read_text()


def test_pictures_and_settings_that_cannot_be_read_are_left_out(folder, caplog):
    folder.hparams.write_text("data: [")
    (damaged,) = (folder.figures / "views" / "train").iterdir()
    damaged.write_bytes(b"no picture")
    Report(folder).write()
    assert 'id="views/train"' not in (folder.path / "report.html").read_text()
    assert f"{damaged} is damaged" in caplog.text


def test_files_beside_the_pictures_are_no_pictures(folder):
    Report(folder).write()
    before = (folder.path / "report.html").read_text()
    views = folder.figures / "views" / "train"
    shutil.copy(views / "step-0000005.png", views / "step-0000005 (1).png")
    (views / "step-0000007.png").symlink_to("nowhere.png")
    Report(folder).write()
    assert (folder.path / "report.html").read_text() == before


@pytest.mark.parametrize("value", [None, 5, "x", [5], {"a": None}])
def test_values_of_other_types_keep_the_page_from_nothing(folder, value):
    names = ("in_words", "alarms", "wall_seconds", "readout_failures", "status", "reason")
    metrics = ("test/miou", "test/iou/cat", "before/val/dense_knn_miou", "val/dense_knn_miou")
    folder.write_summary(dict.fromkeys((*names, *metrics, "test/accuracy"), value))
    folder.write_environment(dict.fromkeys(("command", "device", "started", "packages"), value))
    folder.hparams.write_text(json.dumps(value))
    Report(folder).write()
    page = (folder.path / "report.html").read_text()
    assert page.count("<figure") == 2 + 1


def test_names_are_text(tmp_path):
    run = RunFolder(tmp_path / NASTY.replace("/", "|"))
    run.path.mkdir()
    settings = {"task": NASTY, "data": {"name": NASTY, NASTY: NASTY}, "backbone": {"name": NASTY}}
    write_yaml(settings, run.hparams)
    summary = {"status": "finished", "reason": NASTY, "alarms": [f"alarm {NASTY}"], NASTY: 0.25}
    summary["in_words"] = [f"words {NASTY}"]
    run.write_summary(summary | {f"test/iou/{NASTY}": 0.5})
    run.write_environment({"device": NASTY, "command": ["python", f"command {NASTY}"]})
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
    for what in ("alarm", "words"):
        assert f"{what} {NASTY}" in page.text
    assert shlex.quote(f"command {NASTY}") in page.text
    assert page.text.count(run.name) == 3  # title, heading, picture
    assert list(page.pictures) == [f"{run.name}, step 0"]
    check_needs_no_network(source)


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


def test_only_what_is_on_the_page_is_kept_and_the_width_is_not_looked_for_again(
    folder, monkeypatch
):
    monkeypatch.setattr(pages, "MAX_BYTES", 120_000)
    tried: list[int | None] = []
    monkeypatch.setattr(
        "callbacks.report.picture_uri",
        lambda file, width: tried.append(width) or pages.picture_uri(file, width),
    )
    report = Report(folder)
    report.write()
    first, widths = (folder.path / "report.html").read_text(), set(tried)
    assert len(widths) > 2
    tried.clear()
    report.write()
    assert (folder.path / "report.html").read_text() == first
    assert tried == []
    (folder.figures / "feature_maps" / "step-0000290.png").unlink()
    report.write()
    narrowest = min(width for width in widths if width)
    assert set(tried) == {narrowest}  # the pictures that are shown instead
    tried.clear()
    Image.new("RGB", (90, 60)).save(folder.figures / "feature_maps" / "step-0000000.png")
    report.write()
    assert tried == [narrowest]  # drawn anew, as by a run that went on from before it


def test_it_is_written_at_most_once_a_minute_and_seldom_where_that_takes_long(folder):
    class Clock:
        now, cost = 0.0, 0.0

        def __call__(self) -> float:
            self.now += self.cost / 2  # asked before and after writing
            return self.now

    clock = Clock()
    report, trainer = Report(folder, clock), SimpleNamespace(loggers=[])

    def written_after(seconds: float) -> bool:
        page = folder.path / "report.html"
        page.unlink(missing_ok=True)
        clock.now += seconds
        report.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        return page.exists()

    assert not written_after(59)
    clock.cost = 4.0
    assert written_after(2)
    clock.cost = 0.0
    assert not written_after(99)
    assert written_after(2)
    assert not written_after(59)
    assert written_after(2)


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
        summary = json.loads((run / "summary.json").read_text())
        assert summary["status"] == "finished"
        assert summary["in_words"]
        assert all(words in Page(page).text for words in summary["in_words"])


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
    key("ArrowRight");
    const large = document.querySelector("dialog");
    const closed = large.open;
    document.querySelector("#feature_maps button").click();
    const wide = large.querySelector("img");
    const sources = [wide.src];
    key("ArrowLeft"); sources.push(wide.src);
    large.click();
    const figure = document.getElementById("feature_maps");
    const expected = [11, 10].map(i => figure.querySelectorAll("img")[i].src);
    const enlarged = [closed, sources[0] === expected[0], sources[1] === expected[1], large.open];
    document.body.innerHTML = "<pre>SEEN" + JSON.stringify([seen, enlarged]) + "SEEN</pre>";
  });
</script>"""
# The page in a frame as wide as a screen, which a window cannot be.
_FRAME = """<body style="margin: 0"><iframe style="border: 0; width: {width}px; height: 2000px"
srcdoc="{page}"></iframe><script>
  document.querySelector("iframe").addEventListener("load", event => {{
    const page = event.target.contentDocument, root = page.documentElement;
    const first = page.querySelector("img").getBoundingClientRect().top;
    page.querySelectorAll("details").forEach(each => {{ each.open = true; }});
    const edges = names => [...page.querySelectorAll(names)].map(element => {{
      const {{ left, right, top, bottom }} = element.getBoundingClientRect();
      return [left, top, right, bottom];
    }});
    const seen = {{
      first, hidden: root.scrollWidth - root.clientWidth, cells: edges("td"),
      boxes: edges("td, pre, li, h1, h3, p, figure, figcaption, input"),
    }};
    page.querySelectorAll("details").forEach(each => {{ each.open = false; }});
    const answer = document.createElement("pre");
    answer.hidden = true;
    answer.textContent = "SEEN" + JSON.stringify(seen) + "SEEN";
    document.body.append(answer);
  }});
</script></body>"""


def chromium(page: Path, *options: str) -> str:
    """Returns what a page has become in a browser."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000")
    command = [browser, *flags, *options, f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def seen_by_chromium(page: Path) -> Any:
    """Returns what a script in a page has noted."""
    return json.loads(html.unescape(chromium(page, "--dump-dom").split("SEEN")[-2]))


@pytest.mark.slow
def test_sliders_keys_and_enlarged_pictures_work_in_chromium(folder):
    Report(folder).write()
    page = folder.path / "report.html"
    page.write_text(page.read_text().replace("</body>", _PROBE + "</body>"))
    seen, enlarged = seen_by_chromium(page)
    files = sorted((folder.figures / "feature_maps").iterdir())
    steps = [int(file.stem[5:]) for file in evenly_from_first_to_last(files, MAX_STEPS)]
    expected = [steps[-1], steps[-2], steps[0], steps[1], steps[-1], steps[-1]]
    assert [(n, int(step), int(label)) for n, step, label, _ in seen] == [
        (1, step, step) for step in expected
    ]
    assert all(width == 90 for *_, width in seen)
    assert enlarged == [False, True, True, False]


def overlap(first: list[float], second: list[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) share more than an edge."""
    return all(min(first[b], second[b]) - max(first[a], second[a]) > 1 for a, b in ((0, 2), (1, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "long" * 50, "ünd 😀 <script>'\"" + "&" * 150])
@pytest.mark.parametrize(("width", "first"), [(1280, 900), (400, 1500)])
def test_nothing_overlaps_in_chromium(folder, tmp_path, width, first, name):
    summary = folder.read_summary() | {f"test/iou/{name}": 0.5, f"val/{name}": 0.25}
    folder.write_summary(summary | {"in_words": ["It has learnt to tell cats from dogs. "] * 8})
    settings = {"task": "segmentation", "data": {"name": "voc", "root": name}}
    write_yaml(settings | {"backbone": {"name": name}}, folder.hparams)
    Image.new("RGB", (2400, 900)).save(folder.figures / "views" / "train" / "step-0000009.png")
    Report(folder).write()
    source = (folder.path / "report.html").read_text()
    frame = tmp_path / "frame.html"
    frame.write_text(_FRAME.format(width=width, page=html.escape(source)))
    seen = seen_by_chromium(frame)
    assert seen["hidden"] == 0
    assert seen["first"] < first
    for boxes in (seen["boxes"], seen["cells"]):
        assert all(0 <= left < right <= width for left, _, right, _ in boxes)
    assert len(seen["cells"]) > 20
    assert not any(overlap(*pair) for pair in itertools.combinations(seen["cells"], 2))
    picture = tmp_path / "seen.png"
    chromium(frame, f"--screenshot={picture}", f"--window-size={max(width, 500)},2000")
    assert np.asarray(Image.open(picture)).std() > 5
