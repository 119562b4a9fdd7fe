"""The whole description of one training run, as typed dataclasses registered with Hydra.

Every field has a comment with its unit and meaning; the defaults of the groups are in `conf/`. A
field that is `None` means what its comment says. Which fields can change a result is decided in
`dks/config/identity.py`.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from omegaconf import MISSING


class DesignKind(StrEnum):
    """What an auxiliary branch is made of, where it is no extension."""

    none = "none"  # no branches at all
    # stages of the backbone's own block, down to the final resolution (the paper's design)
    blocks = "blocks"
    fc = "fc"  # average pooling, optionally a convolution, and two fully connected layers (Table 3)


class Strategy(StrEnum):
    """Which ordered pairs of classifiers are matched (Figure 2 of the paper), where that is no
    extension.
    """

    none = "none"  # no synergy loss: deep supervision, or the plain baseline
    topdown = "topdown"  # deeper classifiers teach shallower ones
    bottomup = "bottomup"  # shallower classifiers teach deeper ones
    bidir = "bidir"  # both directions


class NoiseKind(str, Enum):
    """How training labels are corrupted."""

    none = "none"
    # a fixed fraction gets a wrong label, drawn uniformly from the other classes
    uniform = "uniform"


class TeacherKind(str, Enum):
    """Where a distillation teacher comes from."""

    none = "none"
    checkpoint = "checkpoint"  # a file with a state dict, or a finished run of this project
    # torchvision's own ImageNet weights, downloaded where that is possible
    torchvision = "torchvision"


class Schedule(str, Enum):
    """How the learning rate falls."""

    step = "step"  # by a factor at each milestone
    cosine = "cosine"  # to 0 along half a cosine


class PadMode(str, Enum):
    """What lies around an image before it is cropped."""

    zero = "zero"  # black pixels
    reflect = "reflect"  # the image, mirrored at its border


class Augmentation(str, Enum):
    """How training images are varied, and which part of a test image is seen."""

    # CIFAR: a random window of the padded image, mirrored at random; the test image as it is
    pad_crop = "pad_crop"
    # ImageNet as the paper: the whole image to `resize` x `resize` pixels (bicubic, its aspect
    # ratio not kept), a random window of `image_size` pixels, mirrored at random; the centre of the
    # test image
    squash_crop = "squash_crop"
    # ImageNet as torchvision: a random area of 8 to 100 % and aspect ratio, mirrored at random; the
    # centre of the test image, its shorter side brought to `resize`
    resized_crop = "resized_crop"
    # The paper's ResNet-152: areas as resized_crop, and random brightness, contrast and saturation;
    # tested as squash_crop
    inception = "inception"


class TrackingKind(str, Enum):
    """Where metrics go besides the run's own folder."""

    off = "off"  # nowhere
    local = "local"  # an MLflow store in one SQLite file, or another database
    server = "server"  # an MLflow server


class Precision(str, Enum):
    """What convolutions and matrix products compute in.

    Weights, losses and batch normalisation's statistics are float32.
    """

    fp32 = "fp32"
    bf16 = "bf16"  # the range of float32, 8 bits of mantissa
    fp16 = "fp16"  # 11 bits of mantissa; the loss is scaled so that small gradients do not vanish


@dataclass
class Stage:
    """One stage of a branch; its first block halves the resolution."""

    blocks: int = MISSING  # number of blocks
    width: int = MISSING  # channels of each block


@dataclass
class Branch:
    """A branch of the design "ours"; the other block designs are derived from it."""

    stages: list[Stage] = field(default_factory=list)  # from shallow to deep


@dataclass
class Backbone:
    """The network whose accuracy is reported."""

    # name in dks/models/registry.py, or of an extension, with @VERSION once it is resolved
    family: str = MISSING
    depth: int = MISSING  # layers, counted as the family's paper counts them
    width: int | None = None  # family=wrn: widening factor k
    growth: int | None = None  # family=densenet: channels that a layer adds
    # family=wrn: probability between the two convolutions of a block, branches included
    dropout: float = 0.0
    activation_checkpointing: bool = (
        False  # forget the activations inside blocks and compute them again: less memory, more time
    )
    # classifier (c2, c3, ...) -> its branch in the design "ours"
    branches: dict[str, Branch] = field(default_factory=dict)
    # of an extension; its defaults are filled in when it is resolved
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class AuxDesign:
    """How the auxiliary branches are built (Table 3 of the paper)."""

    # none, blocks or fc, see above, or an extension, with @VERSION once it is resolved
    kind: str = DesignKind.none.value
    width: float = 1.0  # kind=blocks: factor on the channels in backbone.branches
    max_blocks: int | None = None  # kind=blocks: at most this many blocks a stage; None: no limit
    pool: int = 4  # kind=fc: side of the average-pooled map, in pixels
    # kind=fc: channels of a 1x1 convolution after the pooling; None: no convolution
    conv_channels: int | None = None
    hidden: int = 128  # kind=fc: units of the first fully connected layer
    # of an extension; its defaults are filled in when it is resolved
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class AuxPositions:
    """Where the auxiliary branches are attached (Table 4 of the paper)."""

    at: list[str] = field(default_factory=list)  # any of c2 (deepest), c3, c4 (shallowest)
    # Table 5: only the path through the one branch is built; its classifier is then the network's
    #     own, c1
    alone: bool = False


@dataclass
class MatchingStrategy:
    """The pairs of the synergy loss (Section 4.3 of the paper)."""

    # none, topdown, bottomup or bidir, see above, or an extension, with @VERSION once it is
    # resolved
    name: str = Strategy.none.value
    # of an extension; its defaults are filled in when it is resolved
    options: dict[str, Any] = field(default_factory=dict)


class SynergyForm(str, Enum):
    """How a pair of classifiers is compared; the gradients are the same but for the smoothing."""

    cross_entropy = "cross_entropy"  # equation (4) of the paper
    # the authors' code: Kullback-Leibler divergence of probabilities smoothed by 1e-8
    smoothed_kl = "smoothed_kl"


@dataclass
class LossTerms:
    """The weights of equation (4), both 1 in the paper, and the form of its last term."""

    alpha: float = 1.0  # of every auxiliary classifier's cross-entropy
    beta: float = 1.0  # of every matched pair
    form: SynergyForm = SynergyForm.cross_entropy


@dataclass
class KdTeacher:
    """The frozen teacher of the distillation methods (Table 6 of the paper)."""

    kind: TeacherKind = TeacherKind.none
    backbone: str | None = None  # choice of the group backbone, for a file or torchvision
    path: str | None = None  # kind=checkpoint: the file, as torch or safetensors wrote it
    cell: str | None = None  # kind=checkpoint: the run, by its cell id in the same runs_dir
    # of the file's content, filled in when the configuration is resolved
    fingerprint: str | None = None
    # path: of each channel, images in [0, 1], in its own training; None: the student's
    mean: list[float] | None = None
    # path: of each channel, images in [0, 1], in its own training; None: the student's
    std: list[float] | None = None
    # path: side in pixels, to which images are resized bilinearly; None: the student's
    image_size: int | None = None
    students: list[str] = field(default_factory=list)  # the classifiers it teaches
    temperature: float = 1.0  # T of both distributions; the paper tries 1, 2, 5, 10 and 20
    weight: float = 1.0  # of every student's term; not stated in the paper
    # multiply by T^2, which keeps gradients the same size for every T; not stated in the paper
    scale_by_t2: bool = True


@dataclass
class LabelNoise:
    """Corrupted training labels (Section 4.3 of the paper, "DKS on Noisy Data").

    Those of the test set and of held-out images are never touched.
    """

    kind: NoiseKind = NoiseKind.none
    ratio: float = 0.0  # fraction of the images that are trained on, in [0, 1)


@dataclass
class Data:
    """The images and how they are augmented."""

    # name in dks/data/registry.py, or of an extension, with @VERSION once it is resolved
    source: str = MISSING
    # what tables call it; None: the source, or for parquet the folder's name
    name: str | None = None
    root: str | None = None  # folder that holds the files, for sources that read some
    # source=parquet: column of the images; None: image, img, jpg or png
    image_column: str | None = None
    # source=parquet: column of the labels; None: label, labels, fine_label or cls
    label_column: str | None = None
    download: bool = False  # let torchvision fetch missing files (cifar10, cifar100)
    num_classes: int | None = None  # outputs of every classifier; None: as many as the data has
    image_size: int | None = None  # side in pixels, resized bilinearly; None: as stored
    augmentation: Augmentation = Augmentation.pad_crop
    resize: int = 256  # all but pad_crop: side of an image before the crop, pixels
    # all but pad_crop: processes that decode images, 0: none but the main one; None: one a core
    workers: int | None = None
    pad: int = 4  # pixels added to each side before the random crop
    flip: bool = True  # mirror left-right with probability 0.5
    mean: list[float] | None = None  # of each channel, images in [0, 1]; None: of the training set
    std: list[float] | None = None  # of each channel, images in [0, 1]; None: of the training set
    train_images: int | None = None  # source=synthetic: size of the training set, images
    test_images: int | None = None  # source=synthetic: size of the test set, images
    # training images kept out of training and used for choices made before the test; drawn by the
    # seed
    holdout: int = 0
    # Of the files' content and of what is read of them, filled in when the configuration is
    # resolved; None: the source fixes it
    fingerprint: str | None = None
    # the most that decoded images may take in this user's cache; 0: none are kept there
    cache_gib: float = 10.0
    # of an extension; its defaults are filled in when it is resolved
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recipe:
    """SGD as the paper sets it for each family of networks."""

    epochs: int = MISSING  # passes over the training images
    # images a step; the last batch of an epoch may be smaller and is kept
    batch_size: int = MISSING
    lr: float = MISSING  # initial learning rate
    schedule: Schedule = Schedule.step
    # lr changes after this many epochs; below 1: a fraction of all, rounded up
    milestones: list[float] = MISSING
    gamma: float = MISSING  # factor on lr at each milestone
    # lr rises linearly to its value over the first epochs: 1/n, 2/n, ... of it
    warmup_epochs: int = 0
    pad_mode: PadMode = PadMode.zero  # what the crops show beyond the border of an image
    mean: list[float] | None = None  # used instead of data.mean
    std: list[float] | None = None  # used instead of data.std
    # forget the momentum at each milestone (a quirk of the authors' WRN code)
    reset_momentum: bool = False
    uniform_gamma: bool = (
        # batch normalisation's scale starts uniform in [0, 1) (a quirk of the authors' WRN code),
        # not at 1
        False
    )
    # convolutions are drawn with a spread by their inputs (a quirk of the authors' WRN code), not
    # outputs
    fan_in: bool = False
    momentum: float = MISSING  # of SGD
    nesterov: bool = MISSING  # Nesterov's form of the momentum
    weight_decay: float = MISSING  # L2, on every parameter


@dataclass
class Tracking:
    """The MLflow sink. The run's own journal is complete without it."""

    kind: TrackingKind = TrackingKind.local
    # of the store; None with kind=server: what MLFLOW_TRACKING_URI says, filled in when it is
    # resolved
    uri: str | None = None
    experiment: str = "dks"  # MLflow experiment
    # how long the end waits for points not yet sent; `dks sync` sends the others
    drain_seconds: float = 30.0


@dataclass
class Compute:
    """How the arithmetic of a run is done.

    What is not as in `compute=standard` is told beneath every table.
    """

    precision: Precision = Precision.fp32
    tf32: bool = False  # CUDA: products of float32 with 11 bits of mantissa, on tensor cores
    # torch.compile: some minutes before the first step; the CPU needs a C++ compiler for it
    compile: bool = False
    # CUDA: only operations that give the same bits every time, which a run that is to go on exactly
    # needs; they are slower, and a network that has none for some layer is refused. On the CPU all
    # operations are of that kind.
    deterministic: bool = False
    cuda_graphs: bool = (
        # CUDA: record a step once and replay it, which spares small networks the launching of each
        #     kernel
        False
    )


@dataclass
class Config:
    """One training run.

    `seed` and everything that can change a result make up the identity of its cell.
    """

    backbone: Backbone = field(default_factory=Backbone)
    aux_design: AuxDesign = field(default_factory=AuxDesign)
    aux_positions: AuxPositions = field(default_factory=AuxPositions)
    matching_strategy: MatchingStrategy = field(default_factory=MatchingStrategy)
    loss: LossTerms = field(default_factory=LossTerms)
    kd_teacher: KdTeacher = field(default_factory=KdTeacher)
    label_noise: LabelNoise = field(default_factory=LabelNoise)
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    compute: Compute = field(default_factory=Compute)
    tracking: Tracking = field(default_factory=Tracking)
    # of the initial weights, the order of the images, the augmentation and the label noise
    seed: int = 0
    device: str = "auto"  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int | None = None  # CPU threads of torch; None: all cores
    eval_batch_size: int = 500  # images a step in evaluation
    runs_dir: str = "runs"  # where runs are kept, one folder a cell
    results_dir: str = "results"  # where tables are written, one folder a sweep
    # name of the sweep this run belongs to; None: made from the swept keys
    sweep: str | None = None
