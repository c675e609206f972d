"""Studies: runs one after the other, then their table, figures and page."""

from agents.commands.study.plan import Study
from utils.run_folder import RunFolder


def run_folder(study: Study, name: str) -> RunFolder:
    """Returns the folder of a study's run."""
    return RunFolder(study.folder / name)
