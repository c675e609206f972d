"""Tensors of a weight file or a network without a counterpart, and whether they matter."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from utils.text import count

ANOTHER_ARCHITECTURE = (
    "These weights are of another architecture. Make --backbone.name, patch_size, depth, embed_dim "
    "(of a ResNet: stem) fit the file (null: the architecture's own value)."
)

# Counters, tensors computed from the sizes of the network, and mask tokens.
_NO_EFFECT = re.compile(
    r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params|mask_token|masked_embed|attn_mask"
    r"|relative_position_index)$"
)
# Top-level modules that read the features.
_AFTER = re.compile(
    r"\w*(head|classifier|projector|projection|predict|prototype|decoder|queue)\w*"
    r"|fc|last_layer|pooler|pre_logits|logit_scale|logit_bias"
)
# What similar networks compute in addition, by the names of the weights for it.
_PARTS = {
    r"lora_|\.base_layer\.": "adapters (LoRA), which have to be merged into the weights first",
    r"reg_token|register_token|storage_token": "register tokens, --backbone.registers",
    r"cls_token": "a class token",
    r"dist_token": "a distillation token",
    r"rope|freqs|periods": "rotary positions",
    r"relative_coords": "positions of another pretraining, which --backbone.name tells (12to16)",
    r"relative_position|rel_pos": "relative positions",
    r"pos_embed": "learnt position embeddings",
    r"norm_pre|ln_pre": "a norm before the blocks",
    r"fc_norm": "a norm after the pooling",
    r"attn_pool": "pooling by attention",
    r"[qk]_norm|[qk]_ln": "norms of queries and keys",
    r"[qkv]_bias|[qkv]_proj": "separate queries, keys or values",
    r"qkv\.bias": "a bias of queries, keys and values",
    r"gamma_\d": "LayerScale as DeiT-III (timm/deit3_small_patch16_224) and networks with rotary "
    "positions (timm/vit_small_patch16_rope_ape_224) spell it, which --backbone.name tells apart",
    r"\bls\d|gamma|lambda": "LayerScale",
    r"(attn|mlp)\.norm": "norms inside attention or MLP",
    r"\bw\d+\b|fc1_\w": "gated MLPs",
    r"running_(mean|var)": "running statistics of BatchNorm",
    r"^norm\.": "a norm after the last block",
}


def is_derived(key: str) -> bool:
    """Whether this tensor is a counter, a mask token, or computed from the sizes."""
    return bool(_NO_EFFECT.search(key))


def has_no_effect(key: str) -> bool:
    """Whether this tensor of a file does not affect the features."""
    return is_derived(key) or bool(_AFTER.fullmatch(key.partition(".")[0]))


@dataclass(frozen=True)
class Leftovers:
    """Tensors without a counterpart.

    Attributes:
        source: where the weights are from.
        unexpected: names in the file that the network does not have.
        missing: names of the network that the file does not have.
    """

    source: str
    unexpected: Sequence[str]
    missing: Sequence[str]

    def refuse(self, own: Collection[str], theirs: Collection[str]) -> None:
        """Checks that these tensors do not affect the features.

        Args:
            own: names of the network's tensors.
            theirs: names in the file.

        Raises:
            ValueError: some do; names them.
        """
        extra = [key for key in self.unexpected if not has_no_effect(key)]
        if not extra and not self.missing:
            return
        # The rest are parts that both sides have, such as norms of more blocks: another depth.
        named, places = _split(extra, own)
        absent, lacking = _split(self.missing, theirs)
        said = [
            f"{verb}: " + ", ".join(f"{part} ({key})" for part, key in parts) + "."
            for verb, parts in (("It has what this backbone lacks", named), ("It lacks", absent))
            if parts
        ] or [*_of_other_sizes(places, lacking), ANOTHER_ARCHITECTURE]
        raise ValueError(
            f"{self.source} is not loaded: it would compute something else here. " + " ".join(said)
        )


def _of_other_sizes(places: Sequence[str], lacking: Sequence[str]) -> Iterator[str]:
    if places:
        yield f"It has {count(len(places), 'tensor')} without a place here, such as {places[-1]}."
    if lacking:
        yield f"It lacks {count(len(lacking), 'tensor')}, such as {lacking[-1]}."


def _split(keys: Sequence[str], others: Collection[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Splits names into known parts that the other side lacks, with an example, and the rest."""
    patterns = {re.sub(r"\d+", "N", key) for key in others}
    parts: dict[str, str] = {}
    rest = []
    for key in keys:
        known = [part for name, part in _PARTS.items() if re.search(name, key)]
        if known and re.sub(r"\d+", "N", key) not in patterns:
            parts.setdefault(known[0], key)
        else:
            rest.append(key)
    return list(parts.items()), rest
