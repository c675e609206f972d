import pytest
import torch

from utils import device


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
    with pytest.raises(ValueError, match=r"--trainer.accelerator gpu"):
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
    ("bf16", "capability", "expected"),
    [(True, (8, 6), "bf16-mixed"), (False, (7, 5), "16-mixed"), (False, (6, 0), "32-true")],
)
def test_precision_by_card(monkeypatch, bf16, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.resolve_precision("auto", "auto") == expected
    assert device.resolve_precision("auto", "cpu") == "32-true"
    assert device.resolve_precision("64-true", "auto") == "64-true"
