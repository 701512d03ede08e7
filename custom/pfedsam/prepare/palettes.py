"""Checks that the palettes of a site's masks give each number one colour. Some programs renumber colours per file."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from pfedsam.data.picture import palette
from pfedsam.data.volume import kind_of
from pfedsam.errors import UserFault
from pfedsam.prepare.found import Case, Dropped, reason
from pfedsam.prepare.labels import ODD, Values

Colour = tuple[int, ...]


def unlike(cases: Sequence[Case], values: Sequence[Values]) -> dict[int, Dropped]:
    """By index, the few cases whose palette gives a number another colour than most cases do.

    Args:
        values: those in each case's mask.

    Raises:
        UserFault: there are too many of them to be exceptions.
    """
    shown = [_colours(case, held) for case, held in zip(cases, values, strict=True)]
    count: dict[int, Counter[Colour]] = defaultdict(Counter)
    for one in shown:
        for number, colour in one.items():
            count[number][colour] += 1
    usual = {number: colours.most_common(1)[0][0] for number, colours in count.items()}
    odd = {i: n for i, one in enumerate(shown) for n, colour in one.items() if colour != usual[n]}
    if len(odd) > ODD * sum(map(bool, shown)):
        raise _fault([(cases[i], n, shown[i][n], usual[n]) for i, n in odd.items()])
    return {i: Dropped(cases[i].name, *reason(_fault([(cases[i], n, shown[i][n], usual[n])]))) for i, n in odd.items()}


def _colours(case: Case, held: Values) -> dict[int, Colour]:
    """The colour of each number in a case's mask. A grey that is the number itself is left out: it says no more."""
    found: dict[int, Colour] = {}
    for mask in case.masks if kind_of(case.mask) == "picture" else ():
        colours = palette(mask)
        found |= {n: colours[n] for n in held if 0 < n < len(colours) and colours[n] != (n, n, n)}
    return found


def _fault(odd: Sequence[tuple[Case, int, Colour, Colour]]) -> UserFault:
    case, number, colour, usual = odd[0]
    return UserFault(
        expected="one colour for each number in the palettes of all masks",
        came=f"number {number} as red, green, blue {colour} in {case.mask.name}, and {usual} in others"
        f" ({len(odd)} mask(s) differ)",
        do="save the masks again as grey class numbers with one meaning in all files; or, if the colours mean nothing,"
        f" say what the numbers mean with --labels, such as {number}={number}",
    )
