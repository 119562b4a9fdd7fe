"""Distillation and single paths (Tables 5 and 6), and the recipes of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dks
from dks.config.errors import RequestError
from dks.config.files import choices, load_choice
from dks.config.identity import cell_id
from dks.config.methods import method_of
from dks.config.schema import Backbone, Recipe, Schedule
from dks.data import load
from dks.models import build_network
from dks.objectives.teacher import load_teacher
from dks.runs.record import Status
from dks.training.schedule import is_milestone, learning_rate
from tests.conftest import TINY, config, finished_run

# --- recipes: the learning rate of every epoch, as the paper states it (Sections 4.1 and 4.2)

PAPER = {
    "cifar_resnet": [0.1] * 60 + [0.01] * 60 + [0.001] * 60 + [0.0001] * 20,
    "densenet": [0.1] * 150 + [0.01] * 75 + [0.001] * 75,
    "wrn": [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40,
    # not the paper's: what the authors' loop does
    "wrn_code": [0.1] * 59 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 41,
    "imagenet": [0.1] * 30 + [0.01] * 30 + [0.001] * 30 + [0.0001] * 10,
}
# epochs, batch size, momentum, Nesterov, weight decay
OPTIMISER = {
    "cifar_resnet": (200, 64, 0.9, False, 1e-4),
    "densenet": (300, 64, 0.9, True, 1e-4),
    "wrn": (200, 128, 0.9, False, 5e-4),
    "wrn_code": (200, 128, 0.9, False, 5e-4),
    "imagenet": (100, 256, 0.9, False, 1e-4),
}


@pytest.mark.parametrize("name", PAPER)
def test_every_recipe_is_the_papers(name: str) -> None:
    recipe = load_choice("recipe", name, Recipe)
    assert [learning_rate(recipe, finished) for finished in range(recipe.epochs)] == pytest.approx(
        PAPER[name]
    )
    stated = (
        recipe.epochs,
        recipe.batch_size,
        recipe.momentum,
        recipe.nesterov,
        recipe.weight_decay,
    )
    assert stated == OPTIMISER[name]


def test_warm_up_and_cosine() -> None:
    recipe = Recipe(
        epochs=10, lr=1.0, gamma=0.1, milestones=[], warmup_epochs=4, schedule=Schedule.cosine
    )
    rates = [learning_rate(recipe, finished) for finished in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)])
    with pytest.raises(RequestError, match="warmup_epochs=15 must be"):
        config("recipe.warmup_epochs=15")


def drawn(*overrides: str) -> dict[str, torch.Tensor]:
    """The weights that seed 0 gives a network, by the names they have in the plain one and in the
    branches.
    """
    torch.manual_seed(0)
    net = build_network(config("data=synthetic", *overrides))
    return {
        name.replace("backbone.trunk.", "backbone."): value.detach()
        for name, value in net.named_parameters()
    }


def test_the_quirks_of_the_wrn_code() -> None:
    """Its loop counts epochs from 1, and drops the rate at the start of the 60th, the 120th and the
    160th.
    """
    recipe = load_choice("recipe", "wrn_code", Recipe)
    assert [epoch for epoch in range(1, 201) if is_milestone(recipe, epoch - 1)] == [60, 120, 160]
    assert recipe.mean == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255])
    assert recipe.std == pytest.approx([63.0 / 255, 62.1 / 255, 66.7 / 255])
    assert (recipe.fan_in, recipe.uniform_gamma, recipe.reset_momentum) == (True, True, True)
    scales = torch.cat(
        [
            value
            for name, value in drawn("recipe.uniform_gamma=true").items()
            if "bn" in name and "weight" in name
        ]
    )
    assert scales.min() >= 0
    assert scales.max() < 1
    assert float(scales.mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("branches", ["method=baseline", "method=ds"])
def test_convolutions_are_drawn_by_their_inputs_where_the_authors_code_does(branches: str) -> None:
    """A 3x3 convolution of 16 channels to 32.

    By its inputs sqrt(2 / (9 * 16)), by its outputs sqrt(2 / (9 * 32)).
    """
    name = "backbone.stage2.0.conv1.weight"
    by_inputs, by_outputs = drawn("recipe.fan_in=true", branches), drawn(branches)
    assert float(by_inputs[name].std()) == pytest.approx(0.11785, rel=0.05)
    assert float(by_outputs[name].std()) == pytest.approx(0.08333, rel=0.05)
    if branches == "method=ds":  # 128 channels from 32
        name = "branches.c2.stage1.0.conv1.weight"
        assert float(by_inputs[name].std()) == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.02)
        assert float(by_outputs[name].std()) == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)


@pytest.mark.parametrize(
    "quirks",
    [(), ("recipe.uniform_gamma=true",), ("recipe.uniform_gamma=true", "recipe.fan_in=true")],
)
def test_the_backbone_of_a_seed_is_the_same_whatever_it_carries(quirks: tuple[str, ...]) -> None:
    plain = drawn("method=baseline", *quirks)
    assert len(plain) == 23
    for method in (
        ("method=dks",),
        ("aux=ap_conv_2fc",),
        ("method=ds", "positions=c3"),
        ("method=single", "positions=c3"),
    ):
        other = drawn(*method, *quirks)
        shared = [name for name in plain if name in other]
        assert len(shared) == (9 if method[0] == "method=single" else 23), (
            "the trunk of a single path is its stem and one stage"
        )
        assert [name for name in shared if not torch.equal(plain[name], other[name])] == []


def test_momentum_is_lost_at_each_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of one step, the drop between them: the optimiser then begins without momentum."""
    from dks.training import step

    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(
                sum(float(state["momentum_buffer"].abs().sum()) for state in self.state.values())
            )
            return super().step(closure)

    monkeypatch.setattr(step, "SGD", Watched)
    finished_run(tmp_path / "kept", "recipe.milestones=[1]")
    finished_run(tmp_path / "lost", "recipe.milestones=[1]", "recipe.reset_momentum=true")
    assert seen[0] == seen[2] == seen[3] == 0
    assert seen[1] > 0


# --- single paths (Table 5)


@pytest.mark.parametrize("position", ["c2", "c3"])
def test_a_single_path_is_the_trunk_and_its_branch_and_nothing_else(position: str) -> None:
    alone = config("data=synthetic", "method=single", f"positions={position}")
    assert method_of(alone) == "single"
    torch.manual_seed(0)
    net = build_network(alone)
    torch.manual_seed(0)
    whole = dks.build("resnet8", 10, "ours", (position,))
    logits = net.eval()(images := torch.randn(2, 3, 8, 8))
    assert list(logits) == ["c1"]
    assert torch.equal(logits["c1"], whole.eval()(images)[position])
    until = {"c2": ("stem", "stage1", "stage2"), "c3": ("stem", "stage1")}[position]
    kept = sum(
        p.numel() for name, p in whole.backbone.named_parameters() if name.split(".")[0] in until
    )
    kept += sum(p.numel() for p in whole.branches.parameters())
    assert sum(p.numel() for p in net.parameters()) == kept
    net(images)["c1"].sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# Large networks take seconds even on the meta device, and differ from their small sisters in
# numbers only.
LARGE = {
    "densenet100_12",
    "resnet50",
    "resnet110",
    "resnet152",
    "resnet1202",
    "wrn28_10",
    "wrn28_10_dropout",
}


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in choices("backbone")
    ],
)
def test_every_network_has_single_paths(backbone: str) -> None:
    """Trunk and branch have the very parameters that they have in the whole network, but for what
    lies behind the tap.
    """
    for position in load_choice("backbone", backbone, Backbone).branches:
        overrides = (
            "data=synthetic",
            "data.image_size=32",
            f"backbone={backbone}",
            f"positions={position}",
        )
        with torch.device("meta"):
            alone = build_network(config(*overrides, "method=single"), initialise=False)
            whole = build_network(config(*overrides, "method=ds"), initialise=False)
            logits = alone(torch.randn(2, 3, 32, 32))
        assert {name: tuple(z.shape) for name, z in logits.items()} == {"c1": (2, 10)}
        trunk = {
            name.removeprefix("backbone.trunk.") for name in alone.state_dict() if ".trunk." in name
        }
        branch = {
            name.removeprefix("backbone.branch.")
            for name in alone.state_dict()
            if ".branch." in name
        }
        assert trunk < set(whole.backbone.state_dict())
        assert branch == set(whole.branches[position].state_dict())


@pytest.mark.parametrize(
    "overrides", ["method=single positions=c2c3", "method=single strategy=bidir"]
)
def test_a_single_path_has_one_branch_and_no_matching(overrides: str) -> None:
    with pytest.raises(RequestError):
        config("data=synthetic", *overrides.split())


def test_a_single_path_trains(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "method=single", "positions=c3")
    assert set(folder.journal.read()[0].metrics) >= {"test/top1_error", "train/loss_ce"}
    assert not [name for name in folder.journal.read()[0].metrics if name.endswith(("_c2", "_c3"))]


# --- distillation (Table 6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    return finished_run(tmp_path_factory.mktemp("teacher"), "method=baseline").path


METHODS = {
    "kd_c1": (["c1"], ["c1"]),
    "kd_c1_ds": (["c1"], ["c1", "c2", "c3"]),
    "kd_c2c3_ds": (["c2", "c3"], ["c1", "c2", "c3"]),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_three_settings_of_table_6(method: str, teacher: Path) -> None:
    found = config(
        *TINY,
        f"method={method}",
        "teacher=checkpoint",
        f"kd_teacher.cell={teacher.name}",
        f"runs_dir={teacher.parent}",
    )
    students, classifiers = METHODS[method]
    assert method_of(found) == method
    assert found.kd_teacher.students == students
    assert list(build_network(found).classifiers) == classifiers


def test_a_distilled_run_logs_its_loss_and_leaves_the_teacher_alone(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dks.training import run

    calls, loaded = [], []

    def watched(given: Any, train: Any) -> nn.Module:
        network = load_teacher(given, train)
        assert network is not None
        network.register_forward_hook(
            lambda *_: calls.append((network.training, torch.is_grad_enabled()))
        )
        loaded.append((network, [value.clone() for value in network.state_dict().values()]))
        return network

    monkeypatch.setattr(run, "load_teacher", watched)
    arguments = (
        "method=kd_c1",
        "teacher=checkpoint",
        f"kd_teacher.cell={teacher.name}",
        "kd_teacher.temperature=2",
    )
    folder = finished_run(teacher.parent.parent, *arguments, "data.train_images=128")
    metrics = folder.journal.read()[-1].metrics
    assert metrics["train/loss"] == pytest.approx(
        metrics["train/loss_ce"] + metrics["train/loss_kd"], rel=1e-6
    )
    assert metrics["train/loss_kd"] > 0
    # Twice two training steps: once a batch, in evaluation mode, without gradients; nothing in it
    #     has moved.
    assert calls == [(False, False)] * 4
    ((network, before),) = loaded
    assert all(
        torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True)
    )
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_file_is_a_teacher_and_its_content_is_part_of_the_cell(tmp_path: Path) -> None:
    def saved(name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        torch.save(dks.build("resnet20", 10).strip().state_dict(), tmp_path / "weights.pt")
        return (tmp_path / "weights.pt").rename(tmp_path / name)

    def student(path: Path) -> Any:
        return config(
            *TINY,
            "method=kd_c1",
            "teacher=checkpoint",
            f"kd_teacher.path={path}",
            "kd_teacher.backbone=resnet20",
        )

    one, moved, other = (
        student(saved(name, seed)) for name, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1))
    )
    train = load(one.data)[0]
    network = load_teacher(one, train)
    assert network is not None
    assert not network.training
    assert cell_id(one) == cell_id(moved) != cell_id(other)
    (tmp_path / "c.pt").replace(tmp_path / "a.pt")
    with pytest.raises(
        RequestError, match=r"a\.pt is not the file that the run was planned with; put that back"
    ):
        load_teacher(one, train)


def wrong(*overrides: str) -> Callable[[Path], list[str]]:
    return lambda teacher: [*overrides]


BAD: dict[str, Callable[[Path], list[str]]] = {
    "have no teacher": wrong("kd_teacher.students=[c1]"),
    "needs kd_teacher.cell": wrong("method=kd_c1", "teacher=checkpoint"),
    "needs kd_teacher.backbone": wrong(
        "method=kd_c1", "teacher=checkpoint", "kd_teacher.path=x.pt"
    ),
    "has 10; choose teacher=checkpoint": wrong("method=kd_c1"),
    "must name classifiers of this network, each once: c1": wrong(
        "aux=none", "teacher=resnet50", "kd_teacher.students=[c2]"
    ),
    "kd_teacher.temperature=0.0 must be": wrong("method=kd_c1", "kd_teacher.temperature=0"),
    "method=kd_c1 contradicts": wrong("method=kd_c1", "teacher=none", "kd_teacher.students=[]"),
    "tells 10 classes apart, the data has 4": lambda teacher: [
        "method=kd_c1",
        "teacher=checkpoint",
        f"kd_teacher.cell={teacher.name}",
        f"runs_dir={teacher.parent}",
        "data.num_classes=4",
    ],
    "zzz": lambda teacher: [
        "method=kd_c1",
        "teacher=checkpoint",
        "kd_teacher.cell=zzz",
        f"runs_dir={teacher.parent}",
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_runs(
    message: str, teacher: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        config(*TINY, *BAD[message](teacher))


def test_a_teacher_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "method=baseline")
    record = folder.read_record()
    assert record is not None
    record.status = Status.failed
    folder.write_record(record)
    with pytest.raises(RequestError, match="failed"):
        config(
            *TINY,
            "method=kd_c1",
            "teacher=checkpoint",
            f"kd_teacher.cell={folder.cell_id}",
            f"runs_dir={tmp_path / 'runs'}",
        )
