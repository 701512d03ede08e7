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


LEAN = ("model.decoder=lean", "train.lr_decoder=null")  # the few it trains take the adapters' rate
INT8 = ("wire.up=int8", "wire.down=int8")
INT4 = ("wire.up=int4", "wire.down=int8")
CACHED = ("train.views=8", "train.cache=memory")

SUITES = {
    "methods": [  # the first row is what the others are compared with
        Row("pfedsam", "pFedSAM"),
        Row("local", "local only", ("method=local",)),
        Row("fedavg", "FedAvg of LoRA and decoder", ("method=fedavg",)),
        Row("pooled", "pooled: one site holds all", ("method=fedavg", "data.pool=true")),
        Row("fedper", "FedPer", ("method=fedper",)),
        Row("ditto", "Ditto", ("method=ditto", "train.prox_weight=0.1")),
        Row("fedmsa", "FedMSA", ("method=fedmsa",)),
        Row("fedmsa_released", "FedMSA, begun as released", ("method=fedmsa", "model.adapter_start=random")),
        Row("fedms_sam", "FedSAM (FedFMS)", ("method=fedms_sam", "train.lr=1e-4", "train.lr_decoder=null")),
        Row("fedsa_lora", "FedSA-LoRA", ("method=fedsa_lora",)),
        Row("iat", "IAT with SOR", ("method=iat", "model.lora_rank=8", "model.lora_alpha=8")),
        Row("fedrep", "FedRep", ("method=fedrep",)),
        Row("fedprox", "FedProx", ("method=fedprox",)),
        Row("fedbn", "FedBN", ("method=fedbn",)),
        Row("ffa_lora", "FFA-LoRA", ("method=ffa_lora",)),
        Row("r1", "pFedSAM, reading R1", ("reading=R1",)),
        Row("r2", "pFedSAM, reading R2", ("reading=R2",)),
        Row("post", "pFedSAM, post-encoder", ("reading=post",)),
    ],
    "ablations": [
        Row("pfedsam", "pFedSAM, defaults"),
        Row("distill_none", "no distillation", ("train.distill=none",)),
        Row("distill_down", "global teaches personal", ("train.distill=global_to_personal",)),
        Row("distill_up", "personal teaches global", ("train.distill=personal_to_global",)),
        Row("distill_05", "distillation weight 0.5", ("train.distill_weight=0.5",)),
        Row("experts_4", "4 experts", ("model.experts=4",)),
        Row("top_1", "1 expert selected", ("model.top_k=1",)),
        Row("top_4", "4 experts selected", ("model.top_k=4",)),
        Row("gate_free", "gate not multiplied", ("model.gate_multiplied=false",)),
        Row("rank_8", "LoRA rank 8", ("model.lora_rank=8", "model.lora_alpha=8")),
        Row("lean", "lean decoder", LEAN),
        Row("slow", "one rate of 3e-4 for all", ("train.lr=3e-4", "train.lr_decoder=null")),
        Row("slow_private", "private part at a tenth of the rate", ("train.lr_private=3e-4",)),
    ],
    "modes": [
        Row("pfedsam", "default: float32"),
        Row("int8", "int8 both ways", INT8),
        Row("lean", "lean decoder, float32", LEAN),
        Row("lean_int8", "lean decoder, int8 both ways", (*LEAN, *INT8)),
        Row("post", "post-encoder reading, 8 views cached", ("reading=post", *CACHED)),
        Row("last4", "adapters in the last 4 blocks, 8 views cached", ("model.lora_last=4", *CACHED)),
        Row("lean_int4", "lean decoder, int4 up, int8 down", (*LEAN, *INT4)),
        Row("int4", "int4 up, int8 down", INT4),
        Row("last2", "adapters in the last 2 blocks, 8 views cached", ("model.lora_last=2", *CACHED)),
        Row("bf16", "bfloat16 both ways", ("wire.up=bf16", "wire.down=bf16")),
    ],
}
