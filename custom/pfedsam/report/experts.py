"""What a run says of its sites' experts, and of personal branches that fell behind."""

from typing import Any

from pfedsam.record.measures import number
from pfedsam.record.results import took_part
from pfedsam.record.scores import behind, over_masks

LITTLE = 0.005  # of Dice, below which the experts' loss is not called an effect; our choice
ALIKE = 0.01  # of log M, below which the gate treats all images alike; our choice


def expert_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each tested site with an L-MoE: the test Dice with and without it, and what its gates did.

    Runs of earlier versions have no such numbers, and so no rows.
    """
    found = []
    for name, tested in sorted(results["final"]["sites"].items()):
        told, dice = tested.get("experts") or {}, (tested.get("personal") or {}).get("dice")
        if told:
            without = told.get("dice_without")
            lost = None if dice is None or without is None else dice - without
            row = {"site": name, **told, "dice": dice, "dice_without": without, "lost": lost}
            found.append(row | {"says": _says(lost, told)})
    return found


def _says(lost: float | None, told: dict[str, Any]) -> str:
    """A site's numbers in words."""
    if lost is None:
        return "not scored"
    effect = "they help" if lost > LITTLE else "they harm" if lost < -LITTLE else "they do little"
    alike = "varies" in told and told["varies"] < ALIKE
    return f"{effect}; the gate treats all images alike" if alike else effect


def fallen_behind(results: dict[str, Any]) -> list[str]:
    """A sentence for each site that trained, and whose personal branch validates clearly below the global one."""
    found = []
    for name in took_part(results):
        val = results["final"]["sites"].get(name, {}).get("val") or {}
        personal, other = ((val.get(role) or {}).get("dice") for role in ("personal", "global"))
        if behind(personal, other):
            found.append(
                f"{name}: the personal branch has a validation Dice of {number(personal)}, the global one "
                f"{number(other)}{over_masks(val['personal'])}. Predict with --branch global there, and lower "
                "train.lr_private in the next run."
            )
    return found
