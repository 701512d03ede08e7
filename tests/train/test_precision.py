"""On which device and in which number format a step computes, and what is said where a GPU does not do."""

from collections.abc import Iterator

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.errors import UserFault
from pfedsam.federation import torch_as_it_was
from pfedsam.model import build
from pfedsam.model.segmenter import Branches
from pfedsam.train import precision
from pfedsam.train.evaluate import logits_of
from pfedsam.train.precision import best_device, has_bf16


@pytest.fixture
def seen() -> Iterator[pytest.MonkeyPatch]:
    """A machine whose torch sees a GPU. What was found out before and here is forgotten."""
    best_device.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        yield patch
    best_device.cache_clear()


def test_a_gpu_that_torch_has_no_code_for_is_left_alone_with_a_word(
    seen: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    seen.setattr(precision.torch, "ones", refuse)
    assert best_device() == torch.device("cpu")
    assert "this machine's GPU is not used" in caplog.text
    assert "no kernel image is available)" in caplog.text


def test_the_format_is_that_of_the_device_which_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:0 may be of another kind."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index else (9, 0))
    assert [has_bf16(torch.device("cuda", i)) for i in (0, 1)] == [True, False]


def test_a_run_in_one_process_asks_no_gpu_whose_driver_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the driver's library counts without torch's runtime
    with torch_as_it_was():
        assert not torch.cuda.is_available()


def test_too_little_memory_of_a_gpu_is_a_fault_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    config = tiny()
    model = methods.get("fedavg").model(build.backbone(config.model), config)
    monkeypatch.setattr(Branches, "forward", full)
    with pytest.raises(UserFault, match=r"memory for 3 images at once; came CUDA out of memory; .*train\.batch_size"):
        logits_of(model, torch.zeros(3, 3, 32, 32), ("global",), "fp32")
