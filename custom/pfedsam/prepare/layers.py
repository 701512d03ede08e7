"""Says what structures in separate files lose where another one covers them."""

from collections.abc import Mapping, Sequence

from pfedsam.prepare.measurements import Measurements
from pfedsam.prepare.words import some_of

MOST = 8  # longer tables are not written out


def coverings(facts: Sequence[Measurements], names: Sequence[str], segments: Mapping[str, int]) -> list[str]:
    """A remark on each pair of classes of which one covers the other. Lost classes come first.

    Args:
        names: of the cases.
        segments: the class of each structure.
    """
    left = {number for one in facts for number in one.pixels}
    both = sorted({pair for one in facts for pair in one.covered}, key=lambda pair: (pair[0] in left, pair))
    return [_covering(pair, facts, names, segments) for pair in both]


def _covering(
    pair: tuple[int, int], facts: Sequence[Measurements], names: Sequence[str], segments: Mapping[str, int]
) -> str:
    lower, top = (" and ".join(name for name, n in segments.items() if n == number) for number in pair)
    there = [(name, one) for name, one in zip(names, facts, strict=True) if pair in one.covered]
    pixels = sum(one.covered[pair] for _, one in there)
    whole = [name for name, one in there if pair[0] not in one.pixels]
    lost = all(pair[0] not in one.pixels for one in facts)
    gone = f" Nothing of {lower} is left in {len(whole)} of these cases ({some_of(whole)})." if whole else ""
    same = all(one.pixels.get(pair[1]) == one.covered[pair] for _, one in there)
    doubt = " The two drawings are the same: is one file a copy of the other?" if same and lost else ""
    return (
        (f"CLASS LOST: no mask shows {lower} any more. " if lost else "")
        + f"{top} covers {lower} in {len(there)} of {len(facts)} cases: {pixels} pixels count as {top} only.{gone}"
        + f"{doubt} The higher number is on top. If {lower} belongs on top, {_swapped(pair, segments)}."
    )


def _swapped(pair: tuple[int, int], segments: Mapping[str, int]) -> str:
    kept = {name: number for name, number in segments.items() if number}
    if len(kept) > MOST:
        return "exchange the two numbers in --labels"
    other = dict(zip(pair, reversed(pair), strict=True))
    return "use --labels " + ",".join(f"{name}={other.get(number, number)}" for name, number in kept.items())
