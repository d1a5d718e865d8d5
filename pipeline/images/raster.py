"""TIFF reader for what Pillow does not open or shows wrongly, such as many bands or 16 bits; with tifffile."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.images.pixels import Unsupported, WrongBands, is_mask, over_white, to_8_bits, to_bands, to_unit

if TYPE_CHECKING:
    import tifffile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is told by exceptions

_ORIENTATION, _MAX_BANDS = 274, 1024
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
# Palette, YCbCr, CIE Lab: the stored numbers have to be converted to colour first.
_CODED = (3, 6, 8)
# None, the fax codes, LZW, JPEG, deflate, PackBits, LZMA, Zstandard.
_PILLOWS_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)
_PREMULTIPLIED, _ALPHA = 1, 2


class UnsupportedTiff(Unsupported):
    """A TIFF of a kind that this reader does not take; the message names the kind."""


def is_tiff(data: bytes) -> bool:
    """Whether a file's first bytes are those of a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class TiffHeader:
    """The size in pixels as stored (before any turn), EXIF orientation 1..8 or None, and the number of pages."""

    height: int
    width: int
    orientation: int | None
    num_pages: int


def read_tiff_header(data: bytes) -> TiffHeader:
    """Size and orientation of the first page, and the number of pages; no pixels are read.

    Raises:
        ValueError: a broken file.
    """
    try:
        with _open(data) as file:
            page, num_pages = _first(file), len(file.pages)
            orientation = page.tags.valueof(_ORIENTATION, default=0)
    except MemoryError:
        raise
    except Exception as error:  # broken files raise many kinds of errors
        raise _broken(error) from None
    known = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else None
    return TiffHeader(page.imagelength, page.imagewidth, known, num_pages)


def read_tiff(data: bytes) -> NDArray[Any]:
    """The bands of a TIFF as stored: [H, W, C] of the file's own number type, in native byte order.

    Whole numbers of 9 to 15 bits fill the high bits of 16. Where 0 is white, it becomes the largest number. Pages
    of the same size as the first one, directly after it, count as further bands, since some programs write one page
    for each band.

    Raises:
        UnsupportedTiff: a number type other than integers of 8 to 16 or 32 bits and floats of 16, 32 or 64 bits; coded
            colours (such as a palette or YCbCr); a compression that is not known.
        ValueError: a broken file.
    """
    pages: list[NDArray[Any]] = []
    try:
        with _open(data) as file:
            for page in _pages(file):
                if pages and (page.imagelength, page.imagewidth) != pages[0].shape[:2]:
                    break
                if page.photometric in _CODED:
                    raise UnsupportedTiff(f"photometric interpretation {int(page.photometric)}")
                samples = _samples(page)
                if page.photometric == _WHITE_IS_ZERO:
                    if samples.dtype.kind != "u":
                        raise UnsupportedTiff(f"samples of {samples.dtype} of which 0 is white, and no number is black")
                    samples = np.iinfo(samples.dtype).max - samples
                pages.append(samples)
    except (UnsupportedTiff, MemoryError):
        raise
    except Exception as error:  # broken files raise many kinds of errors: missing tags, short strips, bad zlib streams
        raise _broken(error) from None
    if not pages:
        raise ValueError("not readable as TIFF: it has no page")
    if any(page.dtype != pages[0].dtype for page in pages):
        raise UnsupportedTiff("pages of different number types")
    return pages[0] if len(pages) == 1 else np.concatenate(pages, axis=2)


def read_tiff_bands(data: bytes, num_bands: int | None) -> NDArray[np.float32]:
    """The bands of a TIFF as float32 [H, W, C], scaled by `pipeline.images.pixels.to_unit`.

    Args:
        data: the whole file.
        num_bands: the C there must be; None allows any.

    Raises:
        UnsupportedTiff: as `read_tiff`; also where one band is wanted of several that Pillow can convert to grey.
        WrongBands: the file has another number of bands.
        ValueError: a broken file.
    """
    samples = read_tiff(data)
    if num_bands == 1 and samples.shape[2] > 1:
        if pillow_shows(data):
            raise UnsupportedTiff(f"it has {samples.shape[2]} bands; 1 is wanted")
        return to_bands(Image.fromarray(read_tiff_rgb(data)), 1)
    return to_unit(samples, num_bands)


def pillow_shows(data: bytes) -> bool:
    """Whether Pillow shows the colours of a TIFF's first page as its tags mean them.

    It does for samples of up to 8 bits, unless they are premultiplied with alpha or in a compression unknown to it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as picture:
            tags = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
            return (
                max(tags.get(258, (1,))) <= 8
                and tags.get(259, 1) in _PILLOWS_COMPRESSIONS
                and _PREMULTIPLIED not in tags.get(338, ())
            )
    except MemoryError:
        raise
    except Exception:  # Pillow's reader raises anything on what it does not know
        return False


def read_tiff_rgb(data: bytes) -> NDArray[np.uint8]:
    """The first page as RGB [H, W, 3], not turned: grey, RGB or CMYK of any number type, with or without alpha.

    Samples become 8 bits by `pipeline.images.pixels.to_8_bits`. Transparent pixels are blended over white, where the
    band that is tagged as alpha is a mask (`pipeline.images.pixels.is_mask`).

    Raises:
        UnsupportedTiff: as `read_tiff`; also other colours.
        WrongBands: neither grey nor three bands, nor these with alpha.
        ValueError: a broken file.
    """
    try:
        with _open(data) as file:
            page = _first(file)
            photometric, extra = int(page.photometric), tuple(map(int, page.extrasamples))
            # tifffile converts YCbCr in JPEG to RGB.
            photometric = _RGB if photometric == 6 and page.compression in (7, 50001) else photometric
            if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK):
                raise UnsupportedTiff(f"photometric interpretation {photometric} of {page.bitspersample} bits a sample")
            samples = _samples(page)
    except (UnsupportedTiff, MemoryError):
        raise
    except Exception as error:
        raise _broken(error) from None
    count = samples.shape[2]
    is_named = photometric in (_RGB, _CMYK)  # further bands than these colours are left out
    if is_named:
        num_colours = 4 if photometric == _CMYK else 3
    else:
        num_colours = 1 if count == 1 or (count == 2 and extra and extra[0] in (_PREMULTIPLIED, _ALPHA)) else 3
    if count < num_colours or (count > num_colours == 3 and not is_named):
        raise WrongBands(f"it has {count} bands; 3 are wanted")
    colours = to_8_bits(samples[..., :num_colours])
    if photometric == _WHITE_IS_ZERO:
        colours = 255 - colours
    if photometric == _CMYK:
        colours = np.asarray(Image.fromarray(colours, "CMYK").convert("RGB"))
    colours = colours.repeat(3, axis=2) if num_colours == 1 else colours
    kind = extra[0] if extra and count > num_colours else 0
    if kind not in (_PREMULTIPLIED, _ALPHA):
        return colours
    alpha = Image.fromarray(to_8_bits(samples[..., num_colours], whole_range=True))
    if not is_mask(alpha):
        return colours
    if kind == _PREMULTIPLIED:
        white = 255 - np.asarray(alpha, np.uint16)[..., None]
        return (colours + white).clip(max=255).astype(np.uint8)
    return np.asarray(over_white(Image.fromarray(colours), alpha))


def _broken(error: Exception) -> ValueError:
    return ValueError(f"not readable as TIFF: {type(error).__name__}: {error}")


def _open(data: bytes) -> tifffile.TiffFile:
    import tifffile  # late: readers of annotations import this module and mostly open no TIFF

    return tifffile.TiffFile(io.BytesIO(data))


def _first(file: tifffile.TiffFile) -> tifffile.TiffPage:
    for page in _pages(file):
        return page
    raise ValueError("it has no page")


def _pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """The pages in turn, each with its own tags."""
    for index in range(len(file.pages)):
        page = cast("tifffile.TiffPage", file.pages[index])  # no TiffFrame: `useframes` is off
        if page.imagelength < 1 or page.imagewidth < 1:
            raise ValueError(f"a page of {page.imagelength} x {page.imagewidth} pixels")
        yield page


def _samples(page: tifffile.TiffPage) -> NDArray[Any]:
    """The bands of one page: [H, W, C] in native byte order; C last, however they are stored."""
    bits, count = page.bitspersample, page.samplesperpixel
    if page.imagedepth > 1:
        raise UnsupportedTiff(f"a volume of {page.imagedepth} slices")
    if count > _MAX_BANDS:
        raise UnsupportedTiff(f"{count} bands are more than {_MAX_BANDS}")
    kind = None if page.dtype is None else page.dtype.kind
    if kind not in ("u", "i", "f") or bits not in ((16, 32, 64) if kind == "f" else (32, *range(8, 17))):
        raise UnsupportedTiff(f"bands of {bits} bits in sample format {_number(page.sampleformat)}")
    if 0 in page.databytecounts or len(page.databytecounts) < np.prod(page.chunked):
        raise ValueError("a strip or tile is missing")
    try:
        samples = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # [planes, H, W, bands of a plane]
    # What tifffile says of a compression or predictor that it has no decoder for. Such a file is valid, only not read
    # here, and must not be called corrupt; faults of the data are other errors.
    except (NotImplementedError, KeyError) as error:
        raise UnsupportedTiff(f"compression {int(page.compression)}: {error}") from None
    except ValueError as error:
        if "not supported" in str(error) or "not valid" in str(error) or "unknown" in str(error).lower():
            raise UnsupportedTiff(f"compression {int(page.compression)}: {error}") from None
        raise
    samples = samples.transpose(1, 2, 0, 3).reshape(page.imagelength, page.imagewidth, count)
    if 8 < bits < 16:
        samples = samples << (16 - bits)
    return np.ascontiguousarray(samples)


def _number(value: Any) -> Any:
    return tuple(map(int, value)) if isinstance(value, tuple) else value if value is None else int(value)
