"""Pictures from strangers: every kind comes out as upright RGB, or with a clear refusal and little memory."""

import base64
import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stillmotion.errors import InputRefused
from stillmotion.images import check_picture, decode_data_uri, prepare_picture

METADATA_BOMB = zlib.compress(bytes(100_000_000))
PIXELS = 20_000_000
BYTES = 25_000_000
#: Pillow warns about metadata it skips.
PILLOW_MAY_WARN = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes((3 * min(width, 64) + 1) * min(height, 64))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


def prepared(data: bytes, folder: Path) -> np.ndarray:
    target = folder / "picture.png"
    size = prepare_picture(data, target, max_pixels=PIXELS)
    with Image.open(target) as image:
        assert (image.format, image.mode, image.size, image.info) == ("PNG", "RGB", size, {})
        return np.asarray(image)


def refusal(data: bytes, folder: Path) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        check_picture(data, max_pixels=PIXELS, max_bytes=BYTES)
        prepare_picture(data, folder / "picture.png", max_pixels=PIXELS)
    assert not (folder / "picture.png").exists()
    assert (caught.value.failure.status, caught.value.failure.field) == (422, None)
    return caught.value


RED = Image.new("RGB", (24, 16), (200, 30, 40))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_each_allowed_format_is_read(tmp_path: Path, format: str) -> None:
    data = encoded(RED, format)
    picture = check_picture(data, max_pixels=PIXELS, max_bytes=BYTES)
    assert (picture.width, picture.height, picture.format) == (24, 16, format.lower())
    assert np.abs(prepared(data, tmp_path).astype(int) - [200, 30, 40]).max() <= 6


def test_transparency_is_laid_on_white_in_every_mode(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    for image, options in (
        (layer, {}),
        (Image.new("LA", (16, 16), (0, 0)), {}),
        (palette, {"transparency": 0}),
        (Image.new("L", (16, 16), 7), {"transparency": 7}),
        (Image.new("RGB", (16, 16), (1, 2, 3)), {"transparency": (1, 2, 3)}),
    ):
        assert (prepared(encoded(image, "PNG", **options), tmp_path) == 255).all(), image.mode
    half = prepared(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 128)), "PNG"), tmp_path)
    assert np.abs(half[0, 0].astype(int) - [255, 127, 127]).max() <= 1


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None, :].repeat(8, axis=0)
    pixels = prepared(encoded(Image.fromarray(ramp), "PNG"), tmp_path)
    assert np.abs(pixels[0, :, 0].astype(int) - np.rint(ramp[0] / 257)).max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 255), ("P", 0)])
def test_grey_and_palette_pictures_become_rgb(tmp_path: Path, mode: str, colour: int) -> None:
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([255, 255, 255])
    assert (prepared(encoded(image, "PNG"), tmp_path) == 255).all()


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    pixels = prepared(encoded(RED.convert("CMYK"), "JPEG", quality=95), tmp_path)
    assert np.abs(pixels.astype(int) - [200, 30, 40]).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(tmp_path: Path, orientation: int, format: str) -> None:
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # white top left
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = prepared(encoded(stored, format, exif=exif, quality=95), tmp_path)
    assert pixels.shape == (32, 64, 3)
    assert np.abs(pixels[2:14, 2:30].astype(int) - 255).max() < 12
    assert pixels[18:, :].max() < 12


@PILLOW_MAY_WARN
def test_broken_exif_leaves_the_picture_as_it_lies(tmp_path: Path) -> None:
    data = encoded(RED, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert prepared(data, tmp_path).shape == (16, 24, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(tmp_path: Path, format: str) -> None:
    later = [Image.new("RGB", (24, 16), "blue"), Image.new("RGB", (24, 16), "lime")]
    data = encoded(RED, format, save_all=True, append_images=later, duration=50)
    assert np.abs(prepared(data, tmp_path).astype(int) - [200, 30, 40]).max() <= 6


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (1, 65535), (8, 300)])
def test_tiny_pictures_and_strips_are_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    failure = refusal(encoded(Image.new("RGB", size), "PNG"), tmp_path).failure
    assert failure.kind == "image_too_small"
    assert failure.context["min_height"] == failure.context["min_width"] >= 8


def webp_claiming(width: int, height: int) -> bytes:
    data = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    data += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data


@pytest.mark.parametrize(
    "data",
    [
        png_claiming(50_000, 50_000),
        png_claiming(4473, 4473),
        webp_claiming(16_383, 16_383),
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
    ],
    ids=["png bomb", "just over", "webp canvas", "gif canvas"],
)
def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failure = refusal(data, tmp_path).failure
    assert failure.kind == "image_too_large"
    assert failure.context == {"max_height": 4472, "max_width": 4472}
    assert "20,000,000" in failure.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_metadata_bombs_take_no_memory(tmp_path: Path, name: bytes) -> None:
    head = b"x\0\1\0\0\0" if name == b"iTXt" else b"x\0\0"
    data = png_claiming(64, 64, chunk(name, head + METADATA_BOMB))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert prepared(data, tmp_path).shape == (64, 64, 3)
    except InputRefused as refused:
        assert refused.failure.kind == "image_load_error"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_cut_short_pictures_are_damaged(tmp_path: Path, format: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format)
    assert refusal(data[: int(len(data) * part)], tmp_path).failure.kind == "image_load_error"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
        b"<!doctype html><title>picture.png</title>",
        b"%PDF-1.7",
        encoded(RED, "BMP"),
        encoded(RED, "TIFF"),
    ],
    ids=["empty", "svg", "html", "pdf", "bmp", "tiff"],
)
def test_other_content_is_an_unsupported_format(tmp_path: Path, data: bytes) -> None:
    failure = refusal(data, tmp_path).failure
    assert failure.kind == "unsupported_image_format"
    assert failure.context["supported_formats"] == ["png", "jpeg", "webp", "gif"]
    assert "png, jpeg, webp, gif" in failure.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_d06_what_else_a_picture_is_stays_behind(tmp_path: Path, kind: str) -> None:
    script = b"<script>alert(1)</script>" + b"PK\x03\x04" + b"#!/bin/sh\n"
    profile = {} if kind == "GIF" else {"icc_profile": b"a profile"}
    prepare_picture(encoded(RED, kind, **profile) + script, tmp_path / "out.png", max_pixels=10**6)
    made = (tmp_path / "out.png").read_bytes()
    assert made.startswith(b"\x89PNG") and made.endswith(b"IEND\xaeB`\x82")
    assert b"script" not in made and b"PK" not in made and b"iCCP" not in made


def test_jpeg_with_thousands_of_scans_is_refused_unread(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xda")
    assert refusal(data[:end] + data[end:-2] * 600 + b"\xff\xd9", tmp_path).failure.kind == "image_load_error"


def test_bytes_over_the_limit_are_refused_before_reading() -> None:
    with pytest.raises(InputRefused) as caught:
        check_picture(bytes(2000), max_pixels=PIXELS, max_bytes=1999)
    assert caught.value.failure.kind == "file_too_large"
    assert caught.value.failure.context == {"max_size": 1999}


@PILLOW_MAY_WARN
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
    content = bytearray(encoded(noise, format, exif=exif, save_all=format != "JPEG"))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    target = tmp_path_factory.getbasetemp() / "fuzz.png"
    try:
        prepare_picture(bytes(content), target, max_pixels=1_000_000)
    except InputRefused as refused:
        assert refused.failure.kind in {
            "image_load_error", "image_too_large", "image_too_small", "unsupported_image_format",
        }  # fmt: skip


def test_data_uri_gives_its_bytes() -> None:
    text = base64.b64encode(b"\x89PNG data").decode()
    for head in ("data:image/png", "DATA:image/x;charset=utf-8", "data:application/octet-stream"):
        assert decode_data_uri(f"{head};base64,{text}", 100) == b"\x89PNG data"


@pytest.mark.parametrize(
    ("uri", "kind", "words"),
    [
        ("data:image/png;base64", "image_load_error", "no comma"),
        ("image/png;base64,AAAA", "image_load_error", "no comma"),
        ("data:image/png,%89PNG", "image_load_error", "not base64"),
        ("data:text/html;base64,AAAA", "image_load_error", "text/html"),
        ("data:;base64,AAAA", "image_load_error", "image type"),
        ("data:image/png;base64,AA A", "image_load_error", "damaged"),
        ("data:image/png;base64,AAA", "image_load_error", "damaged"),
        ("data:image/png;base64,AAA_", "image_load_error", "damaged"),
        ("data:image/png;base64,AAé=", "image_load_error", "damaged"),
        # Refused by length alone: decoding would have met the wrong characters.
        ("data:image/png;base64," + "!" * 400, "file_too_large", "100 bytes"),
        ("data:image/png;base64," + base64.b64encode(bytes(101)).decode(), "file_too_large", "100 bytes"),
        ("data:image/png;base64," + "A" * 200_000_000, "file_too_large", "100 bytes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_bad_data_uris_say_what_is_wrong(uri: str, kind: str, words: str) -> None:
    with pytest.raises(InputRefused, match=words) as caught:
        decode_data_uri(uri, 100)
    assert caught.value.failure.kind == kind
