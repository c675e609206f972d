"""Products that nothing may round: cosines that are ranked, logits of attention."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.attention import AttentionFactors
from models.measures.dense_knn import PatchMemory
from models.measures.knn import knn_scores

PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.mkldnn_linear.default,
)


class Products(TorchDispatchMode):
    """Notes how each product of matrices was made."""

    def __init__(self) -> None:
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            self.made.add((args[0].dtype, torch.get_float32_matmul_precision()))
        return func(*args, **(kwargs or {}))


def votes(queries, bank, classes):
    return knn_scores(queries, bank, classes, 3, k=5)


def shares(queries, bank, classes):
    memory = PatchMemory(bank.shape[1], 3, k=5)
    memory.fill(bank, F.one_hot(classes, 3))
    return memory(queries)


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("search", [votes, shares])
def test_a_search_beside_half_precision_is_that_of_float32(tf32, search):
    bank = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(40) % 3
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        found = search(bank[:7], bank, classes)
    assert products.made == {(torch.float32, "highest")}
    assert torch.get_float32_matmul_precision() == "high"  # of what comes after
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, search(bank[:7], bank, classes))


def test_logits_of_attention_beside_half_precision_are_those_of_float32(tf32):
    """Those of a Gaussian neighbourhood are in the thousands, and differ by halves."""
    q, k = torch.randn(2, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    factors = AttentionFactors(0, q, k, (2, 4), 1, has_cls=True)
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        factors.rows("cls")
        for pair in ("qk", "qq", "kk"):
            factors.patch_attention(0, pair)
    assert products.made == {(torch.float32, "highest")}


def test_it_is_put_back_after_an_error(tf32):
    with pytest.raises(ValueError, match="nothing is remembered"):
        PatchMemory(8, 3)(torch.zeros(1, 8))
    memory = PatchMemory(8, 3)
    memory.fill(torch.randn(5, 8), torch.ones(5, 3))
    with pytest.raises(RuntimeError):
        memory(torch.randn(2, 9))
    assert torch.get_float32_matmul_precision() == "high"
