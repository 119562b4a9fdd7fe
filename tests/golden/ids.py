"""The ids of many cells, as `dks sweep plan` says them, and the plans of the sweeps that are shipped."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from support.program import dks

# Arguments of `dks sweep plan`. A command costs a quarter of a second and a combination of choices a tenth; further values
# cost nearly nothing.
FAST = (
    # networks, methods, teachers
    "methods seed=1 method=baseline,ds,dks backbone=resnet8",
    "methods seed=1 method=dks data=cifar100 backbone=resnet32,densenet40_12,wrn28_4,mobilenet",
    "methods seed=1 method=dks,kd_c1,kd_c2c3_ds data=imagenet backbone=resnet18 kd_teacher.temperature=2",
    # branches
    "quickstart aux=ours,shallow,ap_2fc strategy=bidir,topdown seed=3",
    "quickstart aux=ap_conv_2fc strategy=bottomup positions=c3 aux_design.hidden=64,128 aux_design.pool=2,4 "
    "aux_design.conv_channels=16,null",
    "quickstart aux=narrow strategy=none aux_design.width=0.5,1,1.0,2 aux_design.max_blocks=null,1,2,99",
    # losses
    "methods seed=1 method=dks loss.alpha=0,0.5,1 loss.beta=0,0.10,2 loss.form=cross_entropy,smoothed_kl",
    # label noise and data
    "methods seed=1,2 method=dks noise=uniform label_noise.ratio=0.2,.5,8e-1 data.holdout=0,100",
    "methods seed=1 method=baseline data=synthetic data.train_images=64,512 data.image_size=8,32 data.flip=true,false "
    "data.pad=0,2 recipe.pad_mode=zero,reflect",
    # recipes and arithmetic
    "methods seed=1 method=dks recipe.lr=0.1,5e-2,.001,3.0 recipe.weight_decay=0,1e-4,0.00050 recipe.nesterov=false,true",
    "methods seed=1 method=dks recipe.epochs=2,25 'recipe.milestones=[0.28,0.85],[1],[7,21],[]' recipe.gamma=0.1,1 "
    "recipe.schedule=cosine,step recipe.warmup_epochs=0,1",
    "methods seed=1 method=dks recipe.reset_momentum=true,false recipe.momentum=0.9,0 recipe.uniform_gamma=true,false "
    "recipe.fan_in=true,false recipe.batch_size=1,100",
    "methods seed=1 method=dks compute.precision=fp32,bf16,fp16 compute.tf32=false,true compute.compile=false,true",
    # seeds in odd spellings, and what changes no result
    "methods method=dks seed=007,1_0,1000000007",
    "methods seed=1 method=dks threads=3 device=cpu eval_batch_size=7 runs_dir=a/b results_dir=c sweep=mine data.root=d "
    "data.name=e data.workers=2 data.cache_gib=0 tracking=off compute.cuda_graphs=true backbone.activation_checkpointing=true",
)
SLOW = (
    "methods seed=1 method=baseline,ds,dks data=cifar100 backbone=resnet8,resnet20,resnet32,resnet110,resnet1202,"
    "densenet40_12,densenet100_12,wrn28_4,wrn28_10,wrn28_10_dropout,mobilenet",
    "methods seed=1 method=baseline,ds,dks,kd_c1,kd_c1_ds,kd_c2c3_ds,single data=imagenet backbone=resnet18,resnet50,resnet152",
    "methods seed=1 method=dks data=imagenet backbone=resnet18 positions=c2,c3,c4,c2c3,c2c3c4 aux=ours,narrow,ap_2fc",
    "methods seed=1 method=ds data=cifar10 backbone=wrn28_4 backbone.dropout=0,0.3,3.1e-1,.05",
    "methods seed=1 method=dks data=cifar10 backbone=densenet40_12 backbone.growth=12,24 backbone.depth=40,22",
    "methods seed=1 method=dks 'backbone.branches.c2.stages=[{blocks: 1, width: 64}]' backbone.depth=8,14",
    "quickstart aux=ours,shallow,narrow,ap_2fc,ap_conv_2fc strategy=none,topdown,bottomup,bidir positions=c2,c3,c2c3",
    "quickstart aux=none strategy=none positions=none",
    "quickstart aux_design=ours matching_strategy=bidir aux_positions.at=[c3,c2],[c2]",
    "methods seed=1 method=single positions=c2,c3",
    "methods seed=1 method=ds loss.beta=0,5 loss.alpha=1,1e0,2",
    "methods seed=1 method=kd_c1 data=imagenet backbone=resnet18 kd_teacher.temperature=1,2,20 "
    "kd_teacher.weight=0.5,1 kd_teacher.scale_by_t2=true,false",
    "methods seed=1 method=dks label_noise=none label_noise.ratio=0",
    "methods seed=1 method=baseline data=cifar10 'data.mean=[0.5,0.5,0.5]' 'recipe.std=null,[0.25,0.25,0.25]'",
    "methods seed=1 method=baseline data=imagenet backbone=resnet18 "
    "data.augmentation=squash_crop,resized_crop,inception data.resize=256,232",
    "methods seed=1 method=dks data.num_classes=null,10,20",
    "methods seed=1 method=dks recipe=wrn,wrn_code,densenet",
    "methods seed=1 method=dks compute=fast,deterministic,standard",
    "methods method=baseline,dks seed=range(3,9,3)",
)
SHIPPED_FAST = ("methods", "quickstart")
SHIPPED_SLOW = (
    "noise",
    "figure3",
    "paper",
    "resnet1202",
    "strategies",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "cifar10_jpeg data=cifar10",
)


def plan(line: str, folder: Path) -> dict[str, Any]:
    """What `dks sweep plan LINE --json` says; no network is measured."""
    ran = dks("sweep", "plan", *shlex.split(line), "--json", "--probe", "0", folder=folder)
    assert ran.status == 0, f"{line}: {ran.err}"
    found: dict[str, Any] = json.loads(ran.out)
    return found


def ids(lines: tuple[str, ...], folder: Path) -> str:
    """A line a cell, under the command that plans it: cell_id, config_id, seed and overrides."""
    written = []
    for line in lines:
        written.append(f"# {line}")
        for cell in plan(line, folder)["cells"]:
            written.append(f"{cell['cell_id']} {cell['config_id']} {cell['seed']} {' '.join(cell['overrides'])}")
    return "\n".join(written) + "\n"


def plans(lines: tuple[str, ...], folder: Path) -> str:
    """A line a shipped sweep: its cells, and a digest of all that is said of them."""
    written = []
    for line in lines:
        found = plan(line, folder)
        facts = sorted(
            [cell["cell_id"], cell["config_id"], cell["seed"], cell["overrides"], sorted(cell)] for cell in found["cells"]
        )
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        written.append(f"{line}: {found['name']}, axes {','.join(found['axes'])}, {len(facts)} cells, {digest}")
    return "\n".join(written) + "\n"
