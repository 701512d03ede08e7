"""Methods whose novelty is what travels: what leaves, what stays, and what the server makes of it."""

import math

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.study import private_schema, shared_schema


def moved_by(*values: float, samples: float = 1) -> Contribution:
    return Contribution(samples, lambda: {"w": torch.tensor(values)})


@pytest.mark.parametrize(("early", "blocks"), [(0.25, 1), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_fedsca_sends_the_first_blocks_lora_alone(early: float, blocks: int) -> None:
    config = tiny(method="fedsca", own={"early": early}, model={"backbone": "vit_b", "lora_last": 4})
    units = sorted({int(name.split(".")[2]) for name in shared_schema(config)})
    plain = shared_schema(tiny(method="fedavg", model={"backbone": "vit_b", "lora_last": 4}))
    adapted = sorted({int(name.split(".")[2]) for name in plain if name.startswith("encoder.")})
    assert units == adapted[:blocks]
    assert len(shared_schema(config)) == 2 * blocks
    stays = {name.split(".", 2)[2] for name in private_schema(config)}
    assert stays == plain.keys() - shared_schema(config).keys()


def test_fedsca_weighs_sites_by_samples_and_similarity() -> None:
    each = {"a": moved_by(1.0, 0.0, samples=3), "b": moved_by(2.0, 0.0), "c": moved_by(0.0, 4.0)}
    state = ServerState({"w": torch.zeros(2)})
    config = tiny(method="fedsca", own={"temperature": 0.5})
    after = methods.get("fedsca").rule(state, each, config)
    far = math.exp(-1 / 0.5)
    assert after.model_of("a")["w"].tolist() == pytest.approx([(3 * 1 + 2) / (4 + far), 4 * far / (4 + far)])
    assert after.model_of("c")["w"].tolist() == pytest.approx([(3 + 2) * far / (4 * far + 1), 4 / (4 * far + 1)])
    mean = methods.get("fedsca").rule(state, each, tiny(method="fedsca", own={"temperature": 1000.0}))
    assert mean.model_of("c")["w"].tolist() == pytest.approx(mean.shared["w"].tolist(), abs=2e-3)
