from collections.abc import Iterator

import pytest
import torch

from utils import cores
from utils.cores import usable_cores
from utils.device import usable_device


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(16)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("ration", "expected"),
    [
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("9900000 100000", 16),
        ("max 100000", 16),
        (None, 16),
    ],
)
def test_a_container_uses_what_it_is_given(monkeypatch, tmp_path, threads, ration, expected):
    """Docker and Kubernetes show it all cores of the machine, and let it use the time of some."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cores, "QUOTA", file := tmp_path / "cpu.max")
    if ration:
        file.write_text(f"{ration}\n")
    assert usable_cores() == expected
    usable_device("cpu")
    assert torch.get_num_threads() == expected
