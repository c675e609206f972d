"""Finds a network among the tensors of a file, whatever the prefix of its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# If a file has several networks, take the one that its authors evaluate: a teacher or an average
# (DINO, EMA), but the trained network if the momentum copy only serves training (MoCo, BYOL).
_FIRST = re.compile(r"(?:^|[._])(?:teacher|ema|target_encoder)(?:[._]|$)")
_LAST = re.compile(r"(?:^|[._])(?:student|momentum|encoder_k|target)(?:[._]|$)")

# Names of lists of averaged parameters, before the index of one.
_NAMELESS = re.compile(r"((?:^|.*[._])(?:ema|shadow|averaged?)(?:[._].*)?)\.\d+")

# Wrappers of torch and FSDP, anywhere in a name.
_WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")

# Chunks of blocks, before the index of a block: `blocks.0.` in `blocks.0.2.norm1.weight`.
_CHUNK = re.compile(r"(?<![^.])blocks\.\d+\.(?=\d+\.)")

_WHOLE = 0.9  # share of the most known names under a prefix; with fewer it is another network


@dataclass(frozen=True)
class Network:
    """One of the networks in a file.

    Attributes:
        prefix: of its names in the file, including containers: `teacher.backbone.`.
        state: its tensors, without the prefix, renamed as in our network if the names are known.
        others: prefixes of other networks in the file that would fit as well.
    """

    prefix: str
    state: dict[str, Tensor]
    others: tuple[str, ...] = ()


def find_network(
    tensors: Mapping[str, Tensor], namings: Sequence[Mapping[str, str]], source: str
) -> Network:
    """Finds the prefix under which most of a network's names are.

    Containers and wrappers (`state_dict`, `module.`, `_orig_mod.`, `model.`, `encoder_q.`) need no
    list: anything before a known name is a prefix. A teacher or an average is preferred to its
    student, and a trained network to its momentum copy. This holds even if a few of its tensors are
    missing: loading it then fails, which is better than silently loading the other network.

    Args:
        tensors: see `utils.weight_files.tensors_in`.
        namings: possible names of the network's tensors, the likeliest first; each maps foreign
            names to its own.
        source: for messages.

    Raises:
        ValueError: several networks fit equally well, and they differ.
    """
    tensors = _without_wrappers(tensors)
    counted = [(naming, _prefixes(tensors, naming)) for naming in namings]
    naming, counts = max(counted, key=lambda each: max(each[1].values(), default=0))
    most = max(counts.values(), default=0)
    fitting = [prefix for prefix, count in counts.items() if count >= _WHOLE * most] or [""]
    best = min(map(_rank, fitting))
    alike = [prefix for prefix in fitting if _rank(prefix) == best]
    largest = max(counts[prefix] for prefix in alike)
    chosen, *rivals = (prefix for prefix in alike if counts[prefix] == largest)
    state = _under(tensors, chosen, naming)
    known = set(naming.values()) & state.keys()
    for rival in rivals if 2 * most > len(naming) else ():
        twin = _under(tensors, rival, naming)
        if not all(key in twin and torch.equal(state[key], twin[key]) for key in known):
            raise ValueError(
                f"{source} holds several networks that fit and differ: {chosen}*, {rival}*. Write "
                "the one you mean into a file of its own."
            )
    others = tuple(prefix for prefix in fitting if _rank(prefix) != best)
    return Network(chosen, state, others)


def nameless_averages(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns where a file keeps averaged weights in lists, such as `ema.shadow_params`.

    They are in the order of the parameters in the code that wrote the file, which it does not tell.

    Args:
        tensors: of a file, by name.
    """
    found = filter(None, map(_NAMELESS.fullmatch, tensors))
    return tuple(dict.fromkeys(match[1] for match in found))


def without_chunks(tensors: Mapping[str, Tensor], own: Collection[str]) -> Mapping[str, Tensor]:
    """Removes the chunk numbers from the names of blocks.

    DINOv2's training code keeps blocks in chunks, `blocks.<chunk>.<block>.`, but counts blocks
    across all chunks: each chunk begins with placeholders for earlier blocks.

    Args:
        tensors: of a file, by name.
        own: names of the network's tensors; unchanged if these have two numbers as well.
    """
    named = {_CHUNK.sub("blocks.", key): tensor for key, tensor in tensors.items()}
    numbered_anew = len(named) < len(tensors)  # in every chunk: not DINOv2's
    return tensors if numbered_anew or any(map(_CHUNK.search, own)) else named


def _without_wrappers(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Removes the names that compiling, checkpointing or sharding a module adds."""
    named = {_WRAPPER.sub("", key): tensor for key, tensor in tensors.items()}
    return named if len(named) == len(tensors) else tensors  # else a name would occur twice


def _prefixes(tensors: Mapping[str, Tensor], naming: Mapping[str, str]) -> Counter[str]:
    # The number of known names after each prefix; prefixes end with a dot, or are empty.
    counts: Counter[str] = Counter()
    for key in tensors:
        cuts = [0, *(dot.end() for dot in re.finditer(r"\.", key))]
        counts.update(key[:cut] for cut in cuts if key[cut:] in naming)
    return counts


def _rank(prefix: str) -> int:
    if _FIRST.search(prefix):
        return 0
    return 2 if _LAST.search(prefix) else 1


def _under(
    tensors: Mapping[str, Tensor], prefix: str, naming: Mapping[str, str]
) -> dict[str, Tensor]:
    names = {key: key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    return {naming.get(name, name): tensors[key] for key, name in names.items()}
