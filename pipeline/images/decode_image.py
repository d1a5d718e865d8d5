"""Image decoder: one file's bytes to an upright RGB picture or float bands, or to a status with its reason.

Decodes with Pillow; docs/formats.md says what comes out of each format. It runs inside a decode child
(`decode_child.py`), where a crash or a hang costs one image; other code decodes through
`pipeline.images.decode_pool.DecodePool`.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

# Pillow would import all of its forty plugins if these were not imported here.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline.images.damage import check_readable, load_whole
from pipeline.images.pixels import SIDEWAYS, TURNS, Unsupported, orientation_of, to_bands, to_rgb, turn
from pipeline.settings import Settings, setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Format = Literal["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "HEIC"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""Every format that `sniff_format` can name."""

DEFAULT_FORMATS: tuple[Format, ...] = tuple(name for name in FORMATS if name != "HEIC")
"""The default allow-list: those that need no optional package."""

_HOW_TO_READ_HEIC = "HEIC is read with `pip install 'maskfleet[heif]'` and HEIC in decode.formats"
# What Pillow's readers say of a file that may be whole.
_UNSUPPORTED = re.compile("unsupported|not supported|unknown pixel mode|cannot handle", re.IGNORECASE)

STATUSES = ("ok", "too_large", "unsupported_format", "corrupt", "decoder_crashed", "timeout")
"""Every status that decoding can end with; `pipeline.schema.STATUSES` says what they mean."""


@dataclass(frozen=True, kw_only=True)
class DecodeLimits(Settings):
    """Limits of image decoding; an image beyond one of them gets a status other than ok and affects no other image.

    `too_large` is a file of more than `max_bytes`, `max_pixels` or `max_frames` (as its header states them, before
    anything is decoded), or one that needs more memory. `timeout` is more than `timeout_s` of processor time, or four
    times as long by the clock. Some formats take 32 bytes of memory a pixel.
    """

    max_bytes: int = setting(256 << 20, "Largest file that is read, in bytes.", ge=1)
    max_pixels: int = setting(100_000_000, "Largest image that is decoded, in pixels.", ge=1)
    max_frames: int = setting(10_000, "Most frames of an animation; only the first is used.", ge=1)
    timeout_s: float = setting(60.0, "Longest time for decoding one image, in seconds.", gt=0)
    memory_bytes: int = setting(4 << 30, "Memory limit of one decoding process, in bytes.", ge=2**26)
    formats: tuple[Format, ...] = setting(
        DEFAULT_FORMATS,
        "Formats that are decoded; a file's format is recognised by content, not by name.",
        min_length=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "formats", tuple(self.formats))
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"formats has {unknown[0]!r}; allowed are {', '.join(FORMATS)}")


@dataclass(frozen=True)
class Outcome:
    """The result of decoding one file: pixels, or a status and a reason.

    Attributes:
        status: one of `STATUSES`; "ok" exactly when there is a picture or bands.
        error: the reason in words, None when ok. The same bytes give the same words.
        picture: the upright picture, mode RGB, where three channels were asked for; else None.
        height, width: of the upright original in pixels, also when the decoded picture is a smaller version of it;
            None where the file does not tell.
        exif_orientation: 1..8 as the file states it, None where it states none.
        out_of_memory: whether the process ran into its memory limit. A process that has decoded fewer files may not.
        bands: float32 [H, W, C], upright, where another number of channels was asked for; else None.
    """

    status: str
    error: str | None = None
    picture: Image.Image | None = None
    height: int | None = None
    width: int | None = None
    exif_orientation: int | None = None
    out_of_memory: bool = False
    bands: NDArray[np.float32] | None = None


def sniff_format(data: bytes) -> str | None:
    """The format that a file's first bytes announce, one of `FORMATS`; None for anything else."""
    if data[:2] == b"\xff\xd8":
        return "JPEG"
    if data[:4] == b"\x89PNG":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:4] == b"GIF8":
        return "GIF"
    if data[:4] == b"\xff\x4f\xff\x51" or data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":
        return "JPEG2000"
    if data[4:8] == b"ftyp":  # HEIC pictures live in the same container as AVIF; the brands tell them apart.
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12]} | {data[i : i + 4] for i in range(16, end, 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIC" if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} else None
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if re.match(rb"P[1-6fFy][\s#]", data[:3]):
        return "PPM"
    return None


def decode_image(
    data: bytes, limits: DecodeLimits, resize_to: tuple[int, int] | None = None, num_bands: int | None = 3
) -> Outcome:
    """Decodes the first frame of a file and turns it upright. Bad data is a status, never an exception.

    Args:
        data: the whole file.
        limits: pixels, frames and formats are checked here; `DecodePool` enforces bytes, time and memory.
        resize_to: short and long side in pixels that the caller will scale the picture to, keeping its proportions:
            until one of its sides reaches the given one. A JPEG may then come back at a half, a quarter or an eighth of
            its size, but never smaller than the caller needs.
        num_bands: 3 converts any picture to RGB. Any other number takes the file's own bands, of which there must be as
            many, except that 1 converts colours to grey. None takes all bands of the file.
    """
    if not data:
        return Outcome("corrupt", "the file is empty")
    name = sniff_format(data)
    if name is None:
        start = bytes(data[:8])
        return Outcome("unsupported_format", f"no known image format; the file starts with {start!r}")
    if name not in limits.formats:
        allowed = ", ".join(limits.formats)
        reason = _HOW_TO_READ_HEIC if name == "HEIC" else f"{name} is not among the formats allowed: {allowed}"
        return Outcome("unsupported_format", reason)
    if name == "HEIC":
        try:
            import pillow_heif  # late: an optional package
        except ImportError:
            return Outcome("unsupported_format", _HOW_TO_READ_HEIC)
        pillow_heif.options.DECODE_THREADS = 1
        pillow_heif.register_heif_opener()
        return _decode_with_pillow(data, "HEIF", limits, None, num_bands)
    if name == "TIFF":
        from pipeline.images.raster import pillow_shows

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            by_pillow = num_bands == 3 and pillow_shows(data)
        if not by_pillow:
            return _decode_tiff(data, limits, num_bands)
    return _decode_with_pillow(data, name, limits, resize_to, num_bands)


def _decode_tiff(data: bytes, limits: DecodeLimits, num_bands: int | None) -> Outcome:
    """A TIFF by `raster`'s reader; bands that it does not take by Pillow."""
    from pipeline.images.raster import (  # late: most decode children never need NumPy
        UnsupportedTiff,
        pillow_shows,
        read_tiff_bands,
        read_tiff_header,
        read_tiff_rgb,
    )

    height = width = orientation = None
    try:
        header = read_tiff_header(data)
        height, width, orientation = header.height, header.width, header.orientation
        if orientation in SIDEWAYS:
            height, width = width, height
        if height * width > limits.max_pixels:
            return _too_many_pixels(height, width, limits)
        if header.num_pages > limits.max_frames:
            return _too_many_frames(header.num_pages, height, width, limits)
        if num_bands == 3:
            picture = Image.fromarray(turn(read_tiff_rgb(data), orientation))
            return Outcome("ok", None, picture, height, width, orientation)
        bands = turn(read_tiff_bands(data, num_bands), orientation)
    except UnsupportedTiff as error:
        if num_bands == 3 or not pillow_shows(data):
            return Outcome("unsupported_format", _words(error), None, height, width, orientation)
        outcome = _decode_with_pillow(data, "TIFF", limits, None, num_bands)
        if outcome.error is None:
            return outcome
        # Without a size, Pillow cannot open it either.
        status = "unsupported_format" if outcome.height is None else outcome.status
        return replace(outcome, status=status, error=f"{outcome.error} ({error})")
    except Exception as error:
        return replace(_failure(error, limits), height=height, width=width, exif_orientation=orientation)
    return Outcome("ok", None, None, height, width, orientation, bands=bands)


def _decode_with_pillow(
    data: bytes, name: str, limits: DecodeLimits, resize_to: tuple[int, int] | None, num_bands: int | None
) -> Outcome:
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        Image.WARN_POSSIBLE_FORMATS = True  # makes Pillow give the plugin's own reason
        # `_decode_opened` checks the size, and can report it; but WebP's plugin allocates a canvas here already.
        Image.MAX_IMAGE_PIXELS = (limits.max_pixels + 1) // 2 if name == "WEBP" else None
        try:
            check_readable(data, name)
            image = Image.open(io.BytesIO(data), formats=[name])
        except UnidentifiedImageError:
            texts = [str(warning.message).partition(" opening failed. ")[2] for warning in reasons]
            reason = next(filter(None, texts), "broken header")
            return _failure(ValueError(reason), limits, f"not readable as {name}: ")
        except Exception as error:
            return _failure(error, limits, f"not readable as {name}: ")
        return _decode_opened(image, name, data, limits, resize_to, num_bands)


def _decode_opened(
    image: Image.Image,
    name: str,
    data: bytes,
    limits: DecodeLimits,
    resize_to: tuple[int, int] | None,
    num_bands: int | None,
) -> Outcome:
    width, height = image.size
    if width < 1 or height < 1:
        return Outcome("corrupt", f"the {name} is {height} x {width} pixels", None, height, width)
    if width * height > limits.max_pixels:
        return _too_many_pixels(height, width, limits)
    Image.MAX_IMAGE_PIXELS = limits.max_pixels  # for parts of the file that claim more pixels than its header
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    orientation = None
    try:
        num_frames = _count_frames(image)
        if num_frames > limits.max_frames:
            return _too_many_frames(num_frames, height, width, limits)
        turned = name in ("TIFF", "HEIF")  # by Pillow, in size and pixels
        orientation = image.info.get("original_orientation") if name == "HEIF" else orientation_of(image)
        if orientation in SIDEWAYS and not turned:
            height, width = width, height
        draft_size = None
        if resize_to is not None and name == "JPEG":
            scale = min(resize_to[0] / min(image.size), resize_to[1] / max(image.size))
            draft_size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
        image = load_whole(image, data, draft_size)
        pending_turn = None if turned else orientation
        if num_bands != 3:
            bands = turn(to_bands(image, num_bands), pending_turn)
            return Outcome("ok", None, None, height, width, orientation, bands=bands)
        picture = to_rgb(image, data)
        if pending_turn in TURNS:
            picture = picture.transpose(TURNS[pending_turn])
    except Exception as error:
        return replace(_failure(error, limits), height=height, width=width, exif_orientation=orientation)
    return Outcome("ok", None, picture, height, width, orientation)


def out_of_memory_error(limits: DecodeLimits) -> str:
    """The error text of a file that ran into `memory_bytes`."""
    return f"decoding needs more than {limits.memory_bytes} bytes of memory"


def _too_many_pixels(height: int, width: int, limits: DecodeLimits) -> Outcome:
    error = f"{height} x {width} pixels; at most {limits.max_pixels} are allowed"
    return Outcome("too_large", error, None, height, width)


def _too_many_frames(num_frames: int, height: int, width: int, limits: DecodeLimits) -> Outcome:
    error = f"{num_frames} frames; at most {limits.max_frames} are allowed"
    return Outcome("too_large", error, None, height, width)


def _failure(error: Exception, limits: DecodeLimits, prefix: str = "") -> Outcome:
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return Outcome("too_large", out_of_memory_error(limits), out_of_memory=True)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Outcome("too_large", _words(error))
    if isinstance(error, Unsupported):
        return Outcome("unsupported_format", _words(error))
    status = "unsupported_format" if _UNSUPPORTED.search(str(error)) else "corrupt"
    return Outcome(status, prefix + _words(error))


def _count_frames(image: Image.Image) -> int:
    """The number of frames or pages; 1 where the index of frames is broken."""
    try:
        num_frames = getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise anything on a broken index; the first frame may still be whole
        num_frames = 1
    image.seek(0)
    return num_frames


def _words(error: BaseException) -> str:
    """The text of an error, without the addresses and object names that change from run to run."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", str(error)).strip()
    return text or type(error).__name__
