"""THE rule: every parameter is exactly one of shared, private, frozen.

The type of the module that owns a parameter decides its kind. A method declares the part for each
branch and kind. Freezing, optimisers, the filter, the schema, the site store, the ledger and the
tests all ask this module. Nothing looks into a parameter's name.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from pfedsam.config import DecoderMode
from pfedsam.errors import UserFault
from pfedsam.model.adapters import TokenAdapter
from pfedsam.model.aside import Aside
from pfedsam.model.channel_gate import ChannelGate
from pfedsam.model.decoder import ClassHead, PromptFreeDecoder
from pfedsam.model.light import LightNet
from pfedsam.model.lora import Adapted, LoRA, LoRALinear
from pfedsam.model.moe import LocalMoE
from pfedsam.model.segmenter import Branches


class Kind(StrEnum):
    """What a parameter is, whatever the method."""

    LORA_A = "lora_a"
    LORA_B = "lora_b"
    EARLY_LORA_A = "early_lora_a"
    EARLY_LORA_B = "early_lora_b"
    DECODER_LORA_A = "decoder_lora_a"
    DECODER_LORA_B = "decoder_lora_b"
    ADAPTER = "adapter"
    EXPERT = "expert"
    DECODER = "decoder"
    DECODER_WIDENING = "decoder_widening"
    DECODER_LAST = "decoder_last"
    HEAD = "head"
    BASE = "base"
    NORM = "norm"
    ASIDE = "aside"
    GATE = "gate"
    LIGHT = "light"


class Part(StrEnum):
    """What becomes of a parameter."""

    SHARED = "shared"
    PRIVATE = "private"
    FROZEN = "frozen"


Declaration = Callable[[str, Kind], Part]
OWNERS: dict[type[nn.Module], Kind] = {
    nn.BatchNorm2d: Kind.NORM,
    TokenAdapter: Kind.ADAPTER,
    ChannelGate: Kind.GATE,
    LocalMoE: Kind.EXPERT,
    ClassHead: Kind.HEAD,
    PromptFreeDecoder: Kind.DECODER,
    Aside: Kind.ASIDE,
    LightNet: Kind.LIGHT,
}
PRETRAINED = frozenset({Kind.BASE, Kind.NORM})  # frozen unless a method says that it trains them
DECODER = frozenset({Kind.DECODER, Kind.DECODER_WIDENING, Kind.DECODER_LAST})
FROZEN: dict[DecoderMode, frozenset[Kind]] = {
    "full": PRETRAINED,
    "lora": PRETRAINED,  # the linear layers are a base then
    "lean": PRETRAINED | (DECODER - {Kind.DECODER_LAST}),
    "frozen": PRETRAINED | DECODER,
}


@dataclass(frozen=True)
class Partition:
    """The part of each parameter, by its name in the whole model. Every parameter appears once."""

    parts: dict[str, Part]

    def names(self, part: Part) -> tuple[str, ...]:
        """The sorted names of one part."""
        return tuple(sorted(name for name, p in self.parts.items() if p is part))


def kinds(model: nn.Module) -> dict[str, Kind]:
    """The kind of every parameter, by name: that of its innermost owner."""
    decoders = [m for m in model.modules() if isinstance(m, PromptFreeDecoder)]
    named = {id(module): Kind.DECODER_WIDENING for decoder in decoders for module in decoder.widening()}
    named |= {id(module): Kind.DECODER_LAST for decoder in decoders for module in decoder.last()}
    return dict(_walk(model, "", Kind.BASE, named))


def partition(
    model: Branches, declare: Declaration, decoder: DecoderMode = "full", trains: frozenset[Kind] = frozenset()
) -> Partition:
    """The partition of `model` under a method's declaration. It also freezes the frozen parameters.

    A parameter that two branches have in common counts for the first branch.

    Args:
        declare: gives the part of every kind that can be trained.
        decoder: how much of the mask decoder is trained.
        trains: kinds of `PRETRAINED` that are trained too.

    Raises:
        UserFault: two shared tensors would have one name in a message, so that one would be lost.
    """
    parts: dict[str, Part] = {}
    seen: set[int] = set()
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for name, kind in kinds(model).items():
        if id(tensors[name]) in seen:
            continue
        seen.add(id(tensors[name]))
        branch = name.split(".", 2)[1]
        parts[name] = Part.FROZEN if kind in FROZEN[decoder] - trains else declare(branch, kind)
        tensors[name].requires_grad_(parts[name] is not Part.FROZEN)
    found = Partition(parts)
    _check_wire_names(found.names(Part.SHARED))
    return found


def _check_wire_names(shared: tuple[str, ...]) -> None:
    names = Counter(map(wire_name, shared))
    twice = [name for name in shared if names[wire_name(name)] > 1]
    if twice:
        rivals = [name for name in twice if wire_name(name) == wire_name(twice[0])]
        raise UserFault(
            expected="a different name on the wire for each shared tensor",
            came=f"{len(shared)} shared tensors with {len(names)} names. Of one name are {' and '.join(rivals)}",
            do="declare only one branch's tensors shared, and the other's private or frozen",
        )


def wire_name(name: str) -> str:
    """A parameter's name in a message: its name without the branch, which is always the global one."""
    return name.split(".", 2)[2]


def tensors_of(model: Branches, part: Partition, which: Part) -> dict[str, Tensor]:
    """The live tensors of one part, by their name in the model."""
    tensors = dict(model.named_parameters())
    return {name: tensors[name] for name in part.names(which)}


def _walk(module: nn.Module, prefix: str, kind: Kind, named: dict[int, Kind]) -> Iterator[tuple[str, Kind]]:
    kind = OWNERS.get(type(module), kind)
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, kind
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.", named.get(id(child)) or _below(module, child, kind), named)


def _below(module: nn.Module, child: nn.Module, kind: Kind) -> Kind:
    """The kind of what a module's child owns, unless the child's type says otherwise."""
    if isinstance(module, Adapted) and child is module.own:
        return Kind.EXPERT
    if isinstance(module, LoRALinear) and child is module.base:
        return Kind.BASE
    return _factor(module, child, kind) if isinstance(module, LoRA) and kind is not Kind.EXPERT else kind


def _factor(lora: LoRA, child: nn.Module, kind: Kind) -> Kind:
    a, b = (Kind.EARLY_LORA_A, Kind.EARLY_LORA_B) if lora.early else (Kind.LORA_A, Kind.LORA_B)
    if kind in DECODER:
        a, b = Kind.DECODER_LORA_A, Kind.DECODER_LORA_B
    return a if child is lora.a else b if child is lora.b else kind
