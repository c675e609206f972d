"""What of the documentation is made when it is built, so that it cannot grow old: a hook of MkDocs.

* `settings.md` from config/hparams.py, `parts.md` from config/names.py and the files it names.
* README, RESULTS, CONTRIBUTING and CHANGELOG are pages as well. Pages link to files of the
  repository, as GitHub needs it; here such a link leads to the file's page.
* Equations become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import ast
import html
import inspect
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from config import names
from config.advice import advice
from config.errors import as_typed
from config.hparams import Hparams
from config.lookup import CONFIG_DIR
from config.rules import Condition, Either, Needs, Unless, metadata, rules_of
from config.settings_tree import Leaf, base_types, leaves
from config.types import Auto, Between, Kept, OneOf, SomeOf
from config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
# Pages by the file of the repository that they show, or stand for.
PAGES = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "config/hparams.py": "settings.md",
    "config/names.py": "parts.md",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/, and the pictures."""
    for source, page in PAGES.items():
        if source.endswith(".md"):
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "settings.md", content=settings_page()))
    files.append(File.generated(config, "parts.md", content=parts_page()))
    for picture in (ROOT / "assets").iterdir():
        files.append(File.generated(config, f"assets/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files of the repository to their pages."""
    uri = page.file.src_uri
    source = next((file for file, shown in PAGES.items() if shown == uri), f"docs/{uri}")
    here = posixpath.dirname(source)
    return re.sub(r"\]\(([^)#:\s]+)(?=[)#])", lambda m: f"]({_address(here, m[1], uri)}", markdown)


def _address(here: str, link: str, page: str) -> str:
    file = posixpath.normpath(posixpath.join(here, link))
    if not (ROOT / file).exists():
        raise PluginError(f"{page} links to {link}: there is no {file}.")
    return PAGES.get(file, file.removeprefix("docs/"))


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws the equations, which the extension arithmatex has marked."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda m: convert(html.unescape(m[2]), display="block" if m[1] == "div" else "inline"),
        content,
        flags=re.DOTALL,
    )


def settings_page() -> str:
    """Returns every setting: advice, default, what it may be, when it has an effect."""
    parts = [
        "# Settings",
        "Every setting of a run. Edit the default in `config/hparams.py`, or say it on the command "
        "line as `--name value`; `python main.py --help --task TASK` shows those of one task. "
        "`auto` is worked out from task, data and backbone when a run starts, and printed. A "
        "setting that would have no effect is refused.",
    ]
    rules = rules_of(Hparams)
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves(Hparams()):
        groups.setdefault(leaf.path.rpartition(".")[0], []).append(leaf)
    for prefix, settings in groups.items():
        shared = [
            each
            for each in rules[settings[0].path]
            if all(each in rules[leaf.path] for leaf in settings)
        ]
        about = f"{inspect.cleandoc(settings[0].group.__doc__ or '')} {_in_words(shared)}".strip()
        parts.append(f"## {prefix or 'The task'}\n\n{about}")
        for leaf in settings:
            own = [each for each in rules[leaf.path] if each not in shared]
            parts.append(_setting(leaf, own))
    return "\n\n".join(parts) + "\n"


def _setting(leaf: Leaf, conditions: Iterable[Condition]) -> str:
    facts = [f"Default `{as_typed(leaf.default) or 'empty'}`", *_may_be(leaf.annotation)]
    kept = [each for each in metadata(leaf.annotation) if isinstance(each, Kept)]
    return "\n\n".join(
        [
            f"#### `{leaf.path}` {{ #{leaf.path} }}",
            html.escape(advice(leaf), quote=False),
            f"{'; '.join(facts)}. {_in_words(conditions)}".strip(),
            *(f"A resumed run keeps it: {each.because}." for each in kept),
        ]
    )


def _in_words(conditions: Iterable[Condition]) -> str:
    return " ".join(f"Needs {_condition(each)}." for each in conditions)


def _condition(condition: Condition) -> str:
    if isinstance(condition, Either):
        return " or ".join(map(_condition, condition.conditions))
    word = "no " if isinstance(condition, Unless) else ""
    return f"{word}`{Needs.__str__(condition)}`"


def _may_be(annotation: Any) -> Iterator[str]:
    found, kinds = list(metadata(annotation)), base_types(annotation)
    literals = [kind for kind in kinds if get_origin(kind) is Literal]
    choices = [value for kind in literals for value in get_args(kind)]
    choices += [name for each in found if isinstance(each, OneOf | SomeOf) for name in each.names]
    if choices:
        several = "any" if any(isinstance(each, SomeOf) for each in found) else "one"
        yield f"{several} of {', '.join(f'`{each}`' for each in choices)}"
    else:
        text = "`auto`" if any(isinstance(each, Auto) for each in found) else "a text"
        yield " or ".join(_kind(kind, text) for kind in kinds)
    yield from (_range(each) for each in found if isinstance(each, Between))


def _kind(kind: Any, text: str) -> str:
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return f"a list, each {_kind(item, text)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", type(None): "`null`"}
    return words.get(kind, text)


def _range(allowed: Between) -> str:
    if allowed.high == float("inf"):
        return f"at least {allowed.low:g}"
    return f"from {allowed.low:.12g} to {allowed.high:.12g}"


def parts_page() -> str:
    """Returns tables of all that can be chosen by name."""
    tables = [
        ("Tasks", "--task", names.TASKS),
        ("Data sets", "--data.name", names.DATASETS),
        ("Backbones", "--backbone.name", names.BACKBONES),
        ("Segmentation heads", "--segmentation.head", names.HEADS),
        ("Fusions of attention", "--segmentation.fusion", names.FUSIONS),
        ("Losses of segmentation", "--segmentation.loss", names.LOSSES),
        ("Protocols", "--segmentation.protocol", names.PROTOCOLS),
        ("Optimizers", "--optim.name", names.OPTIMIZERS),
        ("Schedules", "--optim.schedule", names.SCHEDULES),
    ]
    parts = ["# What exists", "Made from `config/names.py`: what is listed here can be chosen."]
    for title, option, table in tables:
        rows = [(name, _summary(target), _file(target)) for name, target in table.items()]
        parts.append(f"## {title}\n\n`{option}`\n\n" + _table(("name", "what", "file"), rows))
    aliases = ", ".join(f"`{ours}` = `{study}`" for ours, study in names.FUSION_ALIASES.items())
    parts.append(
        f"Fusions have a second name: {aliases}. Losses on attention itself "
        f"(`--segmentation.attention_loss_terms`): {', '.join(names.ATTENTION_LOSSES)}."
    )
    rows = [
        (name, _summary(each.target), ", ".join(each.tasks))
        for name, each in names.CALLBACKS.items()
    ]
    parts.append(
        "## Pictures and readouts\n\n`--callbacks.NAME.enabled`\n\n"
        + _table(("name", "what", "tasks"), rows)
    )
    for folder, words in (("studies", "--study"), ("experiments", "--experiment")):
        files = sorted((CONFIG_DIR / folder).glob("*.yaml"))
        table_of_files = _table(("name", "what"), [(file.stem, _about(file)) for file in files])
        parts.append(f"## {folder.title()}\n\n`{words}`\n\n{table_of_files}")
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *((f"`{name}`", *rest) for name, *rest in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _file(target: str) -> str:
    return f"`{target.partition(':')[0].replace('.', '/')}.py`"


def _summary(target: str) -> str:
    """Returns the first line of a part's docstring, without importing it."""
    module, _, name = target.partition(":")
    return _docstrings(ROOT / f"{module.replace('.', '/')}.py").get(name, "")


@cache
def _docstrings(file: Path) -> dict[str, str]:
    nodes = ast.parse(file.read_text()).body
    documented = [n for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    return {n.name: (ast.get_docstring(n) or "").partition("\n")[0] for n in documented}


def _about(file: Path) -> str:
    """Returns a study's title, or what the opening comment of an experiment says of it."""
    content = read_yaml(file)
    if "title" in content:
        return str(content["title"])
    comment = [line[1:].strip() for line in file.read_text().splitlines() if line[:1] == "#"]
    text = " ".join(line for line in comment if not line.startswith("python main.py"))
    text = text.strip().removeprefix("Reproduces: ")
    first = re.split(r"\. (?=[A-Z])|; ", text)[0].rstrip(".")
    return f"{first[:1].upper()}{first[1:]}."
