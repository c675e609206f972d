import logging
import os
import platform
from types import SimpleNamespace

import pytest
import torch

from main import main
from utils import device
from utils.console import quiet_libraries
from utils.memory import held_by_others
from utils.rng import CPU, random_state, rng_preserved, set_random_state


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_card_that_torch_cannot_use_is_no_silent_cpu_run(no_cuda, monkeypatch):
    monkeypatch.setattr(device, "nvidia_cards", lambda: ["Tesla P100-PCIE-16GB"])
    with pytest.raises(ValueError, match=r"has Tesla P100.* --trainer.accelerator cpu"):
        device.check_accelerator("auto")
    device.check_accelerator("cpu")


def test_no_card_means_the_cpu_unless_a_gpu_is_asked_for(no_cuda, monkeypatch):
    monkeypatch.setattr(device, "nvidia_cards", list)
    device.check_accelerator("auto")
    with pytest.raises(ValueError, match=r"--trainer.accelerator gpu: .* no NVIDIA card"):
        device.check_accelerator("gpu")


@pytest.mark.parametrize(
    ("capability", "fits"), [((6, 0), False), ((7, 0), False), ((7, 5), True), ((12, 0), True)]
)
def test_an_old_card_gets_the_exact_remedy(monkeypatch, capability, fits):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_90"])
    if fits:
        device.check_accelerator("auto")
    else:
        with pytest.raises(ValueError, match=r"requirements-pascal.txt"):
            device.check_accelerator("auto")


@pytest.mark.parametrize(
    ("built", "capability", "fits"),
    [
        (["sm_75", "sm_86"], (8, 9), True),  # newer of the same generation
        (["sm_75", "sm_86"], (8, 0), False),
        (["sm_75", "sm_86"], (9, 0), False),
        (["sm_75", "sm_86", "compute_86"], (12, 0), True),  # the driver compiles it
        (["sm_90", "sm_100a", "compute_100a"], (10, 3), False),  # that card's own
        (["sm_90", "sm_100f", "compute_100f"], (10, 3), True),  # its family's
        (["sm_90", "sm_100f", "compute_100f"], (12, 0), False),
        (["gfx90a"], (9, 4), True),  # AMD's names say nothing here
    ],
)
def test_a_card_that_torch_has_no_code_for_is_named(monkeypatch, built, capability, fits):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    if fits:
        device.check_accelerator("auto")
    else:
        with pytest.raises(ValueError, match=r"no code for card .* --upgrade torch"):
            device.check_accelerator("auto")


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [(True, (8, 6), "bf16-mixed"), (False, (7, 0), "16-mixed"), (False, (6, 0), "32-true")],
)
def test_precision_by_card(monkeypatch, bf16, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.resolve_precision("auto", "auto") == expected
    assert device.resolve_precision("auto", "cpu") == "32-true"
    assert device.resolve_precision("64-true", "auto") == "64-true"
    assert device.resolve_precision("16-mixed", "auto") == "16-mixed"
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        device.resolve_precision("16-mixed", "cpu")
    # A card would imitate bfloat16, or not know it.
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert device.resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    if bf16:
        assert device.resolve_precision("bf16-mixed", "auto") == "bf16-mixed"
    else:
        with pytest.raises(ValueError, match=rf"Tesla T4 has no bfloat16\. Use auto \({expected}"):
            device.resolve_precision("bf16-mixed", "auto")
    # A run judged again has its own precision, where the card has it.
    assert device.precision_here(expected, torch.device("cuda")) == expected
    assert device.precision_here("bf16-mixed", torch.device("cuda")) == (
        "bf16-mixed" if bf16 else "32-true"
    )
    assert device.precision_here("16-mixed", torch.device("cuda")) == (
        "16-mixed" if capability >= (7, 0) else "32-true"
    )
    assert device.precision_here("bf16-mixed", torch.device("cpu")) == "bf16-mixed"
    assert device.precision_here("16-mixed", torch.device("cpu")) == "32-true"
    assert device.precision_here("64-true", torch.device("cuda")) == "64-true"


def started(*_):
    raise AssertionError("CUDA was started")


@pytest.fixture
def unused_gpu(monkeypatch):
    """A GPU that is there, and is not to be touched."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("mem_get_info", "synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, started)
    monkeypatch.setattr(torch.cuda, "get_device_capability", started)
    monkeypatch.setattr(torch.Tensor, "pin_memory", started)


@pytest.mark.parametrize("task", ["barlow_twins", "segmentation"])
def test_a_run_on_the_cpu_leaves_the_gpu_alone(train, unused_gpu, monkeypatch, task):
    # What Lightning and torch's optimizers ask for whatever the device is.
    stream = SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: None)
    code, folder = train(task, task=task, trainer__max_epochs=1, data__num_workers=1)
    assert code == 0
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    states = next(v for k, v in last["callbacks"].items() if k.startswith("RandomState"))
    assert states["0"].keys() == {"cpu"}


def test_states_of_a_gpu_are_left_out_of_a_run_on_the_cpu(unused_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", started)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", started)
    of_a_gpu = {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    set_random_state({**random_state(CPU), **of_a_gpu}, CPU)


def test_states_of_a_gpu_that_trains_are_kept_and_put_back(monkeypatch):
    states, put_back = [torch.arange(16, dtype=torch.uint8)], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.extend)
    gpu = torch.device("cuda")
    set_random_state(random_state(gpu), gpu)
    assert torch.equal(put_back[0], states[0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    set_random_state(random_state(gpu), gpu)  # of a machine with one
    assert len(put_back) == 1


def test_the_state_of_apples_gpu_is_kept_and_put_back(monkeypatch):
    states = [torch.arange(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    gpu = torch.device("mps")
    with rng_preserved(gpu):
        states.append(torch.zeros(16, dtype=torch.uint8))  # something draws from it
    assert torch.equal(states[-1], states[0])
    count = len(states)
    set_random_state(random_state(CPU), gpu)  # a run of a CPU goes on there
    set_random_state(random_state(gpu), CPU)
    assert len(states) == count


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_segments_of_memory_grow_unless_the_user_chose(monkeypatch, tmp_path, given, expected):
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--compare", "nothing", "--run.dir", str(tmp_path)]) == 2
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected


def test_segments_stay_as_they_are_where_they_cannot_grow(monkeypatch, tmp_path):
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert main(["--compare", "nothing", "--run.dir", str(tmp_path)]) == 2
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


@pytest.mark.parametrize(
    ("free", "ours", "words"),
    [(1, 1, "Other programs hold 8.0 of the GPU's 10.0 GiB: nvidia-smi"), (1, 8, ""), (9, 0, "")],
)
def test_programs_that_hold_a_gpus_memory_are_told_of(monkeypatch, free, ours, words):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, 10 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: ours * 2**30)
    said = held_by_others(torch.device("cuda"))
    assert words in said
    assert bool(words) is bool(said)
    assert not held_by_others(CPU)


def test_programs_that_leave_no_room_to_begin_are_told_of(monkeypatch):
    def full(_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    assert "nvidia-smi" in held_by_others(torch.device("cuda"))


def test_an_old_driver_gets_a_torch_that_it_can_run(no_cuda, monkeypatch):
    monkeypatch.setattr(device, "nvidia_cards", lambda: ["NVIDIA GeForce RTX 3080"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match=r"580 or newer.*requirements-pascal\.txt"):
        device.check_accelerator("auto")


@pytest.mark.parametrize(
    ("system", "remedy"), [("posix", "--force-reinstall torch"), ("nt", "pytorch.org/get-started")]
)
def test_a_torch_without_cuda_is_replaced_as_the_system_needs(no_cuda, monkeypatch, system, remedy):
    monkeypatch.setattr(device, "nvidia_cards", lambda: ["NVIDIA GeForce RTX 4060 Laptop GPU"])
    monkeypatch.setattr(torch.version, "cuda", None)
    with monkeypatch.context() as there:
        there.setattr(os, "name", system)
        with pytest.raises(ValueError, match="CPU build") as refused:
            device.check_accelerator("auto")
    assert remedy in str(refused.value)


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("precision", "kind", "capability", "expected"),
    [
        ("bf16-mixed", "cuda", (8, 6), "high"),
        ("16-mixed", "cuda", (8, 0), "high"),
        ("16-mixed", "cuda", (7, 5), "highest"),
        ("32-true", "cuda", (9, 0), "highest"),
        ("64-true", "cuda", (9, 0), "highest"),
        ("bf16-mixed", "cpu", None, "highest"),
    ],
)
def test_tf32_beside_half_precision(
    monkeypatch, matmul_precision, precision, kind, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.use_tensor_cores(precision, torch.device(kind)) is (expected == "high")
    assert torch.get_float32_matmul_precision() == expected
    assert torch.backends.cudnn.allow_tf32 is (expected == "high")  # of convolutions


def test_what_is_kept_of_a_card_says_how_it_multiplies(monkeypatch, matmul_precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    card, kept = torch.device("cuda"), {}
    for precision in ("32-true", "bf16-mixed"):
        device.use_tensor_cores(precision, card)
        kept[precision] = device.arithmetic(card)
        assert device.arithmetic(torch.device("cpu")) == {}
    assert {} != kept["32-true"] != kept["bf16-mixed"] != {}


def test_cards_that_nothing_can_be_compiled_for_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    device.check_compiles(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"Tesla P100.*7\.0 or newer"):
        device.check_compiles(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    device.check_compiles(torch.device("cuda"))


@pytest.mark.parametrize(("rank", "taken"), [("1", [1]), ("2", []), (None, [])])
def test_each_of_several_processes_takes_its_own_gpu(monkeypatch, rank, taken):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    device.use_own_gpu()
    assert chosen == taken


def test_processes_of_srun_take_their_own_gpu(monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    device.use_own_gpu()
    assert chosen == [3]


def test_attention_whose_gradient_sums_in_any_order_is_not_for_the_same_numbers_twice():
    kinds = ("flash", "mem_efficient", "cudnn")

    def allowed():
        return {getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in kinds}

    device.use_same_numbers(True, torch.device("cuda"))
    assert allowed() == {False}
    assert torch.backends.cuda.math_sdp_enabled()
    for wanted, where in ((False, "cuda"), (True, "cpu")):
        device.use_same_numbers(True, torch.device("cuda"))
        device.use_same_numbers(wanted, torch.device(where))
        assert allowed() == {True}


@pytest.mark.parametrize("action", [["--evaluate", "run"], ["--predict", "run", "--images", "."]])
def test_a_card_that_torch_cannot_use_judges_nothing_either(train, monkeypatch, capsys, action):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    given = ["--run.dir", str(folder.parent), "--trainer.accelerator", "auto"]
    assert main([*action, *given]) == 2
    assert "requirements-pascal.txt" in capsys.readouterr().err


def test_the_tip_about_tensor_cores_is_not_shown(caplog):
    quiet_libraries()
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("You are using a CUDA device that has Tensor Cores. To properly utilize them")
    assert not caplog.records
