"""Settings of `maskfleet train`: model, data, augmentation, optimisation, validation and workers."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jobs.config.base import INCOMPLETE, ClusterSection, OutputSection, Section, field_of
from model.presets import preset
from model.spec import ModelSpec
from pipeline.dataset.source import AnnotationFormat, AnnotationSource, UnknownCategories
from pipeline.dataset.transforms.settings import Augmentation
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import Uri


class TrainModelSection(Section):
    """Which network is trained, and from which weights."""

    preset: str | None = Field(
        None,
        description="Published network whose settings are the defaults of spec: a name of torchvision's, such as "
        "maskrcnn_resnet50_fpn_v2, or of detectron2's model zoo, such as mask_rcnn_R_50_FPN_3x.",
    )
    spec: ModelSpec = Field(
        default_factory=ModelSpec,
        description="Architecture of the network; num_classes 0 takes the number of classes in the training data.",
    )
    weights: Uri | None = Field(
        None,
        description="Weights to start from: 'coco' or 'imagenet' (torchvision's), or a file of weights, local or in a "
        "bucket; null starts from random weights.",
    )
    checkpoint: Uri | None = Field(
        None,
        description="Checkpoint folder or training output to fine-tune from; tensors that fit by name and shape are "
        "taken.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        spec = values.get("spec") or {}
        overrides = spec.to_dict() if isinstance(spec, ModelSpec) else spec
        return {**values, "spec": {**preset(str(values["preset"])).to_dict(), "num_classes": 0, **overrides}}

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.weights is not None and self.checkpoint is not None:
            raise ValueError("model.weights and model.checkpoint both name a start; give at most one of them")
        return self


class TrainDataSection(Section):
    """Which annotated images are trained and validated on, under which classes."""

    train: Uri = Field(
        min_length=1,
        description="Training set: annotations of any format, a file or the folder they lie in; see format.",
    )
    val: Uri | None = Field(None, description="Validation set, given like train; null is none.")
    format: AnnotationFormat = field_of(AnnotationSource, "format")
    default_category: str = field_of(AnnotationSource, "default_category")
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Names of the classes to train, in this order; null takes all of the training set.",
    )
    rename: dict[str, str] = Field(
        default_factory=dict, description="New name for a category, by the name in the data; several may get the same."
    )
    unknown_categories: UnknownCategories = Field(
        "refuse",
        description="Objects of a category that is not declared, or not among the classes: 'refuse' the set, 'ignore' "
        "them (neither positive nor negative), or 'drop' them (they become background).",
    )
    image_root: Uri | None = Field(
        None, description="Folder of the training images; null looks beside the annotations."
    )
    val_image_root: Uri | None = Field(
        None, description="Folder of the validation images; null looks beside their annotations."
    )
    num_images: int | None = Field(
        None,
        ge=1,
        description="Train on a random subset of this many images, drawn by train.seed; smaller subsets lie within "
        "larger ones. Null takes all.",
    )
    extra_channels: Uri | None = Field(
        None,
        description="Pattern of a second file for each image with its further channels, such as "
        "{folder}/../depth/{stem}.png, for model.spec.in_channels above 3; null where the images' own files hold all "
        "channels.",
    )
    augment: Augmentation = Field(default_factory=Augmentation)
    copy_paste: float = Field(
        0.0, ge=0, le=1, description="Probability that objects of another training image are pasted onto an image."
    )


class TrainSection(Section):
    """How long, with which optimisation, on which workers it is trained, and what is kept."""

    # -- how long
    max_steps: int | None = Field(
        None, ge=1, description="Steps to train; training ends at the earlier of this and num_epochs."
    )
    num_epochs: float | None = Field(
        None, gt=0, description="Passes over the training set after which training ends; may be a fraction."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the weights, the order of images and every random choice."
    )

    # -- the batch
    batch_size: int = Field(2, ge=1, le=1024, description="Images of one forward pass on one worker.")
    accumulate_steps: int = Field(
        1, ge=1, le=1024, description="Forward passes whose gradients are accumulated into one step."
    )
    data_workers: int = Field(
        2,
        ge=0,
        le=256,
        description="Processes of each worker that read and augment images; 0 does it in the training loop, which "
        "waits.",
    )
    group_aspect_ratios: bool = Field(
        True, description="Put upright and wide images into different steps where possible, which saves padding."
    )
    prefetch_batches: int = Field(4, ge=1, le=256, description="Steps whose images are prepared ahead, on each worker.")

    # -- the optimizer
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimizer.")
    learning_rate: float = Field(0.02, gt=0, le=100, description="Learning rate after the warm-up.")
    reference_batch_size: int | None = Field(
        None,
        ge=1,
        description="Images per step that learning_rate is meant for; the rate is scaled linearly to the actual "
        "number. Null does not scale.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Weight decay.")
    norm_weight_decay: float | None = Field(
        None, ge=0, le=1, description="Weight decay of normalisation layers; null takes weight_decay."
    )
    clip_norm: float | None = Field(
        None, gt=0, description="L2 norm to which larger gradients are clipped; null does not clip."
    )

    # -- the learning rate over time
    schedule: Literal["constant", "cosine", "multistep"] = Field("multistep", description="Learning rate schedule.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    warmup_factor: float = Field(
        0.001, ge=0, le=1, description="Fraction of the learning rate at which the warm-up starts."
    )
    milestones: tuple[int, ...] = Field((), description="Steps at which 'multistep' multiplies the rate by gamma.")
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of the rate at each of the milestones.")
    final_factor: float = Field(0.0, ge=0, le=1, description="Fraction of the learning rate at which 'cosine' ends.")

    # -- numbers
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Arithmetic of the forward pass; float16 uses gradient scaling."
    )
    channels_last: bool = Field(
        False, description="Keep convolution weights and images in channels-last memory format."
    )
    compile: bool = Field(False, description="Compile the backbone with torch.compile.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, which is then saved as the model; null is "
        "none.",
    )
    global_normalisers: bool = Field(
        True,
        description="Divide each loss by its count over all workers, so that gradients do not depend on how images "
        "are split over workers; false averages the workers' own losses, as torchvision does.",
    )
    max_non_finite_steps: int = Field(
        5,
        ge=0,
        description="Steps with a loss or gradient that is not finite that are skipped; one more ends the training.",
    )

    # -- what is kept
    checkpoint_every_steps: int = Field(1000, ge=1, description="Steps between checkpoints; the last step has one too.")
    num_to_keep: int | None = Field(
        3, ge=1, description="Number of newest checkpoints that are kept; null keeps all. The best one is always kept."
    )
    log_every_steps: int = Field(
        20, ge=1, description="Most steps in one row of metrics.parquet; a checkpoint ends a row too."
    )
    tensorboard: bool = Field(True, description="Write a TensorBoard log beside the metrics.")

    # -- validation
    validate_every_steps: int | None = Field(
        None, ge=1, description="Steps between validations on data.val, each with a checkpoint; null is never."
    )
    validate_every_epochs: float | None = Field(
        None, gt=0, description="Passes over the training set between validations; give at most one of the two."
    )
    validate_train_images: int = Field(
        0, ge=0, description="Number of training images on which AP is measured too, as train_segm_AP; 0 is none."
    )
    early_stop_patience: int | None = Field(
        None, ge=1, description="Validations without a better segm AP after which training ends; null never ends early."
    )

    # -- the workers
    num_workers: int = Field(
        1, ge=1, le=4096, description="Training processes; with use_gpu, each has a GPU of its own."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Least number of workers to go on with when nodes are lost; null always waits for num_workers.",
    )
    use_gpu: bool = Field(False, description="Train on GPUs.")
    cpus_per_worker: int | None = Field(
        None,
        ge=1,
        description="CPU cores reserved for each worker; null reserves one and uses a fair share of the node's.",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="Times that the workers are started again after one of them, or a node, was lost; one more ends "
        "the training.",
    )

    @property
    def validates(self) -> bool:
        """Whether AP is measured during the training."""
        return self.validate_every_steps is not None or self.validate_every_epochs is not None

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.max_steps is None and self.num_epochs is None:
            reason = "train.max_steps and train.num_epochs are both null; at least one must say when to end"
            raise PydanticCustomError(INCOMPLETE, reason)
        if self.validate_every_steps is not None and self.validate_every_epochs is not None:
            raise ValueError("train.validate_every_steps and train.validate_every_epochs are both set; give one")
        if self.early_stop_patience is not None and not self.validates:
            raise ValueError("train.early_stop_patience needs train.validate_every_steps, which is null")
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"train.milestones is {self.milestones}; allowed are rising steps from 1")
        return self


class TrainConfig(Section):
    """All settings of `maskfleet train`."""

    model: TrainModelSection = Field(default_factory=TrainModelSection)
    data: TrainDataSection
    train: TrainSection
    output: OutputSection
    storage: StorageSettings = Field(default_factory=StorageSettings)
    cluster: ClusterSection = Field(default_factory=ClusterSection)


# Settings that change how a training is carried out but not what is trained; a resumed training may differ in them. The
# number of workers is among them: a smaller cluster may finish what a larger one began, though not bit for bit.
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
