"""The search is exact, whichever library multiplies."""

import pytest
import torch
import torch.nn.functional as F

from models.measures.nearest import nearest


def features(number, width, seed):
    draws = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, width, generator=draws) + 1, dim=1)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of no machine here
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("queries", "known", "k"), [(1, 1, 1), (7, 300, 300), (64, 5000, 30)])
def test_the_nearest_are_those_of_float64(queries, known, k, autocast, onednn):
    asked, remembered = features(queries, 384, 0), features(known, 384, 1)
    with (
        torch.backends.mkldnn.flags(enabled=onednn),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        cosines, places = nearest(asked, remembered, k)
    exact = asked.double() @ remembered.double().T
    expected = exact.topk(k, dim=1).values
    torch.testing.assert_close(cosines.double(), expected, rtol=0, atol=1e-6)
    # Those that differ by less may change places, no others.
    torch.testing.assert_close(exact.gather(1, places), expected, rtol=0, atol=1e-6)
    assert all(len(set(row)) == k for row in places.tolist())


def test_none_asks_nothing():
    cosines, places = nearest(features(0, 8, 0), features(5, 8, 1), 3)
    assert cosines.shape == places.shape == (0, 3)
