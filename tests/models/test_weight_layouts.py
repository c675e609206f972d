"""A backbone computes what the network computes whose file it loads, or refuses the file."""

import pytest
import torch

from models.backbones.weights import load_state, load_weights
from tests.models.layouts import LAYOUTS


@pytest.mark.parametrize("name", LAYOUTS)
def test_features_are_those_of_the_source(name, tmp_path):
    layout = LAYOUTS[name]
    net, backbone = layout.network(), layout.ours()
    file = tmp_path / "weights.pth"
    torch.save(layout.write(dict(net.state_dict())), file)
    if layout.refused:
        before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
        with pytest.raises(ValueError, match=rf"weights\.pth is not loaded.*{layout.refused}"):
            load_weights(backbone, str(file))
        for key, value in backbone.net.state_dict().items():
            assert torch.equal(value, before[key])
        return
    report = load_weights(backbone, str(file))
    assert report is not None
    assert report.coverage == 1
    assert not report.missing
    assert layout.largest_difference(net, backbone) < 1e-5


def test_what_may_have_had_rotary_positions_is_said_to_be_taken_for_deit():
    layout = LAYOUTS["DeiT-III, official, in timm's"]
    state = layout.network().state_dict()
    backbone = layout.ours()
    for written, told in ((layout.write(dict(state))["model"], True), (state, False)):
        report = str(load_state(backbone, written, "file"))
        assert ("taken for DeiT-III's: timm's *_rope_ape_*" in report) is told
