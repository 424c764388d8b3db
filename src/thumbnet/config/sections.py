"""The entries of a recipe, section by section, each with its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from thumbnet.errors import UsageError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
LogFormat = Literal["default", "tutorial", "book"]


def insist_within(key: str, value: float, low: float, high: float = math.inf, *, below: bool = False) -> None:
    """Raise `UsageError` unless low <= value <= high (value < high if `below`); NaN and infinity are outside."""
    if math.isfinite(value) and low <= value <= high and not (below and value == high):
        return
    upper = f" and {'below' if below else 'at most'} {high:g}" if high < math.inf else ""
    upper = upper or ("" if math.isfinite(value) else " and finite")
    raise UsageError(f"{key} is {value}: it must be at least {low:g}{upper}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pictures."""

    name: str = "cifar10"
    """A data set known by name (cifar10, cifar100, cifar100-coarse, svhn, svhn-extra, shapes), a folder of pictures,
    or a CSV file."""
    validation: float = 0.0
    """Images carved from the training set for validation, stratified by class: how many, or below 1 which share. A
    share gives way to a validation split that the data brings."""
    image_size: int = 32
    """Side in pixels of the squares that pictures of a folder or CSV file become; known data sets have their own."""
    skip_bad: bool = False
    """Go on without the pictures of a folder or CSV file that cannot be read, instead of stopping."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("data.validation", self.validation, 0)
        if self.validation > 1 and self.validation % 1:
            raise UsageError(
                f"data.validation is {self.validation}: it must be a whole number of images, or a share below 1"
            )
        insist_within("data.image_size", self.image_size, 4, 1024)

    def validation_count(self, available: int) -> int:
        """Return how many of the training images available are to be carved out for validation."""
        if 0 < self.validation < 1:
            return max(round(self.validation * available), 1)
        return int(self.validation)


@dataclass(frozen=True, kw_only=True)
class DistortConfig:
    """How a picture becomes the input of the network, in training (random) and in evaluation (fixed)."""

    crop: int = 24
    """Side of the square the network sees: random position in training, central in evaluation (padded if larger)."""
    pad: int = 0
    """Pixels of reflected border added on each side before the random crop; evaluation does not pad for this."""
    flip: Literal["none", "random", "alternate"] = "random"
    """Left-right flips: none; at random; or at random in epoch 0 and every other epoch from there on (airbench)."""
    brightness: float = 0.0
    """Largest brightness shift on the 0..255 scale: uniform in [-brightness, brightness] is added; 0 for none.
    Per-image standardization takes it out again."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the contrast factor about the mean of each channel of the image; (1, 1) for none."""
    order: Literal["fixed", "random"] = "fixed"
    """Brightness before contrast, or either first at random, as the tutorial suggests. Both orders give the same
    pictures, since contrast turns about the picture's own mean and nothing is clipped in between."""
    standardize: Literal["image", "dataset", "mean"] = "image"
    """Per-image standardization; or by the mean and deviation of each channel over the CIFAR-10 training set; or that
    mean taken out alone, which leaves the scale 0..255 (cuda-convnet)."""
    cutout: int = 0
    """Side of a square set to the mean at a random place (training only); 0 for none."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("distort.crop", self.crop, 1, 4096)
        insist_within("distort.pad", self.pad, 0, 64)
        insist_within("distort.cutout", self.cutout, 0, self.crop)
        insist_within("distort.brightness", self.brightness, 0, 255)
        low, high = self.contrast
        insist_within("distort.contrast, lower end", low, 0, high)
        insist_within("distort.contrast, upper end", high, low, 100)


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How examples are put in order and into batches."""

    batch_size: int = 128
    """Images of one step, over all devices."""
    pool: float = 0.4
    """Examples in the shuffling pool, as a fraction of an epoch: 0 keeps the order of the files, 1 shuffles all."""
    pool_mib: int = 512
    """Most memory that the shuffling pool takes, in MiB, of all devices together: each holds its share of it. A larger
    `pool` is cut to it, so that any data set fits; blocks of 1 MiB of the files are then read in another order in each
    epoch, so that what is far apart in the files mixes too. On GPUs, a data set whose pictures take no more is kept on
    each of them whole."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("input.batch_size", self.batch_size, 1)
        insist_within("input.pool", self.pool, 0, 1)
        insist_within("input.pool_mib", self.pool_mib, 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    name: str = "classic"
    """A key of `thumbnet.models.MODELS`, or `timm/` and the name of a network of timm."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network's builder, such as widths."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow gradients."""

    name: Literal["sgd", "muon"] = "sgd"
    """`sgd`: gradient descent; with momentum 0, the plain form. `muon`: convolutions move by orthogonalized gradients
    and keep their norm, everything else by gradient descent (Jordan, https://kellerjordan.github.io/posts/muon)."""
    learning_rate: float = 0.1
    """Peak learning rate for the mean loss of a batch, multiplied by the schedule; in `muon`, of the convolutions."""
    rates: dict[str, float] = field(default_factory=dict)
    """Layer name -> its own peak learning rate in place of `learning_rate`; `biases` for all one-dimensional ones."""
    freeze_after: dict[str, float] = field(default_factory=dict)
    """Layer name -> share of the training after which it no longer learns, 0 to 1."""
    momentum: float = 0.0
    """Share of the last update kept, 0 to below 1."""
    muon_momentum: float = 0.6
    """Momentum of the convolutions in `muon`, in Nesterov's form (0.6 in airbench)."""
    nesterov: bool = False
    """Nesterov's form of momentum; `muon` takes it in any case."""
    weight_decay: dict[str, float] = field(default_factory=dict)
    """Layer name -> coefficient c of c/2 * ||w||^2 in the loss, on that layer's weight; `default` for the others'
    weights, `biases` for all one-dimensional ones. The convolutions of `muon`, which keep their norm, take none."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("optimizer.learning_rate", self.learning_rate, 0)
        insist_within("optimizer.momentum", self.momentum, 0, 1, below=True)
        insist_within("optimizer.muon_momentum", self.muon_momentum, 0, 1, below=True)
        for layer, decay in self.weight_decay.items():
            insist_within(f"optimizer.weight_decay.{layer}", decay, 0)
        for layer, rate in self.rates.items():
            insist_within(f"optimizer.rates.{layer}", rate, 0)
        for layer, share in self.freeze_after.items():
            insist_within(f"optimizer.freeze_after.{layer}", share, 0, 1)
        if self.nesterov and not self.momentum:
            raise UsageError("optimizer.nesterov needs optimizer.momentum above 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What changes over training: the learning rate, as a factor of the peak, and the size of the pictures."""

    name: Literal["staircase", "piecewise", "stairs"] = "staircase"
    """`staircase`: times `factor` every `every_epochs`. `piecewise`: linear between `points`. `stairs`: times `factor`
    at each epoch of `at_epochs`."""
    every_epochs: float = 350.0
    """Epochs of one stair."""
    factor: float = 0.1
    """Factor of one stair."""
    at_epochs: tuple[float, ...] = ()
    """Epochs, rising, at which the stairs of `stairs` are."""
    points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    """(fraction of training, factor) pairs, fractions rising from 0 to 1."""
    resize: tuple[tuple[float, float], ...] = ()
    """(fraction of training, scale) pairs, fractions rising between 0 and 1: until then the network gets its training
    pictures resized to that share of `distort.crop`, 0.1 to 1, which takes it less time (progressive resizing). After
    the last pair, and in every evaluation, it gets them as they are."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("schedule.every_epochs", self.every_epochs, 1e-6)
        insist_within("schedule.factor", self.factor, 0, 1)
        for epoch in self.at_epochs:
            insist_within("schedule.at_epochs", epoch, 0)
        if list(self.at_epochs) != sorted(set(self.at_epochs)):
            raise UsageError(f"schedule.at_epochs must rise, found {list(self.at_epochs)}")
        if self.name == "stairs" and not self.at_epochs:
            raise UsageError("schedule.name is 'stairs': schedule.at_epochs must name at least one epoch")
        fractions = [fraction for fraction, _ in self.points]
        if len(fractions) < 2 or fractions[0] != 0 or fractions[-1] != 1 or sorted(set(fractions)) != fractions:
            raise UsageError(f"schedule.points: fractions must rise from 0 to 1, found {fractions}")
        for fraction, factor in self.points:
            insist_within("a fraction of schedule.points", fraction, 0, 1)
            insist_within("a factor of schedule.points", factor, 0)
        fractions = [fraction for fraction, _ in self.resize]
        if not all(0 < fraction < 1 for fraction in fractions) or sorted(set(fractions)) != fractions:
            raise UsageError(f"schedule.resize: fractions must rise, above 0 and below 1, found {fractions}")
        for _, scale in self.resize:
            insist_within("a scale of schedule.resize", scale, 0.1, 1)


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """The moving average of all weights that evaluation prefers."""

    decay: float = 0.9999
    """Decay of the average per update, with warm-up min(decay, (1 + step) / (10 + step)); 0 keeps no average."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("average.decay", self.decay, 0, 1, below=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a trained network is asked about a picture."""

    views: Literal["one", "mirror", "shifts", "corners"] = "one"
    """What the multi-view figure averages over, reported beside the single-view one: `one` reports none, `mirror` takes
    the picture and its mirror image, `shifts` also both moved by one pixel, up left and down right (airbench),
    `corners` the four corners and the centre of what training crops from, and their mirror images (cuda-convnet)."""
    views_share: float = 1.0
    """Share of the pictures that are looked at over several views: those that the single view is least sure of. The
    others keep its answer, which several views hardly ever change."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        insist_within("evaluation.views_share", self.views_share, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, and what to write on the way."""

    steps: int = 0
    """Steps to train; 0 takes `epochs`, or trains until the time limit where that is 0 too."""
    epochs: float = 0.0
    """Epochs to train, rounded up to whole steps; 0 takes `steps`, or the time limit."""
    time_limit_s: float = 0.0
    """Seconds after which training ends; 0 for no limit. A `piecewise` schedule has run out by then."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes in the loss, 0 to below 1."""
    grain: int = 0
    """Images whose gradients are computed together and then summed up exactly: the weights are the same to the bit on
    any number of devices of one kind, if each has as many threads. 0: all images that a device has, which is faster."""
    precision: PrecisionName = "auto"
    """Arithmetic of the network; auto takes bf16 where the processor has it in hardware, else fp32."""
    log_every: int = 50
    """Steps between step lines."""
    log_format: LogFormat = "default"
    """What is told on the way. `default`: losses, accuracy, speed. `tutorial`: the step line of 2015. `book`: the label
    and logits of a picture, each file as it is begun, and how the logits of the first picture move."""
    summary_every: int = 100
    """Steps between TensorBoard's histograms, images and sparsities; its curves get a point at every step line too. 0
    writes nothing for TensorBoard while training."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints; 0 for none by steps. There is always one at the end."""
    checkpoint_every_s: float = 0.0
    """Seconds between checkpoints; 0 for none by time."""
    keep: int = 3
    """Newest checkpoints kept, beside the best by validation."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible value."""
        for name in ("steps", "epochs", "time_limit_s", "grain"):
            insist_within(f"train.{name}", getattr(self, name), 0)
        for name in ("summary_every", "checkpoint_every_steps", "checkpoint_every_s"):
            insist_within(f"train.{name}", getattr(self, name), 0)
        for name in ("log_every", "keep"):
            insist_within(f"train.{name}", getattr(self, name), 1)
        insist_within("train.label_smoothing", self.label_smoothing, 0, 1, below=True)
        if self.steps and self.epochs:
            raise UsageError(
                f"train.steps ({self.steps}) and train.epochs ({self.epochs:g}) are both set: set one to 0"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training computes."""

    preset: str = "classic"
    """The preset this recipe started from, or the name of its file; runs are named by it."""
    seed: int = 0
    """Seed of the initial weights, the order of examples and the distortions."""
    data: DataConfig = field(default_factory=DataConfig)
    distort: DistortConfig = field(default_factory=DistortConfig)
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible seed, or without a length, which only a whole recipe needs."""
        insist_within("seed", self.seed, 0, 2**63 - 1)
        if not (self.train.steps or self.train.epochs or self.train.time_limit_s):
            raise UsageError("the length of the training is missing: give steps, epochs or a time limit")
