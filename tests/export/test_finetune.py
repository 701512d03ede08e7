"""MONAI's trainer goes on with an exported branch by the bundle's train.json, and what it saves predicts."""

import json
import shutil
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice
from PIL import Image

from conftest import after_a_round, model_facts, save_model, tiny
from pfedsam.data import reader
from pfedsam.data.dataset import View
from pfedsam.data.square import shown
from pfedsam.errors import UserFault
from pfedsam.export.bundle import write_bundle
from pfedsam.export.finetune import Best, Branch, Loss, Masks, groups, splits
from pfedsam.export.verify import verify
from pfedsam.inference.facts import read_facts
from pfedsam.inference.model_file import read_tensors, write_model
from pfedsam.inference.predictor import load_model
from pfedsam.layout import Places
from pfedsam.model.partition import Part, tensors_of
from pfedsam.site import Site
from pfedsam.train.losses import segmentation_loss

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI warns of any configuration that it runs


def workflow(bundle: Path, name: str, **changes: object) -> monai.bundle.ConfigWorkflow:
    return monai.bundle.ConfigWorkflow(
        config_file=str(bundle / f"configs/{name}.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type=name,
        bundle_root=str(bundle),
        device="$torch.device('cpu')",
        **changes,
    )


def carry_out(bundle: Path, name: str, **changes: object) -> monai.bundle.ConfigWorkflow:
    found = workflow(bundle, name, **changes)
    found.initialize()
    found.run()
    found.finalize()
    return found


@pytest.fixture(scope="module")
def bundle(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "bundle"
    write_bundle(model_file, folder, "personal", "# Card\n")
    return folder


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def tuned(bundle: Path, hospital: Path, losses: list[float]) -> Path:
    """The bundle's model after twelve epochs at site-1 without augmentation."""
    torch.set_num_threads(1)
    found = workflow(
        bundle,
        "train",
        dataset_dir=str(hospital / "site-1"),
        epochs=12,
        val_interval=4,
        lr=3e-3,
        **{"train#preprocessing": None},
    )
    found.initialize()
    trainer = found.trainer
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: losses.append(engine.state.output[0]["loss"]))
    found.run()
    return bundle / "models/finetuned.safetensors"


@pytest.mark.parametrize(("name", "folder"), [("train", "site-1"), ("inference", "site-1/images")])
def test_each_workflow_has_the_properties_that_monai_asks_of_a_bundle(
    bundle: Path, hospital: Path, name: str, folder: str
) -> None:
    found = workflow(bundle, name, dataset_dir=str(hospital / folder))
    found.initialize()
    assert found.check_properties() == []


@pytest.mark.long
def test_the_loss_falls(tuned: Path, losses: list[float]) -> None:
    assert tuned.is_file()
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.long
def test_lora_decoder_and_experts_of_the_branch_are_trained_and_the_base_stays(tuned: Path, model_file: Path) -> None:
    (shared, private, _), (shared_before, private_before, _) = read_tensors(tuned), read_tensors(model_file)
    after = shared | private
    moved = {name for name, t in (shared_before | private_before).items() if not torch.equal(t, after[name])}
    assert {"lora", "decoder", "own"} <= {part for name in moved for part in name.split(".")}
    assert load_model(tuned).facts.origin.base == load_model(model_file).facts.origin.base


@pytest.mark.long
def test_the_saved_file_says_whence_it_comes_and_is_of_no_round(tuned: Path) -> None:
    origin = read_facts(tuned).origin
    assert (origin.run, origin.site, origin.round, origin.private_round) == ("run fine-tuned", "site-1", None, None)
    assert [check.name for check in verify(tuned) if check.ok is False] == []


@pytest.mark.long
def test_the_bundle_s_inference_takes_the_saved_file(tuned: Path, bundle: Path, hospital: Path, tmp_path: Path) -> None:
    images = hospital / "site-1/images"
    carry_out(bundle, "inference", dataset_dir=str(images), output_dir=str(tmp_path), model=str(tuned))
    model, found = load_model(tuned), 0
    for path in sorted(images.glob("*test*.png")):
        written = np.asarray(Image.open(tmp_path / f"{path.stem}_mask.png"))
        picture = shown(reader.read_image(path), reader.EIGHT_BIT, path.name)
        assert np.array_equal(written, model.mask(picture, "personal")[0].numpy().astype(np.uint8)), path.name
        found += written.sum()
    assert found > 0


def test_the_loss_is_the_job_s_own(model_file: Path, hospital: Path) -> None:
    network = Branch(str(model_file), "global", device="cpu")
    train = splits(str(hospital / "site-1"), network)["train"]
    image, label = (train[0][key][None] for key in ("image", "label"))
    batch = train.data.batch([View(0)])
    logits = network(image)
    assert logits.requires_grad
    assert torch.allclose(Loss(network, train)(logits, label), segmentation_loss(logits, batch, network.config.train))


def test_scribbles_are_as_much_label_as_in_the_job(hospital: Path, tmp_path: Path) -> None:
    """A thin line keeps its class at the size of the loss, although most around it has none."""
    config = tiny(model={"image_size": 512}, data={"weaken": {"site-1": "scribble"}})
    model = save_model(Site("site-1", config, Places(hospital, tmp_path / "store")), tmp_path / "model.safetensors")
    network = Branch(str(model), "global", device="cpu")
    train = splits(str(hospital / "site-1"), network, "site-1")["train"]
    batch, logits = train.data.batch([View(0)]), torch.zeros(1, 1, 128, 128)
    expected = segmentation_loss(logits, batch, network.config.train)
    assert torch.equal(Loss(network, train)(logits, train[0]["label"][None]), expected)


def test_the_validation_s_masks_are_those_of_the_job_s_test(model_file: Path, hospital: Path) -> None:
    network = Branch(str(model_file), "global", device="cpu")
    val = splits(str(hospital / "site-1"), network)["val"]
    with torch.no_grad():
        found = Masks(val)({"pred": network.eval()(val[1]["image"][None])[0], "label": val[1]["label"], "slice": 1})
    assert torch.equal(found["pred"].bool(), load_model(model_file).mask(val.data.picture(1), "global"))
    assert torch.equal(found["label"][0], val.data.labels(1).float())


def test_a_private_part_that_was_trained_is_kept_though_the_exported_file_had_none(
    hospital: Path, tmp_path: Path
) -> None:
    """FedPer's one branch is half shared and half private: of a file without the private half the whole is trained."""
    site = after_a_round(lambda config: Site("site-1", config, Places(hospital, tmp_path / "s")), tiny(method="fedper"))
    path, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    write_model(path, model_facts(site, private=False), site.shared(), None)
    network = Branch(str(path), "global", device="cpu")
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    network.save(str(out), "clinic")
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(load_model(out).logits(image, "personal"), network.eval()(image).detach(), atol=1e-5)
    assert read_facts(out).origin.site == "clinic"


def test_a_file_with_its_base_keeps_it(hospital: Path, tmp_path: Path) -> None:
    site = after_a_round(lambda config: Site("site-1", config, Places(hospital, tmp_path / "s")), tiny(method="fedavg"))
    path = save_model(site, tmp_path / "model.safetensors", base=True)
    Branch(str(path), "global", device="cpu").save(str(tmp_path / "out.safetensors"))
    assert read_facts(tmp_path / "out.safetensors").with_base
    image = torch.rand(1, 3, 64, 64)
    one, other = (load_model(file).logits(image, "global") for file in (path, tmp_path / "out.safetensors"))
    assert torch.equal(one, other)


def test_a_folder_without_a_datalist_is_told_with_its_remedy(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="pfedsam prepare"):
        splits(str(tmp_path), Branch(str(model_file), "global", device="cpu"))


def test_its_settings_are_the_job_s(bundle: Path, model_file: Path) -> None:
    said, config = json.loads((bundle / "configs/train.json").read_text()), read_facts(model_file).config
    assert (said["lr"], said["batch_size"], said["branch"]) == (config.train.lr, config.train.batch_size, "personal")


RATES = {"lr": 1e-2, "lr_private": 3e-3, "lr_decoder": 3e-4}


@pytest.mark.parametrize(("method", "wanted"), [("pfedsam", {2e-2, 6e-3, 6e-4}), ("newcomer", {6e-3})])
def test_it_trains_what_the_job_trained_at_the_job_s_rates_in_proportion(
    hospital: Path, tmp_path: Path, method: str, wanted: set[float]
) -> None:
    config = tiny(method=method, model={"experts": 0, "experts_rank": 2, "experts_in": "all"}, train=RATES)
    site = after_a_round(lambda given: Site("site-1", given, Places(hospital, tmp_path / "s")), config)
    network = Branch(str(save_model(site, tmp_path / "model.safetensors")), "personal", device="cpu")
    found = groups(network, 2e-2)
    assert {round(group["lr"], 9) for group in found} == wanted
    private = {id(weight) for weight in tensors_of(network.predictor.model, network.part, Part.PRIVATE).values()}
    for group in found:
        assert {id(weight) in private for weight in group["params"]} == {group["lr"] == pytest.approx(6e-3)}
    own = {id(weight) for weight in network.parameters()}
    assert all(id(weight) in own for group in found for weight in group["params"])


def test_a_validation_that_was_not_the_best_leaves_the_saved_file_alone(model_file: Path, tmp_path: Path) -> None:
    keep = Best(Branch(str(model_file), "global", device="cpu"), str(tmp_path / "best.safetensors"))
    engine = Engine(lambda _engine, _batch: None)
    for epoch, best, written in ((1, -1, False), (2, 2, True)):
        engine.state.epoch, engine.state.best_metric_epoch = epoch, best
        keep(engine)
        assert (tmp_path / "best.safetensors").exists() is written


def scored(dice: list[float]) -> SupervisedEvaluator:
    """MONAI's evaluator, in whose validations the key metric has these values, one after the other."""
    left = iter(dice)

    class Given(MeanDice):
        def compute(self) -> float:
            return next(left)

    every = DataLoader([{"image": torch.zeros(1), "label": torch.zeros(1)}], batch_size=1)
    metric = Given(output_transform=lambda _: (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)))
    return SupervisedEvaluator(torch.device("cpu"), every, torch.nn.Identity(), key_val_metric={"dice": metric})


@pytest.mark.parametrize(
    ("dice", "saved"),
    [([0.9, 0.5, 0.8], []), ([0.5, 0.4, 0.6, 0.55], [2]), ([0.5, 0.6, 0.7], [1, 2]), ([0.5, 0.5], [])],
)
def test_what_is_saved_is_better_than_the_start(
    model_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, dice: list[float], saved: list[int]
) -> None:
    """The start may be the file itself, of an earlier fine-tuning."""
    start = shutil.copyfile(model_file, tmp_path / "finetuned.safetensors")
    before, written = start.read_bytes(), []
    best, evaluator = Best(Branch(str(start), "global", device="cpu"), str(start)), scored(dice)
    best.attach(evaluator)
    best.begin(evaluator)
    for epoch in range(1, len(dice)):
        start.write_bytes(before)
        evaluator.run(epoch)
        written += [epoch] * (start.read_bytes() != before)
    best.tell()
    assert written == saved
    assert ("no validation was better than that of the start" in caplog.text) is not bool(saved)


def test_going_on_with_a_good_file_does_not_end_with_a_worse_one(
    bundle: Path, hospital: Path, model_file: Path, tmp_path: Path
) -> None:
    """At this rate the training destroys the model."""
    start = shutil.copyfile(model_file, tmp_path / "finetuned.safetensors")
    before = start.read_bytes()
    torch.set_num_threads(1)
    places = {"dataset_dir": str(hospital / "site-1"), "model": str(start), "finetuned": str(start)}
    carry_out(bundle, "train", epochs=2, lr=0.3, **places)
    assert start.read_bytes() == before
