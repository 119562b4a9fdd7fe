"""Composition and validation: every choice composes, every bad request is one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dks.config.compose import config_from
from dks.config.errors import RequestError
from dks.config.files import choices, declarations
from dks.config.frozen import from_yaml, to_yaml
from dks.config.identity import cell_id
from dks.config.methods import method_of
from dks.config.schema import Config, Strategy
from dks.training.resolver import Resolver, resolve
from tests.conftest import composed, config

GROUPS = sorted(
    path.name for path in declarations("conf").iterdir() if path.is_dir() and path.name != "hydra"
)


@pytest.mark.rest_slow(5)
@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_composes_into_the_typed_config(group: str, choice: str) -> None:
    found = composed(f"{group}={choice}")
    assert found.choices[group] == choice
    text = to_yaml(found.config)
    assert text == OmegaConf.to_yaml(OmegaConf.structured(found.config)), "as OmegaConf writes it"
    assert repr(from_yaml(text)) == repr(found.config), "the same values, and of the same types"


def test_configurations_that_are_read_share_nothing() -> None:
    text = to_yaml(config())
    one, other = from_yaml(text), from_yaml(text)
    one.aux_positions.at.append("c4")
    one.recipe.epochs = 99
    assert other == from_yaml(text) == config()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 0\n", ""),  # defaults stand for what is missing
        ("  lr: 0.1\n", "  lr: 1e-3\n"),
        ("  lr: 0.1\n", "  lr: ${seed}\n"),
        ("seed: 0\n", "loss: {alpha: 2}\nseed: 0\n"),
        ("seed: 0\n", "seed: 0\n# a remark\n"),
        ("seed: 0\n", "seed: 0\nsede: 1\n"),
        ("seed: 0\n", "seed: zero\n"),
        ("  epochs: 15\n", "  epochs: ???\n"),
        ("seed: 0\n", "seed: 0\n- 1\n"),
        ("seed: 0\n", "seed: [0\n"),
        ("recipe:\n", "recipe: null\nrecipe:\n"),
    ],
)
def test_a_changed_file_means_what_omegaconf_says(old: str, new: str) -> None:
    """A configuration is read part by part; that must not be seen."""
    text = to_yaml(config())
    assert old in text
    changed = text.replace(old, new)

    def outcome(read: Callable[[], Config]) -> str:
        try:
            return repr(read())
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    expected = outcome(lambda: config_from(OmegaConf.load(io.StringIO(changed))))
    assert outcome(lambda: from_yaml(changed)) == expected


def test_no_config_file_can_run_anything() -> None:
    files = list(declarations("conf").rglob("*.yaml")) + list(
        declarations("sweeps").rglob("*.yaml")
    )
    assert len(files) > 40
    assert not [path for path in files if "_target_" in path.read_text()]


@pytest.mark.parametrize("method", choices("method"))
def test_a_preset_trains_what_its_name_says(method: str) -> None:
    assert method_of(composed(f"method={method}").config) == method


@pytest.mark.parametrize(
    ("data", "backbone", "epochs"),
    [
        ("digits", "resnet32", 15),
        ("digits", "wrn28_10", 15),
        ("synthetic", "resnet110", 200),
        ("synthetic", "mobilenet", 200),
        ("synthetic", "densenet40_12", 300),
        ("synthetic", "wrn28_10_dropout", 200),
        ("synthetic", "resnet18", 100),
    ],
)
def test_the_recipe_follows_the_backbone_and_the_data(
    data: str, backbone: str, epochs: int
) -> None:
    assert composed(f"data={data}", f"backbone={backbone}").config.recipe.epochs == epochs


def test_a_recipe_asked_for_wins() -> None:
    assert composed("data=digits", "recipe=cifar_resnet").config.recipe.epochs == 200
    assert composed("recipe=digits", "data=synthetic").config.recipe.epochs == 15


def test_without_branches_nothing_is_matched() -> None:
    plain = config("aux=none")
    assert plain.aux_positions.at == []
    assert plain.matching_strategy.name == Strategy.none


BAD = {
    "strategy=bidir aux_design=none": "matching_strategy=bidir has no auxiliary classifier",
    "strategy=bidir aux=none": "matching_strategy=bidir has no auxiliary classifier",
    "aux=none positions=c2": "aux_positions=c2 without branches",
    "positions=none": "leaves no place for the branches",
    "positions=c4": "c4 is not a place in this backbone; it has c2, c3",
    "positions=c2c3c4": "c4 is not a place in this backbone; it has c2, c3",
    "aux_positions.at=[c2,c2]": "names a classifier twice",
    "aux=shallow aux_design=ours": "aux=shallow and aux_design=ours disagree",
    "method=ds strategy=bidir": "method=ds contradicts",
    "method=baseline aux=ours": "method=baseline contradicts",
    "noise=uniform label_noise.ratio=1": "label_noise.ratio=1.0 must be at least 0 and below 1",
    "noise=uniform label_noise.ratio=-0.1": "label_noise.ratio=-0.1 must be at least 0 and below 1",
    "noise=uniform label_noise.ratio=nan": "label_noise.ratio=nan must be at least 0 and below 1",
    "noise=uniform label_noise.ratio=0": "noise needs both or neither",
    "label_noise.ratio=0.5": "noise needs both or neither",
    "data=synthetic data.num_classes=1 noise=uniform "
    "label_noise.ratio=0.5": "needs a wrong class, and synthetic has only one",
    "data.num_classes=9": "data.num_classes=9 is below the 10 labels of digits",
    "data.num_classes=0": "data.num_classes=0 must be at least 1",
    "backbone.depth=21": "must be 6n+2",
    "backbone.depth=2": "must be 6n+2",
    "backbone.width=4": "backbone.width=4 is for the family wrn, this one is cifar_resnet",
    "backbone=wrn28_4 backbone.growth=12": "backbone.growth=12 is for the family densenet",
    "backbone=wrn28_4 backbone.dropout=1": "backbone.dropout=1.0 must be",
    "backbone.family=vgg": "no such family; choose from cifar_resnet, densenet",
    "data.source=svhn": "no such source; choose from cifar10",
    "aux=narrow aux_design.width=0.1": "has no parameter-free shortcut",
    "aux_design.width=inf": "aux_design.width=inf must be",
    "aux=shallow aux_design.max_blocks=0": "aux_design.max_blocks=0 must be at least 1",
    "recipe.epochs=0": "recipe.epochs=0 must be at least 1",
    "recipe.batch_size=-1": "recipe.batch_size=-1 must be at least 1",
    "recipe.lr=0": "recipe.lr=0.0 must be",
    "recipe.momentum=1": "recipe.momentum=1.0 must be",
    "recipe.nesterov=true recipe.momentum=0": "needs momentum",
    "recipe.weight_decay=-1": "recipe.weight_decay=-1.0 must be",
    "recipe.milestones=[3,2]": "must rise",
    "recipe.milestones=[0.5,2]": "must rise, and be all fractions or all whole epochs",
    "recipe.milestones=[1.5]": "must be fractions",
    "loss.beta=-1": "loss.beta=-1.0 must be",
    "seed=-1": "seed=-1 must be",
    "threads=0": "threads=0 must be",
    "device=tpu": "choose auto, cpu, cuda",
    "data=parquet": "data.root has no value",
    "data=parquet data.root=no/such/folder": "is not a folder",
    "data=cifar10 data.root=no/such/folder": "does not hold cifar10",
    "data.mean=[0,0]": "must be three finite numbers",
    "data.std=[0,1,1]": "data.std=[0.0, 1.0, 1.0] must be above 0",
    "data.pad=-1": "data.pad=-1 must be at least 0",
    "sweep=../up": "sweep=../up must be",
    "tracking.uri=null": "tracking.uri is empty",
    "data=synthetic data.image_size=null": "data.image_size has no value",
}


@pytest.mark.rest_slow(18)
@pytest.mark.parametrize("overrides", BAD)
def test_a_contradiction_is_one_line_that_says_what_is_wrong(overrides: str) -> None:
    with pytest.raises(RequestError) as refused:
        config(*overrides.split())
    assert BAD[overrides] in str(refused.value)
    assert all("\n" not in problem and len(problem) < 300 for problem in refused.value.problems)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(RequestError) as refused:
        config("recipe.epochs=0", "recipe.lr=-1", "seed=-1", "data.pad=-1")
    assert len(refused.value.problems) == 4


# Composition errors: through the command, for Hydra and OmegaConf raise them before there is a
#     configuration.
UNREADABLE = {
    "aux=typo": "aux=typo: no such choice; choose from ap_2fc, ap_conv_2fc, narrow, none, ours, "
    "shallow",
    "backbone=resnet33": "backbone=resnet33: no such choice; choose from",
    "auxx=ours": "auxx: no such key; did you mean aux?",
    "recipe.epoch=3": "recipe.epoch: no such key; did you mean epochs?",
    "recipe.epochs=abc": "recipe.epochs=abc must be a whole number",
    "aux_design.kind=xx": "no such kind; choose from blocks, fc, none",
    "seed=1,,2": "seed=1,,2 cannot be read",
    "=3": "=3 has no key",
    "aux": "missing EQUAL",
    "-m seed=": "seed= must be a whole number",
    "-m seed=1,x aux=ours,typo": "aux=typo: no such choice",
    "-m recipe.lr=interval(0,1)": "name the values",
}


@pytest.mark.rest_slow(2)
@pytest.mark.parametrize("arguments", UNREADABLE)
def test_what_cannot_be_read_is_one_line_and_exit_status_2(
    run_here, in_folder: Path, arguments: str
) -> None:  # type: ignore[no-untyped-def]
    status, out, err = run_here(*arguments.split())
    assert status == 2
    assert out == ""
    assert UNREADABLE[arguments] in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not list(in_folder.iterdir()), "a refused request leaves nothing behind"


def test_in_a_sweep_every_bad_cell_is_named_and_nothing_is_launched(
    run_here, in_folder: Path
) -> None:  # type: ignore[no-untyped-def]
    status, out, err = run_here("-m", "positions=c2,c4", "seed=-1,0", "recipe.epochs=1")
    assert status == 2
    assert out == ""
    assert "positions=c4 seed=0: aux_positions: c4" in err.replace("positions=c4 seed=-1 | ", "")
    assert "positions=c2 seed=-1 | positions=c4 seed=-1: seed=-1 must be" in err
    assert not list(in_folder.iterdir())


@pytest.mark.slow
def test_what_is_wrong_with_all_of_many_cells_names_none_of_them(run_here) -> None:  # type: ignore[no-untyped-def]
    status, _, err = run_here("-m", "seed=range(7)", "data=parquet")
    assert (status, err.splitlines()) == (2, [err.strip()])
    assert err.startswith("error: all 7 cells: data.root has no value; add data.root=FOLDER")
    status, _, err = run_here("-m", "seed=range(-7,1)", "recipe.epochs=1")
    assert status == 2
    assert err.splitlines()[0].startswith("error: seed=-7: seed=-7 must be")


# --- many configurations of one plan


def test_one_plan_looks_at_each_data_set_and_each_teacher_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dks.data import synthetic
    from dks.objectives import teacher

    inspected, checked = [], []
    inspect = synthetic.inspect
    monkeypatch.setattr(
        synthetic, "inspect", lambda data: inspected.append(data.image_size) or inspect(data)
    )
    monkeypatch.setattr(
        teacher, "check_teacher", lambda config: checked.append(config.kd_teacher.cell)
    )
    resolver = Resolver()
    for size in (8, 16):
        for cell in ("a" * 12, "b" * 12):
            for rate in (0.1, 0.2):
                choices = (
                    "data=synthetic",
                    f"data.image_size={size}",
                    "method=kd_c1",
                    "teacher=checkpoint",
                )
                given = composed(*choices, f"kd_teacher.cell={cell}", f"recipe.lr={rate}")
                found = resolver(given)
                assert (found.data.image_size, found.kd_teacher.cell, found.recipe.lr) == (
                    size,
                    cell,
                    rate,
                )
    assert inspected == [8, 16]
    assert checked == ["a" * 12, "b" * 12]


def test_compilation_needs_a_compiler_here_or_where_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RequestError, match=r"compute\.compile=true needs a C\+\+ compiler"):
        resolve(composed("compute.compile=true"))
    planner = Resolver(absent_ok=True)
    assert planner(composed("compute.compile=true")).compute.compile
    assert [line for line in planner.absent if "compiler" in line]
    assert not config().compute.compile


def test_what_is_wrong_with_data_is_said_of_every_cell(tmp_path: Path) -> None:
    resolver = Resolver()
    for seed in (1, 2):
        with pytest.raises(RequestError, match="does not hold cifar10") as refused:
            resolver(composed("data=cifar10", f"data.root={tmp_path}", f"seed={seed}"))
        assert len(refused.value.problems) == 1
    assert not resolver.absent


def imagenet_folders(root: Path, classes: int) -> None:
    for split in ("train", "val"):
        for number in range(classes):
            (root / split / f"n{number:08}").mkdir(parents=True)
            (root / split / f"n{number:08}" / "1.JPEG").write_bytes(b"")


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "imagenet"])
def test_known_data_need_not_be_here_for_a_plan(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dks.data.imagefolder.IMAGENET_IMAGES", (1000, 1000))
    overrides = (
        f"data={source}",
        f"data.root={tmp_path}",
        "backbone=resnet18" if source == "imagenet" else "backbone=resnet20",
    )
    resolver = Resolver(absent_ok=True)
    planned = [resolver(composed(*overrides, f"seed={seed}")) for seed in (0, 1)]
    (line,) = resolver.absent
    assert str(tmp_path) in line
    with pytest.raises(RequestError):
        resolve(composed(*overrides))
    if source == "imagenet":
        imagenet_folders(tmp_path, 1000)
    else:
        (
            tmp_path / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[source]
        ).mkdir()
    with_files = resolve(composed(*overrides))
    assert planned[0] == with_files
    assert cell_id(planned[0]) == cell_id(with_files)
    later = Resolver(absent_ok=True)
    assert later(composed(*overrides)) == with_files
    assert not later.absent


def test_imagenet_can_be_planned_without_a_folder() -> None:
    resolver = Resolver(absent_ok=True)
    found = resolver(composed("data=imagenet", "backbone=resnet18"))
    assert (found.data.num_classes, found.data.name, found.data.root) == (1000, "imagenet", None)
    assert resolver.absent == [
        "data.root has no value; add data.root=FOLDER with the folders train and val in it"
    ]


def test_what_only_files_can_tell_must_be_here_for_a_plan(tmp_path: Path) -> None:
    imagenet_folders(tmp_path / "small", 3)
    cases = {
        "data=parquet data.root=no/such/folder": "is not a folder",
        "data=imagefolder data.root=no/such/folder": "is not a folder",
        f"data=imagenet data.root={tmp_path / 'small'}": "has 3 classes and ImageNet 1000",
        "data=cifar10 data.root=no/such/folder data.num_classes=9": "below the 10 labels",
        "method=kd_c1 teacher=checkpoint kd_teacher.cell=123456789abc": "there is no run "
        "123456789abc",
        "method=kd_c1 teacher=checkpoint kd_teacher.path=no.pt "
        "kd_teacher.backbone=resnet8": "no.pt cannot be read",
    }
    for overrides, message in cases.items():
        with pytest.raises(RequestError, match=message):
            Resolver(absent_ok=True)(composed(*overrides.split()))
