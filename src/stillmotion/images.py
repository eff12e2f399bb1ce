"""Input pictures: from bytes a stranger sent to an upright RGB PNG the runner may open.

Promises: the first bytes decide the format, never a name or header; size and pixel limits hold before
anything is decoded; whatever is wrong with the bytes ends as InputRefused, without `field` (the caller
knows which one it was); what comes out carries no metadata.
"""

import base64
import binascii
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stillmotion.errors import InputRefused

#: Shortest side in pixels; a smaller picture has nothing to animate.
MIN_SIDE = 8
#: Longest side over shortest: beyond it, filling a film's frame would blow a strip up without bound.
MAX_ASPECT = 32
#: A progressive JPEG decodes all its pixels once per scan; cameras write about ten.
MAX_SCANS = 500
#: Opened by class: `Image.open` would offer the bytes to every decoder Pillow has.
DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "png": PngImageFile,
    "jpeg": JpegImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
}
#: What Pillow's decoders raise on damaged bytes.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
#: EXIF orientation (tag 0x0112) to the turn that makes the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture's header says."""

    width: int
    height: int
    #: png, jpeg, webp or gif.
    format: str


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """Take the bytes out of `data:image/…;base64,…`; refuses an oversize one before decoding it."""
    head, comma, payload = uri.partition(",")
    if head[:5].lower() != "data:" or not comma:
        raise _unreadable("The data URI has no comma between its header and its data.")
    media_type, *parameters = head[5:].split(";")
    if not parameters or parameters[-1].strip().lower() != "base64":
        raise _unreadable("The data URI is not base64-encoded; write it as data:image/png;base64,….")
    # Clients that cannot tell a file's type send octet-stream; the first bytes decide anyway.
    if not media_type.lower().startswith("image/") and media_type.lower() != "application/octet-stream":
        raise _unreadable(
            f"The data URI says it is {media_type[:60]!r}; an image type such as image/png is needed."
        )
    if len(payload) > 4 * math.ceil(max_bytes / 3):
        raise _too_many_bytes(max_bytes)
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unreadable("The data URI's base64 is damaged: wrong characters or missing padding.") from error
    if len(data) > max_bytes:
        raise _too_many_bytes(max_bytes)
    return data


def check_picture(data: bytes, *, max_pixels: int, max_bytes: int) -> Picture:
    """Read the header alone and hold it against the limits; cheap."""
    if len(data) > max_bytes:
        raise _too_many_bytes(max_bytes)
    return _open(data, max_pixels)[0]


def prepare_picture(data: bytes, target: Path, *, max_pixels: int) -> tuple[int, int]:
    """Decode the first frame, turn it upright, lay it on white and write an RGB PNG.

    Returns width and height of what was written. Needs about 8 bytes of memory per pixel.
    """
    _, image = _open(data, max_pixels)
    try:
        image.load()
        upright = _to_rgb(image)
        turn = TURNS.get(_orientation(image))
        if turn is not None:
            upright = upright.transpose(turn)
    except DECODE_ERRORS as error:
        raise _unreadable("The picture is damaged or cut short.") from error
    upright.info.clear()
    # Read once and thrown away: speed counts, size does not.
    upright.save(target, "PNG", compress_level=1)
    return upright.size


def _open(data: bytes, max_pixels: int) -> tuple[Picture, ImageFile.ImageFile]:
    kind = _kind(data)
    if kind is None:
        raise InputRefused(
            f"The file is not a picture this server reads. Allowed: {', '.join(DECODERS)}.",
            kind="unsupported_image_format",
            context={"supported_formats": list(DECODERS)},
        )
    if kind == "webp":
        # Its decoder allocates the canvas on opening, so its size is read by hand first.
        _check_size(*_webp_size(data), max_pixels)
    if kind == "jpeg" and data.count(b"\xff\xda") > MAX_SCANS:
        raise _unreadable(f"The JPEG has more than {MAX_SCANS} scans.")
    try:
        image = DECODERS[kind](io.BytesIO(data))
    except DECODE_ERRORS as error:
        raise _unreadable("The picture's header is damaged or cut short.") from error
    width, height = image.size
    _check_size(width, height, max_pixels)
    return Picture(width, height, kind), image


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return None


def _webp_size(data: bytes) -> tuple[int, int]:
    # https://developers.google.com/speed/webp/docs/riff_container and RFC 6386 section 9.1
    if len(data) < 30:
        raise _unreadable("The picture's header is damaged or cut short.")
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        side = math.isqrt(max_pixels)
        raise InputRefused(
            f"The picture is {width}x{height}, {width * height:,} pixels; at most {max_pixels:,} are "
            f"allowed, such as {side}x{side}.",
            kind="image_too_large",
            context={"max_height": side, "max_width": side},
        )
    shortest = max(MIN_SIDE, math.ceil(max(width, height) / MAX_ASPECT))
    if min(width, height) < shortest:
        raise InputRefused(
            f"The picture is {width}x{height}; each side must be at least {MIN_SIDE} pixels and at least "
            f"1/{MAX_ASPECT} of the other.",
            kind="image_too_small",
            context={"min_height": shortest, "min_width": shortest},
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except DECODE_ERRORS:
        # Viewers show a picture with broken EXIF as it lies.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: `convert` would clip at 255 instead of scaling.
        grey = np.asarray(image, dtype=np.float64) / 257
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _unreadable(message: str) -> InputRefused:
    return InputRefused(message, kind="image_load_error")


def _too_many_bytes(max_bytes: int) -> InputRefused:
    return InputRefused(
        f"The picture is larger than the {max_bytes:,} bytes allowed. Send a smaller one.",
        kind="file_too_large",
        context={"max_size": max_bytes},
    )
