"""Fusions are what they say, and their controls take the truth out and nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import models.fusions.affinity_propagation as affinity
from config.names import FUSIONS, HEADS
from models.attention import AttentionFactors, AttentionRequest
from models.backbones.base import Features
from models.backbones.botnet import botnet50
from models.backbones.resnet import resnet18
from models.backbones.swin import build as build_swin
from models.backbones.vit import vit_tiny
from models.backbones.vit_pytorch import vit_pytorch
from models.fusions.affinity_propagation import AffinityPropagation
from models.fusions.attention_fusion import AttentionFusion, attention_heads, attention_request
from models.fusions.base import attention_maps, log_maps
from models.fusions.class_queries import ClassQueries
from models.fusions.controls import local, shuffled, uniform
from models.fusions.maps_as_channels import MapsAsChannels
from utils.imports import load

CLASSES, WIDTH, HEADS_EACH = 5, 24, (3, 3)


def images(height: int = 32, width: int = 32, count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def vit(make: Any = vit_tiny, **changed: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "depth": 3, "embed_dim": WIDTH, "num_heads": 3}
    return make(**sizes | changed).double().eval()


def swin() -> Any:
    torch.manual_seed(0)
    backbone = build_swin("tiny", 8, (1, 1, 2, 1), (1, 2, 2, 4), image_size=64, window_size=2)
    return backbone.double().eval()


def features(layers: str = "last", **size: int) -> Features:
    backbone = vit(layers=layers)
    request = attention_request(backbone, (-2, -1), all_pairs=True)
    with torch.no_grad():
        return backbone(images(**size), request)


def fusion(name: str, layers: int = 1, **settings: Any) -> Any:
    torch.manual_seed(1)
    made = load(FUSIONS[name])((WIDTH,) * layers, (8,) * layers, CLASSES, HEADS_EACH, **settings)
    return made.double().eval()


def head(name: str = "setr_naive", channels: tuple[int, ...] = (WIDTH,)) -> Any:
    torch.manual_seed(2)
    return load(HEADS[name])(channels, (8,) * len(channels), CLASSES).double().eval()


def peaked(given: Features) -> Features:
    """Attention that is far from uniform, as in a trained network."""
    return replace(given, factors=tuple(replace(f, q=20 * f.q) for f in given.factors))


# --- queries and keys -----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 7), (3, 5), (8, 8), (9, 2)])
def test_uniform_attention_says_nothing_on_any_grid(grid):
    maps = torch.full((2, 3, *grid), 1 / (grid[0] * grid[1]))
    torch.testing.assert_close(log_maps(maps), torch.zeros_like(maps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [vit_tiny, vit_pytorch])
def test_attention_follows_from_queries_and_keys(make):
    backbone = vit(make)
    x = images(40, 32)
    with torch.no_grad():
        factors = backbone(x, AttentionRequest((0, -1), "factors")).factors
        for queries in ("cls", "mean", "all"):
            rows = backbone(x, AttentionRequest((0, -1), queries)).attention
            for found, expected in zip(factors, rows, strict=True):
                assert found.block == expected.block
                got = found.rows(queries)
                assert got.grid == (5, 4)
                torch.testing.assert_close(got.weights, expected.weights, rtol=0, atol=1e-12)
    patches = factors[0].patch_attention(1)
    torch.testing.assert_close(patches, factors[0].rows("all").weights[:, 1, 1:, 1:])


def test_a_botnets_relative_positions_are_among_its_factors():
    torch.manual_seed(0)
    backbone = botnet50(image_size=64).double().eval()
    with torch.no_grad():
        factors = backbone(images(64, 96), AttentionRequest((0, 2), "factors")).factors
        rows = backbone(images(64, 96), AttentionRequest((0, 2), "all")).attention
    for found, expected in zip(factors, rows, strict=True):
        torch.testing.assert_close(found.rows("all").weights, expected.weights, rtol=0, atol=1e-12)
        assert found.patch_keys().shape[-1] == 512
        assert found.num_position == sum(found.grid)


def test_factors_are_resized_where_they_are_patches():
    (factors,) = features(height=40).factors[:1]
    assert factors.resized(factors.grid) is factors
    larger = factors.resized((7, 9))
    assert larger.q.shape == (2, 3, 1 + 63, 8)
    assert torch.equal(larger.k[:, :, 0], factors.k[:, :, 0])
    flat = replace(factors, k=torch.ones_like(factors.k)).resized((3, 2))
    torch.testing.assert_close(flat.k, torch.ones_like(flat.k))


# --- fusion 2 -------------------------------------------------------------------------------------


def naive_cosines(vectors: Tensor) -> Tensor:
    count = len(vectors)
    cosine = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            value = vectors[i] @ vectors[j] / (vectors[i].norm() * vectors[j].norm())
            cosine[i, j] = max(0.0, float(value))
    return cosine / cosine.sum(1, keepdim=True)


def naive_among_themselves(vectors: Tensor) -> Tensor:
    """softmax(x xᵀ / √d) of the plain vectors of patches."""
    return torch.stack([(x @ vectors.T / vectors.shape[1] ** 0.5).softmax(0) for x in vectors])


NAIVE = {
    "qk": lambda f, i, h: f.rows("all").weights[i, h, 1:, 1:],
    # The factors' queries carry the scale of the logits, 1 / √8.
    "qq": lambda f, i, h: naive_among_themselves(f.q[i, h, 1:] * 8**0.5),
    "kk": lambda f, i, h: naive_among_themselves(f.k[i, h, 1:]),
}


def naive_walk(given: Features, mix: Tensor, gamma: float, edges: tuple[str, ...]) -> Tensor:
    """P of equation S = (W + Wᵀ) / 2, P = S^γ / rowsum, one image and pair at a time."""
    found = []
    for image in range(2):
        parts = []
        for kind in [each for each in NAIVE if each in edges]:
            parts += [NAIVE[kind](f, image, h) for f in given.factors for h in range(3)]
        if "keys" in edges:
            keys = [f.k[image, :, 1:].transpose(0, 1).flatten(1) for f in given.factors]
            parts += [naive_cosines(each) for each in keys]
        if "tokens" in edges:
            parts.append(naive_cosines(given.maps[-1][image].flatten(1).T))
        weights = mix.exp() / mix.exp().sum()
        mixed = sum(w * part for w, part in zip(weights, parts, strict=True))
        sharp = ((mixed + mixed.T) / 2) ** gamma
        found.append(sharp / sharp.sum(1, keepdim=True))
    return torch.stack(found)


@pytest.mark.parametrize(
    "edges",
    [("qk", "keys"), ("qk",), ("qq",), ("kk",), ("tokens",), ("tokens", "kk", "keys", "qq", "qk")],
)
def test_propagation_equals_a_plain_reference(edges):
    given, part, decoder = features(), fusion("fusion2", steps=2, edges=edges), head()
    with torch.no_grad():
        part.mix.copy_(torch.linspace(-1, 1, len(part.mix)))
        part.alpha.fill_(0.4)
        part.gamma.fill_(0.7)
        gamma = float(torch.nn.functional.softplus(part.gamma))
        walk = naive_walk(given, part.mix, gamma, edges)
        torch.testing.assert_close(part.edges(given), walk, rtol=1e-9, atol=1e-12)
        logits = decoder.native(given)
        alpha, start = float(part.alpha.sigmoid()), logits.flatten(2).transpose(1, 2)
        now = start
        for _ in range(2):
            now = (1 - alpha) * start + alpha * walk @ now
        expected = now.transpose(1, 2).view_as(logits)
        found = AttentionFusion({"it": part})(decoder, given)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("carries", ["logits", "features"])
@pytest.mark.parametrize("name", ["setr_naive", "setr_pup", "linear"])
def test_without_a_share_of_the_neighbours_it_is_the_head(name, carries):
    given, part, decoder = features(), fusion("fusion2", carries=carries), head(name)
    together = AttentionFusion({"it": part})
    with torch.no_grad():
        near = (together(decoder, given) - decoder.native(given)).abs().max()
        part.alpha.fill_(-torch.inf)
        torch.testing.assert_close(together(decoder, given), decoder.native(given))
    assert 0 < near < 0.5 * decoder.native(given).std()


@pytest.mark.parametrize("side", [4, 16])
def test_logits_in_half_precision_are_corrected_in_float32(side):
    """Those of 16 x 16 are finer than the 4 x 4 patches; a CPU averages no bfloat16."""
    backbone, part = vit().float(), fusion("fusion2").float()
    logits = torch.randn(2, CLASSES, side, side).bfloat16()
    with torch.no_grad():
        given = backbone(images(), attention_request(backbone, (-2, -1), all_pairs=True))
        expected = part.refine(logits.float(), given, part.edges(given))
        with torch.autocast("cpu", torch.bfloat16):
            found = part.refine(logits, given, part.edges(given))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("carries", ["logits", "features"])
def test_what_it_looked_at_is_what_it_used_and_costs_nothing(carries):
    given, part, decoder = peaked(features()), fusion("fusion2", carries=carries), head()
    together = AttentionFusion({"it": part})
    with FlopCounterMode(display=False) as plain:
        expected = together(decoder, given)
    with FlopCounterMode(display=False) as looking:
        found, looks = together.looking(decoder, given)
    assert torch.equal(found, expected)
    [(edges, grid)] = looks.edges
    assert grid == (4, 4)
    assert torch.equal(edges, part.edges(given))
    assert 0 < looking.get_total_flops() == plain.get_total_flops()


def test_it_has_few_parameters_and_rows_that_sum_to_one():
    part = AffinityPropagation((384,), (16,), 21, (6, 6))
    assert sum(p.numel() for p in part.parameters()) == 16 < 20
    assert len(part.scalars()) == 3
    edges = fusion("fusion2").edges(peaked(features()))
    torch.testing.assert_close(edges.sum(-1), torch.ones(2, 16, dtype=torch.float64))


def test_each_of_the_edges_has_a_weight_that_is_logged():
    part = fusion("fusion2", edges=("tokens", "kk", "qk"))
    assert [*part.learnt()][2:] == [
        *(f"block{b}/{kind}{h}" for kind in ("head", "kk") for b in range(2) for h in range(3)),
        "tokens",
    ]


def test_uniform_attention_makes_everything_alike():
    part = fusion("fusion2", steps=1)
    given = uniform(features())
    with torch.no_grad():
        part.alpha.fill_(torch.inf)
        logits = torch.randn(2, CLASSES, 4, 4, dtype=torch.float64)
        found = part.refine(logits, given, part.edges(given))
    mean = logits.mean((2, 3), keepdim=True).expand_as(logits)
    torch.testing.assert_close(found, mean)


def test_recomputed_attention_gives_the_same_gradients(monkeypatch):
    part, given, decoder = fusion("fusion2"), peaked(features()), head()

    def gradients() -> list[Tensor]:
        loss = AttentionFusion({"it": part})(decoder, given).square().sum()
        return list(torch.autograd.grad(loss, list(part.parameters())))

    plain = gradients()
    monkeypatch.setattr(affinity, "_MOST_ENTRIES", 0)
    for again, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(again, expected)
        assert expected.abs().max() > 0


def test_fusion2_says_where_it_cannot_work():
    torch.manual_seed(0)
    backbone = botnet50(image_size=64, layers="last4").double().eval()
    request = attention_request(backbone, (0, -1), all_pairs=True)
    with torch.no_grad():
        given = backbone(images(64, 64), request)
    part = fusion("fusion2")
    with pytest.raises(ValueError, match="2 x 2 and 4 x 4"):
        part.edges(given)
    one = replace(given, factors=given.factors[1:])
    carrying = AffinityPropagation((8,), (8,), CLASSES, (4,), carries="features")
    with pytest.raises(ValueError, match="grid of the attention"):
        carrying.enrich(one, carrying.edges(one))


# --- fusion 1 and 3 -------------------------------------------------------------------------------


def test_maps_become_channels_of_unit_spread():
    given, part = peaked(features("1,2")), fusion("fusion1", 2)
    part.train()
    maps = torch.cat([log_maps(each) for each in attention_maps(given)], 1)
    assert maps.shape == (2, 6, 4, 4)
    spread = part.norm(maps).std((0, 2, 3), correction=0)
    assert ((spread > 0.9) & (spread < 1.1)).all()
    # Raw maps would not survive BatchNorm: their variance lies below its epsilon.
    raw = torch.cat(attention_maps(features()), 1)
    assert raw.var((0, 2, 3)).max() < 1e-4
    enriched = part.enrich(given, None)
    assert [each.shape[1] for each in enriched.maps] == list(part.channels) == [WIDTH, WIDTH + 32]
    assert torch.equal(enriched.maps[0], given.maps[0])
    torch.testing.assert_close(enriched.maps[1][:, :WIDTH], given.maps[1])


def test_maps_are_where_cls_looks():
    backbone, blocks = vit(), (-2, -1)
    asked = backbone(images(), AttentionRequest(blocks, "cls")).attention
    found = attention_maps(backbone(images(), attention_request(backbone, blocks, all_pairs=True)))
    for maps, rows in zip(found, asked, strict=True):
        torch.testing.assert_close(maps, rows.patch_maps()[:, :, 0])


def test_log_maps_are_zero_where_attention_is_uniform():
    assert log_maps(torch.full((1, 2, 4, 4), 1 / 16)).abs().max() < 1e-4


def test_class_queries_equal_a_plain_reference():
    given, part = features(), fusion("fusion3")
    with torch.no_grad():
        part.strength.fill_(0.7)
        part.bias.normal_()
        part.class_norm.weight.normal_()
        logits = torch.randn(2, CLASSES, 4, 4, dtype=torch.float64)
        found = part.refine(logits, given, None)
        maps = torch.cat([log_maps(each) for each in attention_maps(given)], 1).flatten(2)
        for image in range(2):
            x = part.norm(given.maps[0][image].flatten(1).T)  # (16, 24)
            keys, values = part.to_keys(x), part.to_values(x)
            m = torch.zeros(CLASSES, 16, dtype=torch.float64)
            for c in range(CLASSES):
                for i in range(16):
                    m[c, i] = part.queries[c] @ keys[i] / 16 + part.bias[c] @ maps[image, :, i]
            queries = part.queries + m.softmax(1) @ values
            answers = torch.zeros(16, CLASSES, dtype=torch.float64)
            for i in range(16):
                gate = part.to_gate(torch.cat([x[i], maps[image, :, i]])).sigmoid()
                share = m[:, i].softmax(0)
                context = sum(share[c] * part.to_context(queries[c]) for c in range(CLASSES))
                patch = keys[i] + gate * context
                for c in range(CLASSES):
                    answers[i, c] = patch @ queries[c] / (patch.norm() * queries[c].norm())
            expected = logits[image] + 0.7 * part.class_norm(answers).T.view(CLASSES, 4, 4)
            torch.testing.assert_close(found[image], expected, rtol=1e-9, atol=1e-9)
    looks = part.looking(logits, given, None)[1]
    assert looks.shape == (2, CLASSES, 4, 4)
    torch.testing.assert_close(looks.sum((2, 3)), torch.ones(2, CLASSES, dtype=torch.float64))


def test_class_queries_start_silent_and_learn():
    given, part, decoder = features(), fusion("fusion3"), head()
    together = AttentionFusion({"it": part})
    found = together(decoder, given)
    assert torch.equal(found, decoder.native(given))
    found.square().sum().backward()
    assert part.strength.grad.abs() > 0
    assert {id(p) for p in part.scalars()} == {id(part.bias), id(part.strength)}


# --- together, and against controls ---------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*HEADS} - {"knn"}))  # nothing of that one is trained
@pytest.mark.parametrize("names", [("fusion1",), ("fusion1", "fusion2", "fusion3")])
def test_fusions_stand_around_any_head(name, names):
    layers = 4 if name == "setr_mla" else 2
    backbone = vit(depth=4, layers=f"last{layers}")
    request = attention_request(backbone, (-2, -1), all_pairs=True)
    given = backbone(images(), request)
    channels, parts = (WIDTH,) * layers, {}
    for each in names:
        made = load(FUSIONS[each])(channels, (8,) * layers, CLASSES, HEADS_EACH)
        parts[each] = made.double()
        channels = made.channels
    decoder = head(name, channels)
    together = AttentionFusion(parts, request)
    logits = together(decoder, given)
    assert logits.shape[:2] == (2, CLASSES)
    logits.sum().backward()
    assert {name.partition("/")[0] for name in together.learnt()} == set(names)
    assert all(isinstance(value, float) for value in together.learnt().values())


def test_a_swin_brings_the_attention_its_patches_receive():
    backbone = swin()
    request = attention_request(backbone, (2, 3), all_pairs=False)
    assert request.queries == "mean"
    given = backbone(images(64, 64), request)
    heads = attention_heads(backbone, request)
    assert heads == (2, 2)
    part = MapsAsChannels(backbone.map_channels, backbone.map_strides, CLASSES, heads).double()
    assert part.enrich(given, None).maps[0].shape[1] == backbone.map_channels[0] + 32
    with pytest.raises(ValueError, match="within windows"):
        attention_request(backbone, (2,), all_pairs=True)


def test_fusion_needs_attention_and_blocks_that_are_there():
    with pytest.raises(ValueError, match="ResNet has no attention"):
        attention_request(resnet18(image_size=32), (-1,), all_pairs=False)
    with pytest.raises(ValueError, match="use 0 … 2"):
        attention_request(vit(), (-1, 3), all_pairs=False)


def sizes() -> list[tuple[list[int], Features]]:
    return [([0, 2], features(height=40)), ([1], peaked(features(count=1, seed=5)))]


def test_the_shuffled_control_takes_the_next_images_attention():
    groups = sizes()
    (_, first), (_, second) = shuffled(groups)
    # Image 0 gets image 1's, image 1 gets 2's, image 2 gets 0's.
    other = groups[1][1].factors[0].resized((5, 4))
    torch.testing.assert_close(first.factors[0].q[0], other.q[0])
    torch.testing.assert_close(second.factors[1].k[0], groups[0][1].factors[1].resized((4, 4)).k[1])
    torch.testing.assert_close(first.factors[0].k[1], groups[0][1].factors[0].k[0])
    assert torch.equal(first.maps[0], groups[0][1].maps[0])
    with pytest.raises(ValueError, match="at least 2"):
        shuffled(groups[1:])


def test_the_shuffled_control_of_factors_whose_positions_depend_on_the_grid():
    """A BoTNet's: so many more dimensions as an image has rows and columns."""
    backbone = botnet50(image_size=64, output_stride=16).eval()
    request = AttentionRequest((-1,), "factors")
    batches = ([0, 1], images(64, 64, 2, 0)), ([2], images(64, 96, 1, 1))
    with torch.no_grad():
        groups = [(positions, backbone(given, request)) for positions, given in batches]
    (_, first), (_, second) = shuffled(groups)
    square, wide = (features.factors[0] for _, features in groups)
    grid = square.grid
    assert wide.q.shape[-1] > square.q.shape[-1]
    for head in range(square.q.shape[1]):
        for pair in ("qk", "qq", "kk"):
            found = first.factors[0].patch_attention(head, pair)
            own = square.patch_attention(head, pair)
            others = wide.resized(grid).patch_attention(head, pair)
            torch.testing.assert_close(found[0], own[1], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found[1], others[0], rtol=1e-4, atol=1e-6)
    expected = square.resized(wide.grid).rows("mean").weights[:1]
    torch.testing.assert_close(second.factors[0].rows("mean").weights, expected)


def test_the_shuffled_control_of_rows():
    backbone = swin()
    request = AttentionRequest((2,), "mean")
    with torch.no_grad():
        groups = [([i], backbone(images(64, w, 1, i), request)) for i, w in enumerate((64, 96))]
    moved = shuffled(groups)
    assert moved[0][1].attention[0].weights.shape == groups[0][1].attention[0].weights.shape
    total = moved[1][1].attention[0].weights.sum()
    torch.testing.assert_close(total, groups[0][1].attention[0].weights.sum(), rtol=0.05, atol=0)


def test_the_uniform_control_knows_nothing():
    given = uniform(peaked(features()))
    for each in attention_maps(given):
        torch.testing.assert_close(each, torch.full_like(each, 1 / 17))
    edges = fusion("fusion2").edges(given)
    torch.testing.assert_close(edges, torch.full_like(edges, 1 / 16))


@pytest.mark.parametrize("pair", ["qk", "qq", "kk"])
def test_the_local_control_is_a_gaussian_of_the_distance(pair):
    """Row by row, against exp(-distance² / 2σ²) of the places on the grid."""
    given = features(height=128, width=96)
    for factors in local(given).factors:
        height, width = factors.grid
        places = [(y, x) for y in range(height) for x in range(width)]
        for head, spread in enumerate((1.0, 2.0, 4.0)):  # one patch … a quarter of 16
            found = factors.patch_attention(head, pair)[1]
            # In the middle, where CLS stands, too: only patches are looked at.
            for i in (0, 17, places.index((height // 2, width // 2)), len(places) - 1):
                squares = [(places[i][0] - y) ** 2 + (places[i][1] - x) ** 2 for y, x in places]
                weights = (-torch.tensor(squares, dtype=torch.float64) / (2 * spread**2)).exp()
                torch.testing.assert_close(found[i], weights / weights.sum(), rtol=0, atol=4e-3)


def test_the_local_control_looks_around_the_middle_and_at_no_image():
    given = local(peaked(features(height=40)))
    for maps in attention_maps(given):
        assert torch.equal(maps[0], maps[1])
        torch.testing.assert_close(maps, maps.flip(-1).flip(-2))
        torch.testing.assert_close(maps.amax((-2, -1)), maps[..., 2, 1])
    torch.manual_seed(0)
    backbone = swin()
    rows = local(backbone(images(64, 64), AttentionRequest((2,), "mean"))).attention[0].weights
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
    assert torch.equal(rows[0], rows[1])


def test_the_local_control_of_a_network_with_positions_of_its_own_is_of_the_places_alone():
    """A BoTNet's factors carry places beside what is in the image; those of a ViT do not."""
    torch.manual_seed(0)
    request = AttentionRequest((-1,), "factors")
    botnet = botnet50(image_size=96).eval()
    with torch.no_grad():
        (found,) = local(botnet(images(96, 96), request)).factors or ()
    assert found.patch_keys().shape == (2, found.grid[0] * found.grid[1], 4 * found.k.shape[1])
    assert torch.equal(found.patch_keys()[0], found.patch_keys()[1])


def test_controls_are_applied_to_batches():
    groups = sizes()
    assert AttentionFusion().controlled(groups) is groups
    alike = AttentionFusion(control="uniform").controlled(groups)
    assert alike[1][1].factors[0].q.abs().max() == 0
    moved = AttentionFusion(control="shuffled").controlled(groups)
    assert not torch.equal(moved[0][1].factors[0].q, groups[0][1].factors[0].q)


def test_a_twin_gives_attention_only_and_learns_nothing():
    backbone, twin = vit(), vit()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(std=0.3)
    request = attention_request(backbone, (-1,), all_pairs=True)
    together = AttentionFusion({"fusion2": fusion("fusion2")}, request, "random_init", twin)
    given = together.features(backbone, images())
    plain, other = backbone(images(), request), twin(images(), request)
    assert torch.equal(given.maps[0], plain.maps[0])
    assert torch.equal(given.factors[0].q, other.factors[0].q)
    together.train()
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())


def test_keys_of_the_positions_do_not_count_as_content():
    q = torch.randn(1, 2, 6, 5)
    factors = AttentionFactors(0, q, q, (2, 3), 0, num_position=2)
    assert torch.equal(factors.patch_keys(), q[..., :3].transpose(1, 2).flatten(2))


def test_class_queries_listen_to_maps():
    given, part = peaked(features()), ClassQueries((WIDTH,), (8,), CLASSES, HEADS_EACH).double()
    logits = torch.zeros(2, CLASSES, 4, 4, dtype=torch.float64)
    before = part.eval().looking(logits, given, None)[1]
    with torch.no_grad():
        part.bias[1, 0] = 3.0
    after = part.looking(logits, given, None)[1]
    torch.testing.assert_close(after[:, 0], before[:, 0])
    moved = after[:, 1] / before[:, 1]
    first = log_maps(attention_maps(given)[0][:, 0])
    expected = (3 * first).exp()
    torch.testing.assert_close(
        moved / moved.mean((1, 2), keepdim=True), expected / expected.mean((1, 2), keepdim=True)
    )
