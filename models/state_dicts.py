"""Finds a network among the tensors of a file, whatever stands in front of its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of several networks in a file the one that its authors evaluate: a teacher or an average (DINO,
# EMA), but the trained one where a slow copy only serves the training (MoCo, BYOL, solo-learn).
_FIRST = re.compile(r"(?:^|[._])(?:teacher|ema|target_encoder)(?:[._]|$)")
_LAST = re.compile(r"(?:^|[._])(?:student|momentum|encoder_k|target)(?:[._]|$)")

# Of a list of averaged parameters, whose names nobody kept: before the number of one.
_NAMELESS = re.compile(r"((?:^|.*[._])(?:ema|shadow|averaged?)(?:[._].*)?)\.\d+")

# Of what torch and FSDP wrap around modules, wherever they do.
_WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")

# Of blocks, before the number of one: `blocks.0.` of `blocks.0.2.norm1.weight`.
_CHUNK = re.compile(r"(?<![^.])blocks\.\d+\.(?=\d+\.)")

_WHOLE = 0.9  # of a network's tensors; with fewer it is another network, not a damaged one


@dataclass(frozen=True)
class Network:
    """One of the networks in a file.

    Attributes:
        prefix: what its names have in front in the file, containers included: `teacher.backbone.`.
        state: its tensors, names without the prefix and, where they are known, as here.
        others: prefixes of the networks in the file that would have fitted as well.
    """

    prefix: str
    state: dict[str, Tensor]
    others: tuple[str, ...] = ()


def find_network(
    tensors: Mapping[str, Tensor], namings: Sequence[Mapping[str, str]], source: str
) -> Network:
    """Finds the prefix under which most of a network's names are.

    Containers and wrappers (`state_dict`, `module.`, `_orig_mod.`, `model.`, `encoder_q.`) need no
    list: whatever stands in front of a known name is one. A teacher or an average is taken before
    its student, and a trained network before a momentum copy of it; also one that has lost a few
    tensors, which whoever loads it will miss: the other one would be loaded without a word.

    Args:
        tensors: see `utils.checkpoints.tensors_in`.
        namings: the ways in which others may have named the network's tensors, the likeliest first;
            each from their names to its own.
        source: for messages.

    Raises:
        ValueError: several networks fit alike and differ.
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

    They are in the order of the parameters of whoever wrote it, which the file does not tell.

    Args:
        tensors: of a file, by name.
    """
    found = filter(None, map(_NAMELESS.fullmatch, tensors))
    return tuple(dict.fromkeys(match[1] for match in found))


def without_chunks(tensors: Mapping[str, Tensor], own: Collection[str]) -> Mapping[str, Tensor]:
    """Names blocks as a network does that has them one by one.

    DINOv2's training keeps them in chunks, `blocks.<chunk>.<block>.`, but numbers them through all
    chunks: a chunk begins with placeholders for the blocks of those before it.

    Args:
        tensors: of a file, by name.
        own: names of the network's tensors, which may have stages of blocks itself.
    """
    named = {_CHUNK.sub("blocks.", key): tensor for key, tensor in tensors.items()}
    numbered_anew = len(named) < len(tensors)  # in every chunk: somebody else's
    return tensors if numbered_anew or any(map(_CHUNK.search, own)) else named


def _without_wrappers(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names modules as if none were compiled, checkpointed or sharded on its own."""
    named = {_WRAPPER.sub("", key): tensor for key, tensor in tensors.items()}
    return named if len(named) == len(tensors) else tensors  # else beside what they wrap


def _prefixes(tensors: Mapping[str, Tensor], naming: Mapping[str, str]) -> Counter[str]:
    # How many of the names stand behind each prefix; prefixes end with a dot, or are empty.
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
