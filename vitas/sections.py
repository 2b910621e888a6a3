"""The sections of a recipe: what can be set, within which bounds, and by default."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from vitas.config import Section, one_line
from vitas.files import expanded
from vitas.spaces.architecture import MOST_CLASSES, Pixels
from vitas.spaces.budget import Rising

Fraction = Annotated[float, Field(ge=0, le=1)]
Mean = Annotated[list[Fraction], Field(min_length=3, max_length=3)]
Std = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
BatchSize = Annotated[int, Field(gt=0, le=2**20)]

NAME = r"^[A-Za-z0-9][\w.-]*$"
"""What may name a folder."""

MAY_CHANGE = ("lr", "epochs", "on_nonfinite")
"""Settings of a training that may change while it runs: what is done so far stands, the rest follows the new ones."""

STARTS = ("scratch", "supernet")
"""What a training starts from, if not from a model."""

FEWEST_TRIALS = 8
"""Of fewer trials, or scores, nothing can be learnt."""

QUALITIES = ("top1", "loss")
"""Objectives that say how well a candidate does, not what it costs."""

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _class_names(value: Any) -> int | list[str] | None:
    """The number of classes as it is, or their names, also from a file; names that YAML took for numbers are texts."""
    expected = f"expected a number from 2 to {MOST_CLASSES:,}, the names as [a, b], or a file with a name on each line"
    names: Any = value
    if isinstance(value, str):
        try:
            names = [
                line.strip() for line in expanded(value).read_text(encoding="utf-8-sig").splitlines() if line.strip()
            ]
        except OSError as error:
            raise ValueError(f"{value}: {error.strerror}; {expected}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{value}: not a text file; {expected}") from None
    if value is None or (type(value) is int and 2 <= value <= MOST_CLASSES):
        return value
    if not isinstance(names, list) or len(names) < 2 or not all(type(name) in (str, int, float) for name in names):
        raise ValueError(f"{expected}, got {one_line(repr(value))}")
    names = list(map(str, names))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"class {twice[0]} is there twice")
    return names


Classes = Annotated[
    int | list[str] | None,
    BeforeValidator(_class_names, json_schema_input_type=PositiveInt | list[str | float] | str | None),
]
"""How many classes there are, or their names; a recipe may give the file that holds them."""


class Data(Section):
    """Where the images come from."""

    train: str = "digits"
    """`digits`, a folder of class folders, `.parquet` files, WebDataset `.tar` files, a `.csv` or `.tsv` of image
    files and labels, a folder of `save_to_disk`, or a Hub name such as `ILSVRC/imagenet-1k:train`. `~`, `$VARIABLES`,
    `*` and `{000..127}` are filled in. Of a folder with parts, such as train and test, each key takes its own;
    `FOLDER:PART` takes another."""
    test: str | None = None
    """Where the test images come from, in the same forms; may be left out for `digits`."""
    test_part: Annotated[float, Field(gt=0, lt=1)] | None = None
    """In place of `test`: the part of each class of `train` that is kept for the test, the same with every seed."""
    image_column: str | None = None
    """The column of images; found from the features if left out."""
    label_column: str | None = None
    """The column of class labels; found from the features if left out."""
    classes: Classes = None
    """Number of classes, their names in order, or a file with a name on each line, where the data does not say them;
    and to check a recipe without data."""
    examples: Annotated[int, Field(gt=0, le=10**12)] | None = None
    """Number of training images: with `classes`, a check then needs no data."""
    streaming: bool = False
    """Read images in the order of their shards, from wherever these are, instead of copying them first."""
    readers: PositiveInt = 64
    """Places of a stream that are read side by side, whatever the ranks and workers: each step takes as many images
    from each. Fewer, if there are fewer shards or the batch does not divide by them."""
    shuffle_buffer: PositiveInt = 2048
    """Images of a stream among which one step's are drawn: each reader shuffles blocks of its share of them."""
    patience: Annotated[float, Field(gt=0, le=540)] = 300.0
    """Seconds for which a shard that cannot be read is tried again; then the run saves, and ends with exit code 75.
    Ranks wait ten minutes for each other, and so it is less."""
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Part of the images that may be unreadable, ten at least; with more the run stops."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the training images that the search scores candidates on, and no training sees."""
    workers: NonNegativeInt = 4
    """Processes on each rank that read and transform images; never more than cores."""
    decoder: Literal["cpu", "dali"] = "cpu"
    """What decodes, crops and flips training images: the workers, or NVIDIA DALI on each rank's GPU, which the extra
    `vitas[dali]` brings. Crops, flips and order are the same; timm's policies and colour jitter need `cpu`."""
    mean: Mean = IMAGENET_MEAN
    """Mean of each RGB channel, in [0, 1]."""
    std: Std = IMAGENET_STD
    """Standard deviation of each RGB channel, in [0, 1]."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """At test, the shorter side is resized to image_size / crop_pct before the centre crop."""

    @model_validator(mode="after")
    def _one_test(self) -> Data:
        if self.test is not None and self.test_part is not None:
            raise ValueError(f"test_part {self.test_part:g}: is of the training images, and test names others")
        return self

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the recipe says, if it does."""
        return len(self.classes) if isinstance(self.classes, list) else self.classes


class Augment(Section):
    """Training augmentation, by timm."""

    scale: Rising[Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Area of the random crop, as a part of the image."""
    ratio: Rising[Annotated[float, Field(ge=0.01, le=100)]] = (0.75, 4 / 3)
    """Aspect ratio of the random crop."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    color_jitter: NonNegativeFloat = 0.0
    """Strength of colour jitter."""
    auto_augment: str | None = None
    """timm's name of an AutoAugment or RandAugment policy, such as `rand-m9-mstd0.5-inc1`."""
    erasing: Fraction = 0.0
    """Probability of random erasing, by pixels."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of Mixup; 0 for none."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of CutMix; 0 for none."""

    @field_validator("auto_augment")
    @classmethod
    def _known(cls, policy: str | None) -> str | None:
        kind, *options = (policy or "original").split("-")
        whole, real = r"\d{1,4}", r"\d{1,4}(\.\d{1,9})?"
        mstd, others = rf"mstd{real}", rf"(m|n|mmax|inc){whole}|p{real}|t(weights|3aw?)"
        known = {"rand": rf"{mstd}|{others}", "augmix": rf"{mstd}|(m|w|d|b){whole}|a{real}"}
        known |= dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), mstd)
        wrong = [option for option in options if not re.fullmatch(known.get(kind, ""), option)]
        if kind not in known or wrong:
            # timm itself passes over what it does not understand.
            what = f", and not {wrong[0]!r}" if wrong else ""
            raise ValueError(f"expected a timm policy such as rand-m9-mstd0.5-inc1{what}, got {one_line(repr(policy))}")
        return policy


class Training(Section):
    """The one training loop. The same recipe trains the same on any number of ranks."""

    section: ClassVar[str]
    """Its name in a recipe."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] = 300
    """Passes over the training images."""
    batch_size: BatchSize = 1024
    """Images of one optimizer step, over all ranks and accumulation."""
    micro_batch_size: PositiveInt = 128
    """The most images of one forward on one rank; what is above is accumulated."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay; none on biases and other 1-d weights."""
    warmup_epochs: NonNegativeFloat = 5
    """Epochs of linear warm-up from 1e-6; cosine to zero follows."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing."""
    clip_grad: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    augment: Augment = Augment()
    """Training augmentation."""
    grad_checkpointing: bool = False
    """Keep no activations inside blocks, but compute them again in the backward pass: less memory, more time."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do at a step whose loss is not finite: stop all ranks, or leave the step out and count it."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights, kept in float32; it is the model then. 0 for none."""
    checkpoint_every: PositiveInt | None = 500
    """Optimizer steps between two checkpoints; null for none by steps."""
    checkpoint_minutes: PositiveFloat | None = None
    """Minutes between two checkpoints, besides those by steps."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints that are kept."""
    validate_every: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Epochs between two validations, of which one is at the end; null for none. A supernet's subnets are validated on
    the hold-out, a retraining on the test images, by which `best.safetensors` is chosen: its figure is optimistic."""

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be fewer than epochs {self.epochs:g}")
        if (self.augment.mixup or self.augment.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size} must be even: Mixup and CutMix mix pairs of images")
        return self


class SupernetTraining(Training):
    """Training of the supernet: another random subnet at each step."""

    section = "supernet"
    sharing: Literal["ordinal", "bilateral", "cyclic"] = "bilateral"
    """Which channels a width takes: the first (AutoSlim), first and last (BCNet), or windows around a circle."""
    attention: Literal["private_qk", "shared", "private_v", "private"] = "private_qk"
    """What each head choice has for itself; the rest is shared by all."""
    skip: Fraction | None = None
    """Probability that a block is skipped; left out, it is calibrated to the budget, or to several in turn."""
    sandwich: Annotated[int, Field(ge=0, le=64)] = 0
    """With k > 0 a step trains the largest subnet, the smallest one and k random ones (BigNAS); 0 for a random one."""
    distill: Literal["none", "soft", "alpha"] = "none"
    """What all but the largest subnet of a sandwich learn from: the labels; what the largest one says, as soft labels
    (BigNAS); or that, by the adaptive alpha-divergence (AlphaNet)."""
    in_budget: Fraction = 0.0
    """The last part of the steps, in which random subnets are drawn inside the budget, evenly over its first window of
    counted costs, or inside several budgets in turn."""
    trained_in: str | None = Field(default=None, alias="from")
    """A run, or its folder `supernet`, whose trained supernet is used in place of one of this run's own."""

    @model_validator(mode="after")
    def _something_to_distill(self) -> SupernetTraining:
        if self.distill != "none" and not self.sandwich:
            raise ValueError(f"distill {self.distill} needs a sandwich: its largest subnet teaches the others")
        return self


def _names(value: Any) -> Any:
    if not isinstance(value, str) and not (
        isinstance(value, list) and value and all(isinstance(v, str) for v in value)
    ):
        raise ValueError(f"expected a name or a list of names, got {one_line(repr(value))}")
    return value


class Retraining(Training):
    """Training of one architecture."""

    section = "retrain"
    architecture: Annotated[str | list[str], BeforeValidator(_names)] = "best"
    """`best` or `best:BUDGET` (the search's), `front:2` (of its front the second), the key of a candidate, a name such
    as `vitas_c` or `deit_s`, or a YAML file; or a list of these: each is trained in a folder of its own."""
    search: str | None = None
    """Folder of the search that `best`, `front:N` and keys are taken from; left out, that of `evolve.name`."""
    init: str = "scratch"
    """What it starts from: new weights, `scratch`; the `supernet`'s; or those of a model of any classes and image size:
    its folder, a `model.safetensors`, or a `.pth.tar` of the original release. Left out, `architecture` is then its."""
    image_size: Pixels | None = None
    """Height and width of the images, in pixels, if not those of the architecture."""
    head_epochs: NonNegativeFloat = 0
    """Epochs at the beginning that train the classifier alone, when it does not start from scratch."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the last block, rising linearly from 0."""
    compile: bool = False
    """Compile the model with torch.compile."""

    @model_validator(mode="before")
    @classmethod
    def _architecture_of_init(cls, values: Any) -> Any:
        init = values.get("init") if isinstance(values, dict) else None
        if isinstance(init, str) and init not in STARTS and "architecture" not in values:
            return values | {"architecture": init}
        return values

    @model_validator(mode="after")
    def _head_of_something(self) -> Retraining:
        if self.head_epochs and self.init == "scratch":
            raise ValueError(f"head_epochs {self.head_epochs:g} needs init: new weights have to be trained as a whole")
        if self.head_epochs >= self.epochs:
            raise ValueError(f"head_epochs {self.head_epochs:g} must be fewer than epochs {self.epochs:g}")
        return self

    @property
    def starts_from_model(self) -> bool:
        """Whether `init` names the weights of a model."""
        return self.init not in STARTS

    def over(self, epochs: float, init: Literal["scratch", "supernet"]) -> Retraining:
        """The same schedule over other epochs and from such weights, as a whole, with its warm-up in proportion."""
        warmup = self.warmup_epochs * epochs / self.epochs
        changes = {"epochs": epochs, "warmup_epochs": warmup, "init": init, "head_epochs": 0}
        return self.model_copy(update=changes)

    def short(self, epochs: float, init: Literal["scratch", "supernet"]) -> Retraining:
        """`over` so few epochs that an average of weights would still be mostly of the first ones: without it."""
        return self.over(epochs, init).model_copy(update={"ema": 0.0})


class Evolution(Section):
    """The search."""

    name: Annotated[str, Field(pattern=NAME, max_length=128)] = "evolution"
    """Folder of the search in the run. Searches of one supernet share its scores."""
    algorithm: Literal["nsga2", "regularized", "random"] = "nsga2"
    """NSGA-II; regularized (aging) evolution; or random architectures inside the budget."""
    population: Annotated[int, Field(ge=2, le=10_000)] = 50
    """Architectures of a generation, over all budgets."""
    generations: Annotated[int, Field(gt=0, le=100_000)] = 40
    """Generations, the first one (random) included. With more of them a search that is done goes on."""
    objectives: list[Literal["top1", "flops", "macs", "params", "throughput", "latency", "memory", "loss"]] = ["top1"]
    """What is improved: top-1 and throughput up, other costs and the loss (cross-entropy) down. Several give a front,
    whose best one is that of the best top-1, or of the lowest loss, whichever is named first."""
    fidelity: list[Annotated[float, Field(gt=0, le=1)]] = [1.0]
    """Successive halving: the parts of the images, such as `[0.1, 0.3, 1.0]`, on which all candidates of a generation,
    then the better half, then the better half of these are scored. Only those scored on all can be found."""
    trials: Annotated[int, Field(ge=0, le=1000)] = 0
    """Random architectures of the budgets that are first trained alone, to correct the supernet's scores by: the search
    then improves the loss that they foretell. 8 or more, 24 are a good number; 0 for none."""
    trial_init: Literal["supernet", "scratch"] = "supernet"
    """Whether trials start from the supernet's weights, for which a part of the epochs is enough, or from new ones."""
    trial_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Epochs of a trial, otherwise a training of `retrain`, its warm-up in proportion; left out, a quarter of its."""
    smooth: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Random architectures of the budgets that are first scored, to learn how the loss follows from the choices: the
    search then improves the mean of that loss and the supernet's own, which holds less noise. 300 are a good number;
    0 for none. Where there are trials, they take its place."""
    finalists: Annotated[int, Field(ge=0, le=256)] = 0
    """The best and most different candidates, which are trained from the supernet's weights, halved by their loss until
    one is left: the best architecture is that one. It takes about half of a retraining. 0 for none."""
    mutation: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability that a gene of a child is drawn anew."""
    score_on: Literal["holdout", "test"] = "holdout"
    """Images that score a candidate. `test` is the paper's choice; the test accuracy is then an optimistic figure."""
    batch_size: BatchSize | None = None
    """Images of one forward of a candidate; left out, the fastest number is measured."""

    @property
    def stage(self) -> str:
        """The search in metrics and in messages."""
        return "evolve" if self.name == "evolution" else f"evolve/{self.name}"

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in (taken := ("supernet", "rank", "retrain", "baseline", "opponents", "cache", "wandb")):
            raise ValueError(f"expected another name than {', '.join(taken)}, got {name}")
        return name

    @field_validator("trials", "smooth")
    @classmethod
    def _enough(cls, architectures: int) -> int:
        if 0 < architectures < FEWEST_TRIALS:
            raise ValueError(f"expected 0 or at least {FEWEST_TRIALS}, got {architectures}")
        return architectures

    @field_validator("fidelity")
    @classmethod
    def _rises_to_all(cls, parts: list[float]) -> list[float]:
        if parts != sorted(set(parts)) or parts[-1:] != [1.0]:
            raise ValueError(f"expected rising parts of the images, the last one 1.0, got {parts}")
        return parts

    @field_validator("objectives")
    @classmethod
    def _quality(cls, objectives: list[str]) -> list[str]:
        if not {*QUALITIES} & {*objectives} or len(set(objectives)) < len(objectives):
            raise ValueError(f"expected different objectives, top1 among them, or loss, got {objectives}")
        return objectives


class Ranking(Section):
    """Whether the supernet's scores rank architectures as training each of them alone does."""

    sample: Annotated[int, Field(ge=3, le=1000)] = 20
    """Architectures of each budget that are trained."""
    seeds: Annotated[int, Field(ge=1, le=16)] = 2
    """Trainings of each. What differs between seeds is noise that no ranking can foresee."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Epochs of a training, otherwise one of `retrain`, with its warm-up in proportion; left out, a quarter of its."""


class Evaluation(Section):
    """The final figures on the test images."""

    weights: str | None = None
    """Evaluate these weights in place of the run's own: a folder, a `model.safetensors`, or a `.pth.tar` of the
    original release."""
    architecture: str | None = None
    """Architecture of `weights`, a name such as `vitas_c` or a YAML file; found from the weights if left out."""
    batch_size: BatchSize = 256
    """Images of one forward."""
    throughput_batch: BatchSize = 64
    """Batch size at which images/s are measured."""
    compile: bool = False
    """Compile the model with torch.compile."""

    @model_validator(mode="after")
    def _weights_of(self) -> Evaluation:
        if self.architecture is not None and self.weights is None:
            raise ValueError(f"architecture {self.architecture} needs weights: which file holds its weights?")
        return self


class Tracking(Section):
    """Where the metrics go besides `metrics.jsonl`."""

    wandb: Literal["never", "auto", "online", "offline"] = "never"
    """`auto` is online when logged in, else offline."""
    project: str = "vitas"
    """The wandb project, or that of other trackers."""
    artifacts: Literal["none", "best", "weights"] = "best"
    """What wandb keeps of the outcome: nothing, the best architectures, or these and the final weights."""
    others: list[Literal["tensorboard", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"]] = (
        Field(default=[], alias="with")
    )
    """Other trackers of Accelerate's that get the same metrics, such as `[tensorboard]`, in the run folder if they
    write to disk; each is a package to install."""
