"""The identity against what is computed, in both directions.

Where a key acts, another value is another cell with another result. What the identity leaves out,
because it says only how a run is executed or because other choices make it meaningless, gives
bitwise the same. Quick tests compare cells, slow ones train.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dks.config.compose import Composer, compose_here
from dks.config.identity import EXECUTION_ONLY, canonical, cell_id, config_id, is_execution_only
from dks.config.methods import baseline_of
from dks.config.registry import VARIABLE
from dks.config.schema import Config
from dks.machine.interruption import Interruption
from dks.machine.world import ALONE
from dks.models.weights import run_network
from dks.runs.record import RunFolder
from dks.training.resolver import Resolver
from dks.training.run import _trainer
from tests.conftest import finished_run, reproducible

# --- the settings: two steps of a small network. {...} stands for what the fixture `here` makes

BASE = (
    "data=synthetic data.image_size=8 data.train_images=32 data.test_images=16 data.pad=1 "
    "recipe.batch_size=16 recipe.epochs=1 "
    "threads=1 tracking=off device=auto"
)
WRN = "aux=none backbone=wrn28_4 backbone.depth=10 backbone.width=1 backbone.dropout=0.3"
PICTURES = (
    "data=imagefolder data.root={pictures} data.augmentation=squash_crop data.resize=10 "
    "data.image_size=8 data.workers=0 "
    "data.train_images=null data.test_images=null"
)
IN_MEMORY = f"{PICTURES} data.augmentation=pad_crop"
HUB = (
    "data=parquet data.root={hub} data.num_classes=null data.train_images=null "
    "data.test_images=null"
)
TEACHER = "teacher=checkpoint kd_teacher.cell={teacher} runs_dir={runs}"
TAUGHT = f"aux=none {TEACHER}"
BY_FILE = "aux=none teacher=checkpoint kd_teacher.path={weights} kd_teacher.backbone=resnet8"
IMAGENET = "data=imagenet backbone=resnet18"  # which is not here
CUDA, SLOW, ALONE_HERE = "acts on CUDA alone", "takes a minute to compile", "no second value fits"

# Key of the schema -> a setting in which it acts, another value there, and why that is not trained
# here, if so.
ACTS: dict[str, tuple[str, ...]] = {
    "aux_design.conv_channels": ("aux=ap_conv_2fc", "aux_design.conv_channels=8"),
    "aux_design.hidden": ("aux=ap_2fc", "aux_design.hidden=16"),
    "aux_design.kind": ("", "aux_design.kind=fc"),
    "aux_design.max_blocks": ("", "aux_design.max_blocks=1"),
    "aux_design.options": ("aux=probe", "aux_design.options.pool=1"),
    "aux_design.pool": ("aux=ap_2fc", "aux_design.pool=1"),
    "aux_design.width": ("", "aux_design.width=0.5"),
    "aux_positions.alone": ("positions=c2 strategy=none", "aux_positions.alone=true"),
    "aux_positions.at": ("", "aux_positions.at=[c2]"),
    "backbone.branches": ("", "backbone.branches.c2.stages=[{{blocks:1,width:64}}]"),
    "backbone.depth": ("aux=none", "backbone.depth=14"),
    "backbone.dropout": (WRN, "backbone.dropout=0.5"),
    "backbone.family": ("aux=none backbone=one", "backbone.family=other"),
    "backbone.growth": ("aux=none backbone=densenet40_12 backbone.depth=7", "backbone.growth=8"),
    "backbone.options": ("aux=none backbone=one", "backbone.options.width=8"),
    "backbone.width": (WRN, "backbone.width=2"),
    "compute.compile": ("", "compute.compile=true", SLOW),
    "compute.deterministic": ("", "compute.deterministic=true", CUDA),
    "compute.precision": ("", "compute.precision=bf16"),
    "compute.tf32": ("", "compute.tf32=true", CUDA),
    "data.augmentation": (PICTURES, "data.augmentation=resized_crop"),
    "data.fingerprint": (PICTURES, "data.root={others}"),
    "data.flip": ("", "data.flip=false"),
    "data.holdout": ("", "data.holdout=8"),
    "data.image_size": ("", "data.image_size=6"),
    "data.mean": ("", "data.mean=[0.1,0.1,0.1]"),
    "data.num_classes": ("", "data.num_classes=7"),
    "data.options": ("data=dots", "data.options.images=20"),
    "data.pad": ("", "data.pad=0"),
    "data.resize": (PICTURES, "data.resize=12"),
    "data.source": ("data=dots", "data.source=rings"),
    "data.std": ("", "data.std=[0.1,0.1,0.1]"),
    "data.test_images": ("", "data.test_images=12"),
    "data.train_images": ("", "data.train_images=24"),
    "kd_teacher.backbone": (f"{IMAGENET} method=kd_c1", "kd_teacher.backbone=resnet18", ALONE_HERE),
    "kd_teacher.cell": (TAUGHT, "kd_teacher.cell={teacher2}"),
    "kd_teacher.fingerprint": (BY_FILE, "kd_teacher.path={weights2}"),
    "kd_teacher.image_size": (BY_FILE, "kd_teacher.image_size=12"),
    "kd_teacher.kind": ("aux=none", TAUGHT),
    "kd_teacher.mean": (BY_FILE, "kd_teacher.mean=[0.1,0.1,0.1]"),
    "kd_teacher.scale_by_t2": (
        f"{TAUGHT} kd_teacher.temperature=2",
        "kd_teacher.scale_by_t2=false",
    ),
    "kd_teacher.std": (BY_FILE, "kd_teacher.std=[0.1,0.1,0.1]"),
    "kd_teacher.students": (f"strategy=none {TEACHER}", "kd_teacher.students=[c2]"),
    "kd_teacher.temperature": (TAUGHT, "kd_teacher.temperature=2"),
    "kd_teacher.weight": (TAUGHT, "kd_teacher.weight=2"),
    "label_noise.kind": ("", "noise=uniform label_noise.ratio=0.5"),
    "label_noise.ratio": ("noise=uniform label_noise.ratio=0.5", "label_noise.ratio=0.25"),
    "loss.alpha": ("", "loss.alpha=0.5"),
    "loss.beta": ("", "loss.beta=0.5"),
    "loss.form": ("", "loss.form=smoothed_kl"),
    "matching_strategy.name": ("", "matching_strategy.name=topdown"),
    "matching_strategy.options": ("strategy=ring", "matching_strategy.options.back=true"),
    "recipe.batch_size": ("", "recipe.batch_size=8"),
    "recipe.epochs": ("", "recipe.epochs=2"),
    "recipe.fan_in": ("", "recipe.fan_in=true"),
    "recipe.gamma": ("recipe.epochs=2 recipe.milestones=[1]", "recipe.gamma=0.5"),
    "recipe.lr": ("", "recipe.lr=0.05"),
    "recipe.mean": ("data.mean=[0.5,0.5,0.5]", "recipe.mean=[0.1,0.1,0.1]"),
    "recipe.milestones": ("recipe.epochs=3 recipe.milestones=[1]", "recipe.milestones=[2]"),
    "recipe.momentum": ("", "recipe.momentum=0.5"),
    "recipe.nesterov": ("", "recipe.nesterov=true"),
    "recipe.pad_mode": ("", "recipe.pad_mode=reflect"),
    "recipe.reset_momentum": (
        "recipe.epochs=2 recipe.milestones=[1]",
        "recipe.reset_momentum=true",
    ),
    "recipe.schedule": ("recipe.epochs=2", "recipe.schedule=cosine"),
    "recipe.std": ("data.std=[0.5,0.5,0.5]", "recipe.std=[0.1,0.1,0.1]"),
    "recipe.uniform_gamma": ("", "recipe.uniform_gamma=true"),
    "recipe.warmup_epochs": ("recipe.epochs=2 recipe.schedule=cosine", "recipe.warmup_epochs=1"),
    "recipe.weight_decay": ("", "recipe.weight_decay=0.01"),
    "seed": ("", "seed=1"),
}

# What says only how a run is executed -> a setting, another value there.
EXECUTION = {
    "backbone.activation_checkpointing": (WRN, "backbone.activation_checkpointing=true"),
    "compute.cuda_graphs": ("", "compute.cuda_graphs=true"),
    "data.cache_gib": (IN_MEMORY, "data.cache_gib=0"),
    "data.download": ("", "data.download=true"),
    "data.image_column": (HUB, "data.image_column=image"),  # what was read is in the fingerprint
    "data.label_column": (HUB, "data.label_column=label"),
    "data.name": ("", "data.name=mine"),
    "data.root": (PICTURES, "data.root={moved}"),
    "data.workers": (PICTURES, "data.workers=1"),
    "device": ("", "device=cpu"),
    "kd_teacher.path": (BY_FILE, "kd_teacher.path={copy}"),
    "results_dir": ("", "results_dir=elsewhere"),
    "runs_dir": ("", "runs_dir=elsewhere"),
    "sweep": ("", "sweep=mine"),
    "tracking": ("", "tracking=local"),
    # These change last bits.
    "eval_batch_size": ("", "eval_batch_size=5"),
    # from which more grows, the faster a network learns
    "threads": ("recipe.lr=0.001", "threads=2"),
}
LAST_BITS = {"eval_batch_size", "threads"}

# A setting -> changes that mean nothing there; one change may take several overrides.
NO_TEACHER = (
    "kd_teacher.cell=123456789abc kd_teacher.temperature=5 kd_teacher.weight=2 "
    "kd_teacher.scale_by_t2=false"
)
C2 = "backbone.branches.c2.stages=[{{blocks:1,width:64}}]"
C3 = "backbone.branches.c3.stages=[{{blocks:1,width:64}}]"
MARKED = "recipe.epochs=4 recipe.gamma=0.5"
MEANINGLESS: dict[str, list[str]] = {
    "": [
        NO_TEACHER,
        "recipe.milestones=[1] recipe.gamma=0.5 recipe.reset_momentum=true",
        "recipe.schedule=cosine",
    ],
    "aux=none": [
        "kd_teacher.path=nowhere.pt loss.alpha=2 loss.beta=3 loss.form=smoothed_kl",
        f"{C2} {C3} aux_design.hidden=64",
    ],
    "aux=ours": [
        "aux_design.pool=2 aux_design.conv_channels=8 aux_design.hidden=64",
        "aux_design.max_blocks=2",
    ],
    "aux=ap_2fc": ["aux_design.width=0.5 aux_design.max_blocks=1", C2],
    "positions=c2": [C3, "aux_positions.at=[c2]"],
    "positions=c2c3": ["aux_positions.at=[c3,c2]"],
    "strategy=none": [
        "loss.beta=3 loss.form=smoothed_kl",
        "strategy=bidir loss.beta=0",
        "strategy=ring loss.beta=0",
    ],
    "loss.beta=0": ["strategy=topdown loss.form=smoothed_kl", "method=ds"],
    "method=single": ["loss.alpha=2 loss.beta=3 loss.form=smoothed_kl", C3],
    "data.pad=0": ["recipe.pad_mode=reflect"],
    "data.mean=[0.1,0.2,0.3]": [
        "data.mean=null recipe.mean=[0.1,0.2,0.3]",
        "data.mean=[0,0,0] recipe.mean=[0.1,0.2,0.3]",
    ],
    "recipe.std=[0.1,0.2,0.3]": ["data.std=[1,1,1]", "recipe.std=null data.std=[0.1,0.2,0.3]"],
    "data.holdout=16 data.resize=300": ["data.resize=256"],
    f"{MARKED} recipe.milestones=[2]": [
        *(
            "recipe.milestones=[0.5]",
            "recipe.milestones=[0.26]",
            "recipe.milestones=[2,4]",
            "recipe.milestones=[2,100]",
        ),
        "recipe.milestones=[0.5,0.99]",
    ],
    f"{MARKED} recipe.milestones=[]": [
        "recipe.milestones=[4]",
        "recipe.gamma=0.3 recipe.reset_momentum=true",
    ],
    f"{MARKED} recipe.milestones=[2] recipe.gamma=1": [
        "recipe.milestones=[3]",
        "recipe.milestones=[]",
    ],
    f"{MARKED} recipe.milestones=[1] recipe.warmup_epochs=3": [
        "recipe.milestones=[2]",
        "recipe.milestones=[3]",
    ],
    f"{MARKED} recipe.milestones=[2] recipe.momentum=0": ["recipe.reset_momentum=true"],
    "recipe.epochs=3 recipe.milestones=[2]": ["recipe.warmup_epochs=1"],
    "recipe.epochs=3 recipe.schedule=cosine": [
        "recipe.milestones=[1] recipe.gamma=0.5 recipe.reset_momentum=true"
    ],
    "recipe.epochs=3 recipe.warmup_epochs=2 recipe.milestones=[]": ["recipe.schedule=cosine"],
    "aux=none backbone=one": ["backbone.depth=9"],
    PICTURES: ["data.pad=3 recipe.pad_mode=reflect", "data.train_images=7"],
    f"strategy=none {TEACHER} kd_teacher.students=[c1,c2]": [
        "kd_teacher.students=[c2,c1]",
        "kd_teacher.backbone=resnet20",
    ],
    TAUGHT: ["kd_teacher.scale_by_t2=false"],
}
# Not trained: the data is not here, or takes longer.
MEANINGLESS_ELSEWHERE = {
    "data=digits": ["data.image_size=8", "data.train_images=7 data.test_images=7"],
    "data=cifar10": ["data.image_size=32"],
    IMAGENET: ["data.pad=9 recipe.pad_mode=reflect"],
    f"{IMAGENET} method=kd_c1": [
        "kd_teacher.cell=123456789abc kd_teacher.scale_by_t2=false kd_teacher.fingerprint=x"
    ],
}

EXTENSIONS = """
    import torch
    from torch import nn
    from dks import extend

    def net(num_classes, width, kernel):
        first, second = nn.Conv2d(3, width, kernel, 1, kernel // 2), nn.Conv2d(width, 2 * width, 3, 2, 1)
        return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))

    @extend.backbone("one", version="1", taps={"c2": "0"})
    def one(num_classes, *, width=4):
        return net(num_classes, width, 3)

    @extend.backbone("other", version="1", taps={"c2": "0"})
    def other(num_classes, *, width=4):
        return net(num_classes, width, 5)

    @extend.aux_design("probe", version="1")
    def probe(place, *, pool=2):
        classifier = nn.Linear(place.tap.channels * pool**2, place.num_classes)
        return nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), classifier)

    @extend.matching_strategy("ring", version="1")
    def ring(classifiers, *, back=False):
        pairs = list(zip(classifiers, [*classifiers[1:], classifiers[0]]))
        return [(n, m) for m, n in pairs] if back else pairs

    def pixels(images, seed):
        drawn = torch.randint(0, 256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        return (drawn, torch.arange(images) % 3), (drawn[:12], torch.arange(12) % 3)

    @extend.data("dots", classes=3, version="1", pad=1)
    def dots(*, images=24):
        return pixels(images, 1)

    @extend.data("rings", classes=3, version="1", pad=1)
    def rings(*, images=24):
        return pixels(images, 2)
"""  # noqa: E501


class Here(NamedTuple):
    """What the settings need."""

    names: dict[str, str]
    compose: Composer

    def config(self, *overrides: str) -> Config:
        """Resolved; ImageNet need not be here."""
        given = " ".join([BASE, *overrides]).format(**self.names).split()
        if any(
            each in given
            for each in (*IMAGENET.split(), "data=digits", "data=dots", "data=cifar10")
        ):
            # which are of the synthetic images
            given = [each for each in given if each not in BASE.split()[:5]]
        return Resolver(absent_ok=True)(self.compose(given))


def draw_pictures(folder: Path, seed: int) -> None:
    """Two classes of 10 training and 4 test images; the files of another seed have other sizes."""
    from PIL import Image

    draw = torch.Generator().manual_seed(seed)
    for split, count in (("train", 10), ("val", 4)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (12, 12 + seed, 3), generator=draw).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / split / label / f"{number}.bmp")


def write_parquet(folder: Path, pictures: Path) -> None:
    """The same images as the hub has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for split, name in (("train", "train"), ("val", "test")):
        files = sorted((pictures / split).rglob("*.bmp"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        table = pa.table(
            {"image": images, "label": [int(file.parent.name == "b") for file in files]}
        )
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("here")
    (folder / "extra.py").write_text(textwrap.dedent(EXTENSIONS))
    names = {
        name: str(folder / name)
        for name in ("pictures", "others", "moved", "runs", "weights", "weights2", "copy", "hub")
    }
    for name, seed in (("pictures", 1), ("others", 2)):
        draw_pictures(folder / name, seed)
    shutil.copytree(folder / "pictures", folder / "moved")
    write_parquet(folder / "hub", folder / "pictures")
    small = ("method=baseline", "data.train_images=32", "data.test_images=16", "recipe.epochs=1")
    for number, name in ((1, "teacher"), (2, "teacher2")):
        names[name] = finished_run(folder, *small, f"seed={number}").cell_id
        network = run_network(names["runs"], names[name])[1].strip()
        save_file(network.state_dict(), names["weights" if number == 1 else "weights2"])
    shutil.copy(names["weights"], names["copy"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(VARIABLE, str(folder / "extra.py"))
        patched.setattr("dks.training.resolver._built", {})
        yield Here(names, Composer(compose_here))


def leaves(schema: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(schema):
        value = getattr(schema, field.name)
        yield from (
            leaves(value, f"{prefix}{field.name}.")
            if is_dataclass(value)
            else [f"{prefix}{field.name}"]
        )


# --- identities


def test_every_key_of_the_schema_says_where_it_acts_or_that_it_never_does() -> None:
    assert set(ACTS) == {path for path in leaves(Config()) if not is_execution_only(path)}
    assert set(EXECUTION) == EXECUTION_ONLY


@pytest.mark.rest_slow(8)
@pytest.mark.parametrize("key", ACTS)
def test_another_value_is_another_cell_where_the_key_acts(here: Here, key: str) -> None:
    setting, change, *_ = ACTS[key]
    one, other = here.config(setting), here.config(setting, change)
    assert cell_id(one) != cell_id(other)
    assert (config_id(one) != config_id(other)) == (key != "seed")


@pytest.mark.parametrize("key", EXECUTION)
def test_how_a_run_is_executed_is_no_other_cell(here: Here, key: str) -> None:
    setting, change = EXECUTION[key]
    assert cell_id(here.config(setting)) == cell_id(here.config(setting, change))


@pytest.mark.rest_slow(9)
@pytest.mark.parametrize("setting", [*MEANINGLESS, *MEANINGLESS_ELSEWHERE])
def test_what_other_choices_make_meaningless_is_no_other_cell(here: Here, setting: str) -> None:
    one = here.config(setting)
    assert canonical(one) == one, "the canonical form is its own"
    for change in (MEANINGLESS | MEANINGLESS_ELSEWHERE)[setting]:
        assert here.config(setting, change) == one, change


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("positions=c2 aux=probe", [C3]),  # an extension may look at all branches
        ("aux=shallow", ["aux_design.max_blocks=2"]),
        ("loss.beta=0", ["aux=none", "loss.alpha=0.5"]),
        ("data=digits", ["data.image_size=9"]),
        ("recipe.epochs=3 recipe.schedule=cosine", ["recipe.warmup_epochs=1"]),
        # Two drops in one epoch are two; one that forgets the momentum is one even where it is no
        # drop, or in the warm-up.
        (f"{MARKED} recipe.milestones=[2]", ["recipe.milestones=[0.4,0.5]"]),
        (
            f"{MARKED} recipe.gamma=1 recipe.reset_momentum=true recipe.milestones=[2]",
            ["recipe.milestones=[3]"],
        ),
        (
            f"{MARKED} recipe.warmup_epochs=3 recipe.reset_momentum=true recipe.milestones=[1]",
            ["recipe.milestones=[2]", "recipe.reset_momentum=false"],
        ),
    ],
)
def test_what_is_close_to_meaningless_is_another_cell(
    here: Here, setting: str, changes: list[str]
) -> None:
    ids = {cell_id(here.config(setting, change)) for change in ("", *changes)}
    assert len(ids) == len(changes) + 1


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    "conditions",
    [
        "",
        "loss.alpha=0.5 loss.beta=2",
        "recipe.schedule=cosine recipe.gamma=0.5",
        "data.pad=0 data.holdout=9",
    ],
)
def test_the_baseline_of_a_cell_is_a_cell_of_its_own(here: Here, conditions: str) -> None:
    """Whatever was swept along with it: gains are found by this identity."""
    expected = config_id(here.config("method=baseline", conditions))
    for method in ("method=ds", "method=dks", "method=single", "aux=ap_2fc", "aux=probe", C2):
        assert config_id(baseline_of(here.config(method, conditions))) == expected


# --- results


class Result(NamedTuple):
    """What a configuration computes."""

    weights: dict[str, Tensor]
    metrics: list[dict[str, float]]

    def equals(self, other: Result) -> bool:
        """To the last bit."""
        same = self.weights.keys() == other.weights.keys() and self.metrics == other.metrics
        return same and all(
            torch.equal(value, other.weights[name]) for name, value in self.weights.items()
        )


class Lab:
    """Trains configurations as they are typed, each once."""

    def __init__(self, here: Here, folder: Path) -> None:
        self.here, self.folder = here, folder
        self.known: dict[str, Result] = {}

    def __call__(self, *overrides: str) -> Result:
        text = " ".join(overrides)
        if text not in self.known:
            self.known[text] = self.train(self.here.config(text))
        return self.known[text]

    def train(self, config: Config) -> Result:
        folder = RunFolder(self.folder / str(len(self.known)))
        folder.path.mkdir()
        torch.set_num_threads(config.threads or 1)
        try:
            trainer = _trainer(folder, config, ALONE, [], Interruption())
            entries = trainer.fit()
        finally:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(False)
        return Result(
            dict(trainer.network.state_dict()), [told(entry.metrics) for entry in entries]
        )


def told(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without the part of the loss that says that it is nothing."""
    nothing = {
        name
        for name, value in metrics.items()
        if name.startswith("train/loss_synergy") and value == 0
    }
    return {name: value for name, value in reproducible(metrics).items() if name not in nothing}


@pytest.fixture
def lab(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Nothing is brought into its one spelling.

    Else equal cells were one configuration, and the test would say nothing.
    """
    monkeypatch.setattr("dks.training.resolver.canonical", lambda config: config)
    monkeypatch.setattr("dks.data._loaded", {})
    return Lab(here, tmp_path)


@pytest.mark.slow
def test_another_value_gives_another_result_where_the_key_acts(lab: Lab) -> None:
    trained = {key: (setting, change) for key, (setting, change, *why) in ACTS.items() if not why}
    assert len(ACTS) - len(trained) == 4
    assert [
        key
        for key, (setting, change) in trained.items()
        if lab(setting).equals(lab(setting, change))
    ] == []


@pytest.mark.slow
def test_what_the_identity_leaves_out_gives_bitwise_the_same_result(lab: Lab) -> None:
    pairs = [pair for key, pair in EXECUTION.items() if key not in LAST_BITS]
    pairs += [(setting, change) for setting, changes in MEANINGLESS.items() for change in changes]
    assert [pair for pair in pairs if not lab(pair[0]).equals(lab(*pair))] == []


@pytest.mark.slow
def test_threads_and_the_batches_of_a_test_change_last_bits(lab: Lab) -> None:
    for key in sorted(LAST_BITS):
        one, other = lab(EXECUTION[key][0]), lab(*EXECUTION[key])
        assert one.metrics[0] == pytest.approx(other.metrics[0], rel=1e-3), key
        assert all(
            torch.allclose(value, other.weights[name], rtol=1e-3, atol=1e-5)
            for name, value in one.weights.items()
        ), key
    tested = lab(*EXECUTION["eval_batch_size"])
    assert Result(lab("").weights, []).equals(Result(tested.weights, [])), (
        "a test changes no weight"
    )
