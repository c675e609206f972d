"""Vision Transformers from timm (Dosovitskiy et al. 2021; sizes of DeiT, Touvron et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import HybridEmbed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from models.attention import Attention, AttentionFactors, AttentionRequest
from models.backbones.base import (
    Features,
    GlobalAttentionBackbone,
    Pool,
    StateDict,
    Tokens,
    as_map,
)
from models.backbones.other_names import in_the_names_of
from models.backbones.positions import cls_with_its_place, fitted_biases, fitted_positions
from models.backbones.timm_base import TimmBackbone, attention_modules, layer_names
from models.backbones.vit_published import published_for
from models.scores import scores_of
from utils.text import as_arguments


class ViT(TimmBackbone, GlobalAttentionBackbone):
    """timm's ViT with its tokens as maps; fits any timm network with `blocks[i].attn.qkv`."""

    net: VisionTransformer

    def __init__(self, net: VisionTransformer, pool: Pool = "cls", layers: str = "last") -> None:
        info: Any = net.feature_info
        self.patch_size = int(info[-1]["reduction"])  # of a patch, or of its convolutions
        super().__init__(net, layers, self.patch_size)
        self.num_prefix = net.num_prefix_tokens
        self.has_cls = any(name.endswith("cls_token") for name, _ in net.named_parameters())
        self.pool = pool

    def attention_modules(self) -> list[Any]:
        """See `TimmBackbone.attention_modules`."""
        return attention_modules(self.net)

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        last = self.depth - 1
        # Pooled features come from the last block's tokens: requested from timm as well, these
        # would be normalised a second time.
        tokens, answers = self._tokens(
            images, attention, indices=sorted({*self.layers, last}), norm=True
        )
        layers = tokens if last in self.layers else tokens[:-1]
        return self.token_features(tokens[-1], layers, self._grid(*images.shape[-2:]), answers)

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`."""
        tokens, _ = self._tokens(images, norm=False)
        grid = self._grid(*images.shape[-2:])
        names = layer_names(self.net)
        return {name: as_map(each, grid) for name, (each, _) in zip(names, tokens, strict=True)}

    def _tokens(
        self, images: Tensor, attention: AttentionRequest | None = None, **options: Any
    ) -> tuple[list[Tokens], tuple[Attention | AttentionFactors, ...]]:
        # NLC, because timm's own maps (NCHW) are copies.
        tokens, answers = self.intermediates(
            images,
            attention,
            output_fmt="NLC",
            return_prefix_tokens=self.num_prefix > 0,
            intermediates_only=True,
            **options,
        )
        return [x if self.num_prefix else (x, x[:, :0]) for x in tokens], answers

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch_size, width // self.patch_size

    def block_attention(
        self,
        size: tuple[int, int],
        request: AttentionRequest,
        block: int,
        attn: Any,
        tokens: Tensor,
        **inputs: Any,
    ) -> Attention | AttentionFactors:
        """See `TimmBackbone.block_attention`."""
        scores = scores_of(attn, tokens[: request.num_images], **inputs)
        q, k, num_position = scores.extended()
        return self.answer(block, q, k, self._grid(*size), request, num_position)

    def stages(self) -> list[nn.Module]:
        """The blocks; the final norm belongs to the last one."""
        *blocks, last = self.net.blocks
        return [*blocks, nn.ModuleList([last, self.net.norm])]

    def adapt(self, key: str, value: Tensor) -> Tensor:
        """Resamples positions and patch embeddings from another image or patch size (bicubic)."""
        if key == "pos_embed" and value.ndim == 3 and value.shape[-1] == self.embed_dim:
            height, width = self.net.patch_embed.grid_size
            own: Any = self.net.pos_embed
            return fitted_positions(value, (height, width), own.shape[1] - height * width)
        if key == "patch_embed.proj.weight" and value.ndim == 4 and len(value) == self.embed_dim:
            return resample_patch_embed(value, [self.patch_size, self.patch_size])
        if key.endswith("relative_position_bias_table"):  # of BEiT
            return fitted_biases(value, self.net.get_submodule(key.rpartition(".")[0]))
        return value

    def fold(self, state: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """See `Backbone.fold`: LayerScale into the layer before it, CLS's position; DINOv2's names.

        diag(gamma) (W x + b) = (diag(gamma) W) x + gamma b, so that a network without LayerScale
        computes the same. Other extra parts (q/k norms, a norm before the blocks, rotary positions)
        cannot be folded, and files with them are refused. LayerScale spelt `gamma_1` is loaded only
        into networks with LayerScale, such as timm's DeiT-III: the files of timm's ViTs with rotary
        positions have the same names and shapes. The report says what a file was taken for.
        """
        folded = in_the_names_of(self.net, state)
        own, said = self.net.state_dict(), []
        if "blocks.0.gamma_1" in state and "blocks.0.ls1.gamma" in own:
            said.append("taken for DeiT-III's: timm's *_rope_ape_* have the same names and shapes")
        if getattr(self.net, "no_embed_class", False) and {"cls_token", "pos_embed"} <= own.keys():
            placed = cls_with_its_place(folded, own["pos_embed"].shape[1])
            folded |= placed
            said += ["position of CLS added to CLS"] if placed else []
        scales = {key: layer for key, layer in _scaled(folded).items() if key not in own}
        for key, layer in scales.items():
            gamma = folded.pop(key)
            for name in (f"{layer}.weight", f"{layer}.bias"):
                weight = folded[name]
                folded[name] = gamma.view(-1, *[1] * (weight.ndim - 1)) * weight
        if scales:
            said.append(f"LayerScale ({len(scales)} tensors) folded into attn.proj and mlp.fc2")
        return folded, tuple(said)


def _scaled(state: StateDict) -> dict[str, str]:
    """Returns each LayerScale of a file with the layer whose output it multiplies."""
    layers = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
    found = {}
    for key, gamma in state.items():
        block, _, part = key.rpartition(".ls")
        layer = f"{block}.{layers.get(f'ls{part}')}"
        weights = [state.get(f"{layer}.{name}") for name in ("weight", "bias")]
        if all(weight is not None and weight.shape[:1] == gamma.shape for weight in weights):
            found[key] = layer
    return found


def _build(
    name: str,
    embed_dim: int,
    num_heads: int,
    *,
    image_size: int,
    patch_size: int = 16,
    depth: int = 12,
    mlp_ratio: float = 4.0,
    registers: int = 0,
    drop_path: float = 0.0,
    pool: Pool = "cls",
    layers: str = "last",
    stem: Mapping[str, Any] | None = None,
) -> ViT:
    if embed_dim % num_heads:
        raise ValueError(
            f"backbone.embed_dim {embed_dim} is not a multiple of num_heads {num_heads}: set "
            "--backbone.num_heads to a divisor."
        )
    # The grid of the position embeddings; they are interpolated for other image sizes.
    side = -(-image_size // patch_size) * patch_size
    options: dict[str, Any] = {
        "num_classes": 0,
        "img_size": side,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "reg_tokens": registers,
        "dynamic_img_size": True,
    }
    embed: dict[str, Any] = {"patch_size": patch_size}
    if stem is not None:
        embed = {"patch_size": 1, "embed_layer": partial(HybridEmbed, ConvStem(**stem), proj=False)}
    net = VisionTransformer(**options, **embed, drop_path_rate=drop_path, global_pool="token")
    backbone = ViT(net, pool, layers)
    sizes = as_arguments(options)
    if stem is not None:
        backbone.plain = _with_stem(stem, sizes)
        return backbone  # no published weights, and no other code builds it
    backbone.plain = f'timm.create_model("{name}_patch16_224", patch_size={patch_size}, {sizes})'
    backbone.sources |= published_for(name, patch_size)
    return backbone


def _with_stem(stem: Mapping[str, Any], sizes: str) -> str:
    return (
        "timm.models.VisionTransformer(embed_layer=lambda **embed: timm.layers.HybridEmbed("
        "timm.models.vision_transformer_hybrid.ConvStem("
        f"{as_arguments(stem)}), proj=False, **embed), patch_size=1, {sizes})"
    )


def vit_demo(
    *,
    patch_size: int = 8,
    depth: int = 3,
    embed_dim: int = 96,
    num_heads: int = 3,
    **settings: Any,
) -> ViT:
    """The demonstration's toy: patch 8, depth 3, width 96, 3 heads; 0.4 M parameters.

    Its patches are embedded by 3 x 3 convolutions of stride 2 (Xiao et al. 2021, arXiv 2106.14881):
    these show edges and textures to attention from the first step, which a linear embedding cannot
    learn in a run of minutes. LayerNorm between them keeps chunked batches exact.

    Raises:
        ValueError: `patch_size` is not a power of two.
    """
    halvings = patch_size.bit_length() - 1
    if patch_size != 2**halvings or not halvings:
        raise ValueError(
            f"--backbone.patch_size {patch_size}: vit_demo halves its images, so it needs 2, 4, 8, "
            "16 …."
        )
    stem = {
        "depth": halvings,
        "channels": tuple(max(1, embed_dim >> left) for left in reversed(range(halvings))),
        "stride": (2,) * halvings,
        "padding": 1,
        "norm_layer": "layernorm2d",
        "act_layer": "gelu",
    }
    sizes: dict[str, Any] = {"patch_size": patch_size, "depth": depth, "stem": stem}
    return _build("vit_demo", embed_dim, num_heads, **sizes, **settings)


def vit_tiny(*, embed_dim: int = 192, num_heads: int = 3, **settings: Any) -> ViT:
    """ViT-Tiny: width 192, 3 heads; 5.5 M parameters at depth 12."""
    return _build("vit_tiny", embed_dim, num_heads, **settings)


def vit_small(*, embed_dim: int = 384, num_heads: int = 6, **settings: Any) -> ViT:
    """ViT-Small: width 384, 6 heads; 21.7 M parameters at depth 12."""
    return _build("vit_small", embed_dim, num_heads, **settings)


def vit_base(*, embed_dim: int = 768, num_heads: int = 12, **settings: Any) -> ViT:
    """ViT-Base: width 768, 12 heads; 85.8 M parameters at depth 12."""
    return _build("vit_base", embed_dim, num_heads, **settings)
