"""The rows that sweep.py runs: each a change to a task's job, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of its folder.
        label: in the table.
        changes: to the settings of the task's job, as for `pfedsam render --set`.
    """

    name: str
    label: str
    changes: tuple[str, ...] = ()


LEAN = "model.decoder=lean"
INT8 = ("wire.up=int8", "wire.down=int8")
CACHED = ("train.views=8", "train.cache=memory")
SHORT = ("train.epochs=1",)  # one local epoch a round, also where the task's job has more

SUITES = {
    "modes": [
        Row(name, label, (*SHORT, *changes))
        for name, label, changes in (
            ("default", "default: float32", ()),
            ("int8", "int8 both ways", INT8),
            ("lean", "lean decoder, float32", (LEAN,)),
            ("lean_int8", "lean decoder, int8 both ways", (LEAN, *INT8)),
            ("post", "post-encoder reading, 8 views cached", ("reading=post", *CACHED)),
            ("last4", "adapters in the last 4 blocks, 8 views cached", ("model.lora_last=4", *CACHED)),
            ("lean_int4", "lean decoder, int4 up, int8 down", (LEAN, "wire.up=int4", "wire.down=int8")),
            ("int4", "int4 up, int8 down", ("wire.up=int4", "wire.down=int8")),
            ("last2", "adapters in the last 2 blocks, 8 views cached", ("model.lora_last=2", *CACHED)),
            ("bf16", "bfloat16 both ways", ("wire.up=bf16", "wire.down=bf16")),
        )
    ],
}
