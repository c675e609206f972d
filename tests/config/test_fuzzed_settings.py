"""Whatever is given as settings is taken, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.commands.study.plan import load_study
from config.errors import ConfigError
from config.hparams import Hparams
from config.lookup import CONFIG_DIR
from config.parsing import parse
from config.settings_tree import leaves, set_leaf
from config.validation import check
from utils.nested import nested

LEAVES = {leaf.path: leaf for leaf in leaves(Hparams())}
EXPERIMENTS = [file.read_text() for file in sorted((CONFIG_DIR / "experiments").glob("*.yaml"))]
FRAGMENTS = [
    *("&a ", "*a", "<<: *a", "[", "]", "{", "}", ": ", "- ", "\n", "\n  ", "? ", "|", "'", '"'),
    *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!python/object:x ", "!!binary ", "!!set "),
    *("2026-13-45", "2026-01-01", "1:1:1", "0x", "1_0", "9" * 5000, ".nan", "-.inf", "~", "\0"),
    *("extends: ", "task: ", "backbone: 3", "[" * 2000, "{a: " * 2000, "---\n", "%YAML 9\n"),
]
WORDS = [*FRAGMENTS, "auto", "none", "null", "run:x", "../x", "-1", "1e400", "nan", "true", "", " "]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**20, 10**400, -(10**400), 2**63]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.dates(date(1, 1, 1)),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*LEAVES, *{path.partition(".")[0] for path in LEAVES}])


def fuzz(examples: int, check_one: Callable[..., None], **inputs: st.SearchStrategy[Any]) -> None:
    """Calls `check_one` with so many inputs, the same ones every time."""
    exact = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    exact(given(**inputs)(check_one))()


def few_or_many(few: int) -> pytest.MarkDecorator:
    many = pytest.param(10_000, marks=pytest.mark.slow)
    return pytest.mark.parametrize("examples", [few, many])


def refusal(take: Callable[[Any], object], given: Any) -> str | None:
    """The sentence with which something is refused; None where it is taken."""
    try:
        take(given)
    except ConfigError as error:
        return str(error)
    return None


def taken_or_refused(argv: list[str]) -> None:
    sentence = refusal(parse, argv)
    assert sentence is None or (0 < len(sentence) < 2000 and "\n" not in sentence)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """An experiment with fragments put in, pieces cut out and lines doubled."""
    text = draw(st.sampled_from(EXPERIMENTS))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.integers(0, len(text))) for _ in range(2))
        put = draw(st.sampled_from([*FRAGMENTS, "", text[start:end] * 2]) | st.text(max_size=5))
        text = text[:start] + put + text[draw(st.sampled_from([start, end, start + 1])) :]
    return text


@few_or_many(100)
def test_a_damaged_experiment(examples, tmp_path):
    file = tmp_path / "x.yaml"

    def one(text: str) -> None:
        file.write_bytes(text.encode(errors="surrogatepass"))
        taken_or_refused(["--experiment", str(file)])

    fuzz(examples, one, text=damaged())


def test_what_a_sentence_quotes_is_cut(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(f"task: !!set{'9' * 5000} dino")
    taken_or_refused(["--experiment", str(file)])


@pytest.mark.parametrize("name", ["[" * 2000, "x\0y"])
def test_a_run_of_a_name_that_is_no_path(tmp_path, name):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"backbone": {"weights": f"run:{name}"}}))
    taken_or_refused(["--experiment", str(file)])


@few_or_many(60)
def test_bytes_that_are_no_text(examples, tmp_path):
    file = tmp_path / "x.yaml"

    def one(content: bytes) -> None:
        file.write_bytes(content)
        taken_or_refused(["--experiment", str(file)])

    fuzz(examples, one, content=st.binary(max_size=40))


@few_or_many(150)
def test_values_of_any_type_in_an_experiment(examples, tmp_path):
    file = tmp_path / "x.yaml"

    def one(content: dict[str, Any]) -> None:
        groups = {path: value for path, value in content.items() if "." not in path}
        inside = {path: value for path, value in content.items() if "." in path}
        file.write_text(yaml.safe_dump({**nested(inside), **groups}))
        taken_or_refused(["--experiment", str(file)])

    fuzz(examples, one, content=st.dictionaries(names | st.just("extends"), values, max_size=3))


@few_or_many(60)
def test_words_of_any_kind_on_the_command_line(examples, tmp_path):
    word = st.sampled_from(WORDS) | st.text(max_size=8)
    option = st.sampled_from([f"--{path}" for path in LEAVES]) | st.text(max_size=5)
    more = st.sampled_from(["--experiment", "--study", "--seeds", "--evaluate", "--images", "-h"])

    def one(words: list[str]) -> None:
        taken_or_refused([*words, "--run.dir", str(tmp_path)])

    fuzz(examples, one, words=st.lists(option | more | word, max_size=5))


@few_or_many(300)
def test_python_objects_of_any_kind(examples):
    def one(path: str, value: Any) -> None:
        hparams = Hparams()
        set_leaf(hparams, path, value)
        sentence = refusal(check, hparams)
        assert sentence is None or (path in sentence and len(sentence) < 2000)

    fuzz(examples, one, path=names, value=values | st.just(object()))


def places(node: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value inside a nested dict."""
    if not isinstance(node, dict | list):
        return [above]
    inside = node.items() if isinstance(node, dict) else enumerate(node)
    return [above, *(place for key, value in inside for place in places(value, (*above, key)))]


# Few rows, each of which takes a whole command line to plan, and every key there is.
STUDY = """
title: A study
about: What is damaged below.
protocol: voc12_standard
seeds: 2
metrics: {test/miou: mIoU}
settings: {trainer.max_epochs: 3}
rows:
  - name: twins
    shown: false
    settings: {task: barlow_twins}
  - name: frozen
    label: its features, frozen
    note: as published
    published: {test/miou: 0.5}
    experiment: voc-attention
    settings: {backbone.weights: run:twins, data.fixed_scales: [1.0, 1.5]}
figures:
  - {picture: attention, title: Attention, rows: [frozen]}
"""


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ("{task: barlow_twins}", "{task: [{}]}", "task"),
        ("test/miou: 0.5", f"test/miou: {10**400}", "published test/miou"),
        ("test/miou: 0.5", "test/miou: .nan", "published test/miou"),
        ("seeds: 2", f"seeds: {10**400}", "seeds"),
        ("seeds: 2", "seeds: 0", "seeds"),
    ],
)
def test_what_fuzzing_found_in_studies_is_refused(tmp_path, good, bad, named):
    assert good in STUDY
    file = tmp_path / "x.yaml"
    file.write_text(STUDY.replace(good, bad))
    sentence = refusal(lambda file: load_study(str(file), None, [], str(tmp_path)), file)
    assert sentence is not None
    assert named in sentence
    assert len(sentence) < 2000


@few_or_many(60)
def test_values_of_any_type_in_a_study(examples, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(STUDY)
    assert len(load_study(str(file), 1, [], str(tmp_path)).runs) == 2

    def one(place: tuple[Any, ...], value: Any) -> None:
        study = node = yaml.safe_load(STUDY)
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        file.write_text(yaml.safe_dump(study))
        sentence = refusal(lambda file: load_study(str(file), 1, [], str(tmp_path)), file)
        assert sentence is None or "\n" not in sentence

    fuzz(examples, one, place=st.sampled_from(places(yaml.safe_load(STUDY))[1:]), value=values)
