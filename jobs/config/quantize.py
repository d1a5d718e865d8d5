"""Settings of `maskfleet quantize`: model, photos to calibrate with, validation set, most AP that it may cost."""

from __future__ import annotations

from pydantic import Field

from jobs.config.base import OutputSection, Section, field_of
from jobs.config.segment import ModelSection
from pipeline.dataset.source import AnnotationFormat, AnnotationSource, UnknownCategories
from pipeline.images.decode_pool import DecodeLimits
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import Uri


class QuantizeDataSection(Section):
    """Photos that the network is calibrated with, and the annotated ones that it is measured on."""

    calibration: Uri | tuple[Uri, ...] = Field(
        min_length=1,
        description="Photos such as the network will see, without annotations: a path, a URI, a folder (searched with "
        "all its subfolders), a pattern such as 'day1/*.jpg', or a list of these.",
    )
    val: Uri | None = Field(
        None, description="Annotated photos on which AP is measured before and after; null measures nothing."
    )
    format: AnnotationFormat = field_of(AnnotationSource, "format")
    default_category: str = field_of(AnnotationSource, "default_category")
    unknown_categories: UnknownCategories = Field(
        "refuse",
        description="Objects of val of a category that it does not declare or the model does not have: 'refuse' the "
        "set, 'ignore' them, or 'drop' them.",
    )
    val_image_root: Uri | None = Field(
        None, description="Folder of the validation images; null looks beside their annotations."
    )

    @property
    def calibration_places(self) -> tuple[str, ...]:
        """The places of data.calibration, one or several."""
        return (self.calibration,) if isinstance(self.calibration, str) else self.calibration


class QuantizeSection(Section):
    """How much is calibrated with, and what it may cost."""

    num_photos: int = Field(
        300, ge=1, le=10_000, description="Photos to calibrate with, spread evenly over those of data.calibration."
    )
    max_ap_drop: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Most points of AP (0 to 100) that int8 may cost on data.val, of boxes and of masks. Where it "
        "costs more, heads are left in float32; where that does not help, nothing is written and the exit code is 4.",
    )


class QuantizeConfig(Section):
    """All settings of `maskfleet quantize`."""

    model: ModelSection
    data: QuantizeDataSection
    quantize: QuantizeSection = Field(default_factory=QuantizeSection)
    output: OutputSection
    decode: DecodeLimits = Field(default_factory=DecodeLimits)
    storage: StorageSettings = Field(default_factory=StorageSettings)
