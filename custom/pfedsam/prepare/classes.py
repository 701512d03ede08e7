"""Numbers and names of classes, from the structures in the files, from mask values, and from the user."""

from collections.abc import Mapping, Sequence

from pfedsam.data.values import MOST_CLASSES
from pfedsam.errors import UserFault
from pfedsam.names import alike
from pfedsam.prepare.found import Case
from pfedsam.prepare.labels import REST, LabelRule, Values
from pfedsam.prepare.words import some_of

FEW = 8  # more numbers are not written out


def numbered(
    found: Mapping[str, int], wished: Mapping[str, int] | None, names: Sequence[str]
) -> tuple[dict[str, int], dict[int, int] | None]:
    """The class of each structure, and the table of mask values, after the user's wishes.

    Args:
        found: the structures that the files name, numbered in the order of the files.
        wished: mask value or structure to class.
        names: of the classes, in the order of their numbers. Two sites with the same names get the same numbers.

    Raises:
        UserFault: a wish names a structure that was not found or numbers it otherwise than `names`, `names` lacks one
            or has a double, or there are more structures than class numbers.
    """
    if len({name.casefold() for name in names}) < len(names):
        raise UserFault(expected="different names in --names", came=", ".join(names), do="name each class differently")
    wished = wished or {}
    known = {label.casefold() for label in found}
    by_name = {label.casefold(): number for label, number in wished.items() if label.casefold() in known}
    by_value = {int(v): number for v, number in wished.items() if v.isdecimal() and v.casefold() not in by_name}
    by_value |= {REST: wished["*"]} if "*" in wished else {}
    if strange := [key for key in wished if key.casefold() not in by_name and not key.isdecimal() and key != "*"]:
        raise UserFault(
            expected="mask values or these structures in --labels: " + (", ".join(found) or "none found"),
            came=strange[0],
            do="correct the name",
        )
    if len(found) > MOST_CLASSES and not by_name:
        raise UserFault(
            expected=f"at most {MOST_CLASSES} structures, because masks store classes as 8-bit numbers",
            came=str(len(found)),
            do=f'select structures with --labels, such as --labels "{next(iter(found))}=1"',
        )
    if by_name:
        own = {label: by_name.get(label.casefold(), 0) for label in found}
        _check_order(own, names)
        return own, by_value or None
    return (_in_order(found, names) if names else dict(found)), by_value or None


def _check_order(own: Mapping[str, int], names: Sequence[str]) -> None:
    """UserFault if --labels gives a structure another number than --names, or leaves it out."""
    order = {name.casefold(): number for number, name in enumerate(names, 1)}
    for label, said in own.items():
        if (number := order.get(label.casefold(), said)) != said:
            raise UserFault(
                expected="the same number for a structure in --labels and in --names",
                came=f"{label}={said} in --labels, and {label} as number {number} of --names"
                if said
                else f"{label} as number {number} of --names, and none in --labels, which leaves it out",
                do="write --names in the order of the class numbers in --labels, or leave out --names",
            )


def check_by_name(found: Mapping[str, int], wished: Mapping[str, int] | None, values: Sequence[Values]) -> None:
    """UserFault if the user gives classes to mask values alone, and all masks take theirs from structures' names.

    Args:
        found: the structures that the files name.
        values: of each case's mask; empty where names count instead.
    """
    named = {label.casefold() for label in found} & {key.casefold() for key in wished or {}}
    if not wished or named or not found or not values or any(values):
        return
    labels = dict.fromkeys(alike(found))
    order = ",".join(f"{label}={number}" for number, label in enumerate(labels, 1))
    raise UserFault(
        expected="structures by their names in --labels, because the files name them: " + ", ".join(found),
        came="mask values: " + ",".join(f"{key}={number}" for key, number in wished.items()),
        do=f"name the structures, each with its class, such as --labels {order!r}",
    )


def check_numbers(segments: dict[str, int], rule: LabelRule, values: Sequence[Values], cases: Sequence[Case]) -> None:
    """UserFault if some masks name their structures, others show numbers, and no table says what these mean.

    A site with one structure and one class is clear.

    Args:
        segments: the class of each structure.
        values: of each case's mask; empty where names count instead.
    """
    plain = [(case.shown, mask.keys() - {0, rule.ignore}) for case, mask in zip(cases, values, strict=True) if mask]
    showing = {name: shown for name, shown in plain if shown}
    numbers = sorted(set().union(*showing.values()))
    clear = len(set(map(str.casefold, segments))) == rule.classes == 1
    if rule.table is None and any(segments.values()) and showing and len(plain) < len(values) and not clear:
        raise UserFault(
            expected="what the numbers of plain masks mean, because other masks name their classes: "
            + ", ".join(segments),
            came=f"{some_of(list(map(str, numbers)), FEW)} in {len(showing)} mask(s) without names"
            f" ({some_of(list(showing))})",
            do=_both(segments, numbers),
        )


def _both(segments: dict[str, int], numbers: Sequence[int]) -> str:
    """The remedy if structures have names and masks have these `numbers` too, with an example of both in one table."""
    names = {number: name for name, number in reversed(segments.items()) if number}
    classes = sorted(names)
    meant = [(number, classes[min(i, len(classes) - 1)]) for i, number in enumerate(numbers[:FEW])]
    table = ",".join([*(f"{names[n]}={n}" for n in classes), *(f"{number}={n}" for number, n in meant)])
    if_so = " and ".join(f"{number} is {names[n]}" for number, n in meant)
    return f"say both, such as --labels {table} if {if_so}; leave a mask out if it shows something else"


def _in_order(found: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    order = {name.casefold(): number for number, name in enumerate(names, 1)}
    if lacking := [label for label in found if label.casefold() not in order]:
        raise UserFault(
            expected="--names with every structure in the files: " + ", ".join(found),
            came=f"none for {', '.join(lacking)}",
            do=f'add it to --names, or select structures with --labels, such as --labels "{names[0]}=1"',
        )
    return {label: order[label.casefold()] for label in found}


def class_names(classes: int, found: Mapping[int, str], said: Sequence[str]) -> list[str]:
    """The name of each class from 1 up; empty if one is not known.

    Args:
        found: class number to name, from the files.
        said: the user's names, which take precedence.

    Raises:
        UserFault: the user names fewer or more classes than there are.
    """
    if said and len(said) != classes:
        raise UserFault(
            expected=f"{classes} name(s) in --names, one per class",
            came=", ".join(said),
            do="name each class, in order",
        )
    names = list(said) or [found.get(number, "") for number in range(1, classes + 1)]
    return names if all(names) else []


def parse_names(text: str) -> tuple[str, ...]:
    """The names in `Liver,Tumour`.

    Raises:
        UserFault: a name is empty.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise UserFault(
            expected="--names NAME,NAME,...",
            came=text or "nothing",
            do="write a name for each class, such as Liver,Tumour",
        )
    return names
