import shutil
import subprocess
from pathlib import Path

from utils.environment import changes


def git(folder: Path, *words: str) -> None:
    someone = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    subprocess.run(["git", "-C", str(folder), *someone, *words], check=True, capture_output=True)


def test_the_patch_of_a_run_restores_its_code(tmp_path):
    committed, changed = tmp_path / "committed", tmp_path / "changed"
    committed.mkdir()
    git(committed, "init", "-q")
    (committed / ".gitignore").write_text("runs/\n")
    (committed / "old.py").write_bytes(b"# caf\xe9\nx = 1\n\n\n")  # not UTF-8, lines at its end
    git(committed, "add", ".")
    git(committed, "commit", "-q", "-m", "first")
    shutil.copytree(committed, changed)
    (changed / "old.py").write_bytes(b"# caf\xe9s\nx = 1\n\n\n")
    for new in ("models/heads/mine.py", "config/studies/mine.yaml", "runs/code.py", "venv/code.py"):
        (changed / new).parent.mkdir(parents=True, exist_ok=True)
        (changed / new).write_text("y: 2\n")
    (tmp_path / "code.patch").write_bytes(changes(changed))
    git(committed, "apply", str(tmp_path / "code.patch"))
    for name in ("old.py", "models/heads/mine.py", "config/studies/mine.yaml"):
        assert (committed / name).read_bytes() == (changed / name).read_bytes()
    assert not (committed / "venv/code.py").exists()
    assert not (committed / "runs").exists()
