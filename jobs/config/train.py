"""The settings of `maskfleet train`: model, data, training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from jobs.config.base import ClusterSection, OutputSection, Section, StorageSection
from model.presets import preset
from model.spec import ModelSpec


class TrainModelSection(Section):
    """What network is trained, and from which weights."""

    preset: str | None = Field(
        None,
        description="A published network whose settings are the spec's defaults: a name of torchvision's, such as "
        "maskrcnn_resnet50_fpn_v2, or of detectron2's model zoo, such as mask_rcnn_R_50_FPN_3x.",
    )
    spec: ModelSpec = Field(
        default_factory=ModelSpec, description="The network; num_classes 0 is as many as the training data has."
    )
    weights: str | None = Field(
        None,
        description="Weights to start from: 'coco' or 'imagenet' (torchvision's), or a file of weights, here or in a "
        "bucket; null starts from random ones.",
    )
    checkpoint: str | None = Field(
        None, description="Checkpoint folder or training output whose fitting weights are the start (fine-tuning)."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        given = values.get("spec") or {}
        given = given.to_dict() if isinstance(given, ModelSpec) else given
        return {**values, "spec": {**preset(str(values["preset"])).to_dict(), "num_classes": 0, **given}}

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.weights is not None and self.checkpoint is not None:
            raise ValueError("model.weights and model.checkpoint both name a start; give at most one of them")
        return self


class AugmentSection(Section):
    """Random changes of a training image, each drawn from (seed, epoch, image), so that a resumed run repeats them.

    In this order: colour, flips, rotation, resizing.
    """

    horizontal_flip: float = Field(0.5, ge=0, le=1, description="Probability of a left-right flip.")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="Probability of a top-bottom flip.")
    brightness: float = Field(0.0, ge=0, le=1, description="Brightness is multiplied by 1 - value to 1 + value.")
    contrast: float = Field(0.0, ge=0, le=1, description="The same for contrast.")
    saturation: float = Field(0.0, ge=0, le=1, description="The same for saturation.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Hue is turned by up to this part of the circle.")
    rotation: float = Field(0.0, ge=0, le=1, description="Probability of a turn.")
    rotation_degrees: float = Field(0.0, ge=0, le=180, description="Largest turn either way, in degrees.")
    rotation_expand: bool = Field(False, description="Grow the canvas rather than cut the corners off.")
    resize: Literal["none", "fixed", "short_side", "large_scale_jitter"] = Field(
        "none", description="Resizing before the network's own (model.spec.image_min_size)."
    )
    resize_size: tuple[int, int] = Field((512, 512), description="Height, width in pixels of 'fixed' and the jitter.")
    resize_keep_aspect: bool = Field(False, description="Pad rather than stretch to 'fixed'.")
    short_sides: tuple[int, ...] = Field(
        (800,), min_length=1, description="Short sides in pixels that 'short_side' draws from."
    )
    max_size: int = Field(1333, ge=1, description="Longest side in pixels after 'short_side'.")
    jitter_scales: tuple[float, float] = Field((0.1, 2.0), description="Range of 'large_scale_jitter'.")


class TrainDataSection(Section):
    """The annotated photos."""

    train: str = Field(min_length=1, description="Training set: COCO JSON, or a folder with annotations (COCO or VIA).")
    val: str | None = Field(None, description="Validation set, in the same forms; null validates nothing.")
    format: Literal["auto", "coco", "via", "voc", "cityscapes", "labelme"] = Field(
        "auto", description="Form of the annotations."
    )
    default_category: str = Field("object", min_length=1, description="Name of the one class of VIA without classes.")
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names of the classes to train, in this order; null takes the training set's."
    )
    rename: dict[str, str] = Field(
        default_factory=dict, description="Category of the data -> its name here; several may go to one."
    )
    unknown_categories: Literal["refuse", "ignore", "drop"] = Field(
        "refuse",
        description="Objects of a category that is not declared, or not among the classes: refuse the set, make them "
        "neither positive nor negative, or make them background.",
    )
    image_root: str | None = Field(None, description="Folder of the training photos; null looks beside the JSON.")
    val_image_root: str | None = Field(None, description="The same for the validation photos.")
    num_images: int | None = Field(
        None, ge=1, description="Train on this many images, drawn by train.seed (smaller draws lie within larger ones)."
    )
    extra_channels: str | None = Field(
        None,
        description="File with the further channels of a photo, such as {folder}/../depth/{stem}.png, for "
        "model.spec.in_channels above 3; null where photos hold all channels themselves.",
    )
    augment: AugmentSection = Field(default_factory=AugmentSection)
    copy_paste: float = Field(
        0.0, ge=0, le=1, description="Probability that objects of another photo are pasted onto one."
    )


class TrainSection(Section):
    """How it is trained."""

    # -- how long
    max_steps: int | None = Field(None, ge=1, description="Steps to train; the earlier of this and num_epochs ends it.")
    num_epochs: float | None = Field(None, gt=0, description="Passes over the training set.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the weights, the order and every random choice.")

    # -- the batch
    batch_size: int = Field(2, ge=1, le=1024, description="Images of one worker in one forward pass.")
    accumulate_steps: int = Field(1, ge=1, le=1024, description="Forward passes whose gradients make one step.")
    data_workers: int = Field(
        2, ge=0, le=256, description="Processes that read and augment samples, for each worker; 0 lets training wait."
    )
    group_aspect_ratios: bool = Field(
        True, description="Put upright and lying images into different steps, where that saves padding."
    )
    prefetch_batches: int = Field(4, ge=1, le=256, description="Steps prepared ahead, for each worker.")

    # -- the optimizer
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Update rule.")
    learning_rate: float = Field(0.02, gt=0, le=100, description="Rate after the warm-up.")
    reference_batch_size: int | None = Field(
        None,
        ge=1,
        description="Images per step that learning_rate is meant for; it is scaled linearly to the actual number. "
        "Null takes the rate as it is.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Weight decay.")
    norm_weight_decay: float | None = Field(
        None, ge=0, le=1, description="Weight decay of normalisation layers; null is weight_decay."
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest L2 norm of the gradients; null does not clip.")

    # -- the learning rate over time
    schedule: Literal["constant", "cosine", "multistep"] = Field("multistep", description="Course of the rate.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    warmup_factor: float = Field(0.001, ge=0, le=1, description="Share of the rate at which the warm-up starts.")
    milestones: tuple[int, ...] = Field((), description="Steps at which 'multistep' multiplies the rate by gamma.")
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of each drop of 'multistep'.")
    final_factor: float = Field(0.0, ge=0, le=1, description="Share of the rate at which 'cosine' ends.")

    # -- numbers
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Arithmetic of the forward pass; float16 scales its gradients."
    )
    channels_last: bool = Field(False, description="Keep convolution weights and images channels-last.")
    compile: bool = Field(False, description="Compile the backbone with torch.compile.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the weights, saved as the model; null is off."
    )
    global_normalisers: bool = Field(
        True,
        description="Divide each loss by its count over all workers, so that the split over workers does not change "
        "the gradient; false keeps torchvision's average per worker.",
    )
    max_non_finite_steps: int = Field(
        5, ge=0, description="Steps with a loss or gradient that is not finite that are skipped before the run ends."
    )

    # -- what is kept
    checkpoint_every_steps: int = Field(1000, ge=1, description="Steps between checkpoints; the last step has one too.")
    num_to_keep: int | None = Field(
        3, ge=1, description="Newest checkpoints that stay; null keeps all. The best one always stays."
    )
    log_every_steps: int = Field(
        20, ge=1, description="Steps that one row of metrics.parquet stands for, at most; checkpoints end a row too."
    )
    tensorboard: bool = Field(True, description="Write a TensorBoard log beside the metrics.")

    # -- validation
    validate_every_steps: int | None = Field(
        None, ge=1, description="Steps between measurements of AP on data.val, with a checkpoint each; null is never."
    )
    validate_every_epochs: float | None = Field(
        None, gt=0, description="The same in passes over the training set; at most one of the two is given."
    )
    validate_train_images: int = Field(
        0, ge=0, description="Training images that are measured at the same times, as train_segm_AP; 0 is none."
    )
    early_stop_patience: int | None = Field(
        None, ge=1, description="Validations without a better segm AP after which training ends; null never ends early."
    )

    # -- the workers
    num_workers: int = Field(1, ge=1, le=4096, description="Training processes, one GPU each where use_gpu is true.")
    min_workers: int | None = Field(
        None, ge=1, description="Go on with as few as this when nodes are lost, up to num_workers; null waits for all."
    )
    use_gpu: bool = Field(False, description="Train on GPUs.")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPU cores reserved for each worker; null reserves one and uses its node's fair share."
    )
    max_failures: int = Field(3, ge=0, description="Deaths of workers or nodes after which the run ends.")

    @property
    def validates(self) -> bool:
        """Whether AP is measured while training."""
        return self.validate_every_steps is not None or self.validate_every_epochs is not None

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.max_steps is None and self.num_epochs is None:
            raise ValueError("train.max_steps and train.num_epochs are both null; at least one must say when to end")
        if self.validate_every_steps is not None and self.validate_every_epochs is not None:
            raise ValueError("train.validate_every_steps and train.validate_every_epochs are both set; give one")
        if self.early_stop_patience is not None and not self.validates:
            raise ValueError("train.early_stop_patience needs train.validate_every_steps, which is null")
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"train.milestones is {self.milestones}; allowed are rising steps from 1")
        return self


class TrainConfig(Section):
    """`maskfleet train`."""

    model: TrainModelSection = Field(default_factory=TrainModelSection)
    data: TrainDataSection
    train: TrainSection
    output: OutputSection
    storage: StorageSection = Field(default_factory=StorageSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)


# Settings that change how a run is carried out but not what is trained; a resumed run may differ in them. The number
# of workers is among them: a smaller cluster may finish what a larger one began, though not bit for bit.
NOT_IDENTITY = frozenset(
    {
        "output.uri",
        "cluster.address",
        "cluster.num_cpus",
        "cluster.num_gpus",
        "train.data_workers",
        "train.prefetch_batches",
        "train.channels_last",
        "train.compile",
        "train.max_non_finite_steps",
        "train.checkpoint_every_steps",
        "train.num_to_keep",
        "train.tensorboard",
        "train.validate_train_images",
        "train.log_every_steps",
        "train.num_workers",
        "train.min_workers",
        "train.use_gpu",
        "train.cpus_per_worker",
        "train.max_failures",
    }
)
