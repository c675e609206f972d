"""Every task and callback keeps apart what lies on a GPU and on its host.

The GPU is pretended: tensors lie on the CPU, and torch says and demands what it does of a GPU. What
is moved there is marked, what is computed of it is marked too, and what a GPU refuses fails: to
compute with tensors of both, to make numpy's array of one. What torch makes out of sight of Python,
gradients among them, has no mark, and is taken for what it meets. Kernels are the CPU's, those of
half precision too: one that only a GPU lacks is not found.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from config.names import PRETRAINING, TASKS
from main import main
from tests.callbacks.test_guard import all_on

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/test_gpu")
GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
_TO_NUMPY = {Tensor.numpy, Tensor.__array__}
# An index may lie on the host, and what is copied where it likes.
_TAKES_BOTH = {Tensor.copy_, Tensor.to, Tensor.data.__set__, Tensor.type_as, Tensor.__setitem__}
_ASIDE = {torch.device, torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type}
_NO_NUMBERS_OF_THE_HOST = {torch.stack, torch.cat}
_ANSWERS = {
    Tensor.device.__get__: GPU,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
}


def place_of(tensor: Tensor) -> torch.device | None:
    """Returns where a tensor lies, None where that is not known."""
    return tensor.__dict__.get("lies_on")


def device_in(value: Any) -> torch.device | None:
    """Returns the device that an argument names."""
    if isinstance(value, torch.device):
        return value
    named = isinstance(value, str) and value in ("cpu", "cuda", "cuda:0")
    return torch.device(value) if named else None


class PretendedGPU(TorchFunctionMode):
    """Torch as it is with a GPU, as long as this lasts."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return args[0]
        if func in _ASIDE:
            return func(*args, **kwargs)
        if func is Tensor.backward:  # in whose passes this goes on
            with self:
                return _backward(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_gpu = any(place_of(each) == GPU for each in tensors)
        if on_gpu and func in _ANSWERS:
            return _ANSWERS[func]
        if on_gpu and func in _TO_NUMPY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        self._check(func, args, tensors, on_gpu)
        named = [each for each in map(device_in, tree_leaves((args, kwargs))) if each is not None]
        args, kwargs = tree_map(lambda x: HOST if device_in(x) else x, (args, kwargs))
        found = func(*args, **kwargs)
        if named:
            place = GPU if named[0].type == "cuda" else HOST
        elif func is Tensor.cpu or not tensors:
            place = HOST
        elif func is Tensor.type_as:
            place = place_of(tensors[1])
        elif func is Tensor.data.__set__:
            found, place = None, place_of(tensors[1])
            args[0].lies_on = place
        elif func in (Tensor.copy_, Tensor.__setitem__):
            place = place_of(tensors[0])
        else:
            known = [place_of(each) for each in tensors if place_of(each)]
            place = GPU if on_gpu else known[0] if known else None
        return tree_map(lambda x: self._on(x, place, tensors), found)

    def _check(self, func, args, tensors, on_gpu):
        if not on_gpu or func in _TAKES_BOTH:
            return
        if func is Tensor.__getitem__:
            if place_of(args[0]) == HOST:
                raise RuntimeError("indices should be on the same device as the indexed tensor")
            return
        least = 0 if func in _NO_NUMBERS_OF_THE_HOST else 1
        if any(place_of(each) == HOST and each.ndim >= least for each in tensors):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")

    def _on(self, value, place, given):
        if not isinstance(value, Tensor) or place is None:
            return value
        if place_of(value) not in (None, place) and any(value is each for each in given):
            value = value.clone()
        value.lies_on = place
        return value


def _backward(tensor, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)


class _OfTheCPU(torch.autocast):
    def __init__(self, device_type: str, *arguments: Any, **named: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *arguments, **named)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A Tesla T4 that is not there."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "Tesla T4",
        "get_device_capability": (7, 5),
        "get_arch_list": ["sm_75"],
        "is_bf16_supported": False,
        "mem_get_info": (10 * 2**30, 15 * 2**30),
        "memory_reserved": 0,
        "max_memory_allocated": 2**20,
        "is_current_stream_capturing": False,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    silent = ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats")
    for name in (*silent, "set_rng_state_all", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    stream = SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch, "autocast", _OfTheCPU)
    monkeypatch.setattr(torch.amp, "autocast", _OfTheCPU)
    monkeypatch.setattr(torch.autograd, "has_torch_function", lambda *_: False)
    with PretendedGPU():
        yield


def test_what_a_gpu_refuses_is_refused(pretended_gpu):
    here, there = torch.ones(3), torch.ones(3).to("cuda")
    assert (here.device.type, there.device, there.is_cuda) == ("cpu", GPU, True)
    for refused in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[there.long()],
        lambda: torch.stack([there.sum(), here.sum()]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            refused()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there * here.sum()).cpu().numpy().tolist() == [3, 3, 3]
    assert (there + torch.zeros(3, device=there.device))[here.long()].device == GPU


T4 = {"trainer__accelerator": "gpu", "trainer__precision": "16-mixed", "trainer__max_epochs": 1}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_and_all_its_callbacks(train, pretended_gpu, task):
    looked_at = all_on(task)
    if task in PRETRAINING:
        looked_at["data__val_fraction"] = ...
    code, _ = train(**looked_at | T4)  # looks for readouts that failed
    assert code == 0


FUSED = {"segmentation__fusion": ("fusion1", "fusion2", "fusion3")}


@pytest.mark.parametrize(
    "settings",
    [
        {"trainer__chunk_size": 4, "head_information__weight": 0.1},
        {"barlow_twins__mix": 4.0},
        {"task": "dino", "trainer__chunk_size": 4, "dino__head_batch_norm": "false"},
        {"task": "lejepa", "trainer__chunk_size": 4},
        {"trainer__tune_batch_size": "true"},
        {"task": "segmentation", "segmentation__attention_loss": 0.2, **FUSED},
        {"task": "segmentation", "backbone__freeze": "true", "data__views": "fixed", **FUSED},
        {"task": "segmentation", "segmentation__head": "knn", "backbone__freeze": "true"},
        {"task": "linear_probe", "probe__kind": "both"},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_other_ways_to_train(train, pretended_gpu, settings):
    given = T4 | settings
    if settings.get("segmentation__head") == "knn":
        given["trainer__max_epochs"] = ...
    assert train(**given)[0] == 0


@pytest.mark.parametrize("task", TASKS)
def test_what_was_trained_is_judged_and_used(train, pretended_gpu, shapes_root, task):
    code, folder = train(task=task, **T4)
    assert code == 0
    place = ["--run.dir", str(folder.parent), "--trainer.accelerator", "gpu"]
    assert main(["--evaluate", "run", *place]) == 0
    if task == "segmentation":
        images = next(shapes_root.rglob("*.jpg")).parent
        assert main(["--predict", "run", "--images", str(images), *place]) == 0
