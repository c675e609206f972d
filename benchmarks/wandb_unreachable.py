"""Measures the seconds that a run loses if wandb cannot be reached, against an offline run.

python benchmarks/wandb_unreachable.py
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
RUN = [sys.executable, str(ROOT / "main.py"), "--fast", "--data.num_workers", "0"]
KEY = "0" * 40


@contextmanager
def silent_server() -> Iterator[str]:
    """Runs a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def seconds(folder: Path, name: str, mode: str, address: str) -> float:
    """Runs once; returns how long it took."""
    places = ["--run.dir", str(folder), "--data.root", str(folder / "shapes"), "--run.name", name]
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": address}
    began = time.monotonic()
    subprocess.run(
        [*RUN, *places, "--logger.mode", mode],
        env=environment,
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def main() -> None:
    """Prints one row per way of being unreachable."""
    with TemporaryDirectory() as place, silent_server() as silent:
        folder = Path(place)
        ways = {
            "nobody listens": "http://127.0.0.1:9",
            "an address nobody has": "http://10.255.255.1",
            "a name nobody has": "http://wandb.invalid",
            "takes the connection, never answers": silent,
        }
        seconds(folder, "images", "offline", silent)  # generates the images
        print("| wandb | offline, s | mode auto, s | more, s |\n|---|---|---|---|")
        for number, (way, address) in enumerate(ways.items()):
            offline = seconds(folder, f"offline-{number}", "offline", address)
            auto = seconds(folder, f"auto-{number}", "auto", address)
            print(f"| {way} | {offline:.1f} | {auto:.1f} | {auto - offline:.1f} |", flush=True)


if __name__ == "__main__":
    main()
