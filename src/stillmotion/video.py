"""Frames in, MP4 out, and back: H.264 in the form every browser plays.

Promises: the file appears at its path only when whole; N frames written are N frames read; frame k is
shown at k / fps; pixels are converted with the BT.709 matrix that the tags name; the index precedes the
data, so playback starts before the download ends. Equal frames and threads give equal bytes on every
CPU: the encoder's thread count is pinned, encoder and converter run bit-exact, no clock is written.

Relies on PyAV, NumPy and Pillow alone, so it runs on a bare GPU machine.
"""
# PyAV leaves type parameters open.
# pyright: reportUnknownMemberType=false

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from PIL import Image

from stillmotion.errors import StillmotionError

Frames = np.ndarray[Any, np.dtype[np.uint8]]

#: x264 constant quality: visually clean at these sizes; 0 is lossless, 51 worst.
CRF = 18
PRESET = "veryfast"
#: Frames x264 holds back to plan ahead; they are encoded after the last one came, while the client waits.
#: Beside the preset's 10: closing a film takes 22 ms instead of 81, its size and 48 dB stay within 1 %.
LOOKAHEAD = "2"
#: The macroblock tree in C. Its AVX-512 routine (core 165) reads past its rows: 2 of 1,000 films of 96x64
#: differed from their equals. The C one costs no time that can be measured here, and no CPU's own bytes.
#: Blocks that move are not split further: a fifth of the time for 1 % of the size, at no less PSNR.
X264_PARAMS = "cpu-independent=1:partitions=i8x8,i4x4"
#: One key frame a second of a 10 fps film, so that scrubbing is quick.
KEY_FRAME_EVERY = 12
SCALING = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
THUMB_WIDTH = 192
GAP = 4


class VideoWriter:
    """Encode RGB frames as they come; use it as a context manager so that an error leaves no file."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: int,
        threads: int = 1,
        *,
        crf: int = CRF,
        preset: str = PRESET,
    ) -> None:
        if width % 2 or height % 2 or width < 2 or height < 2:
            raise ValueError(f"H.264 in yuv420p needs even sides of at least 2, got {width}x{height}.")
        self.path = path
        self.frames = 0
        self._period = Fraction(1, fps)
        self._reformatter = VideoReformatter()
        self._partial = path.with_name(path.name + ".part")
        self._container = av.open(
            str(self._partial), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
        )
        stream = self._container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {
            "crf": str(crf),
            "preset": preset,
            "rc-lookahead": LOOKAHEAD,
            "x264-params": X264_PARAMS,
            "flags": "+bitexact",
        }
        context = stream.codec_context
        context.time_base = self._period
        context.thread_count = threads
        context.gop_size = KEY_FRAME_EVERY
        # Without B-frames decode order is display order: no edit list, no negative first timestamp.
        context.max_b_frames = 0
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        self._stream = stream

    def write(self, frames: Frames) -> None:
        """Append uint8 frames of shape (n, height, width, 3), scaled to the film's size."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(
                f"Frames must be uint8 (n, height, width, 3), got {frames.dtype} {frames.shape}."
            )
        for pixels in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            # Scaled and converted in one pass: 0.5 ms a frame from 512x288 to 1024x576, where two take 1.6.
            frame = self._reformatter.reformat(
                rgb,
                width=self._stream.width,
                height=self._stream.height,
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                src_colorspace=Colorspace.ITU709,
                dst_colorspace=Colorspace.ITU709,
                dst_color_primaries=ColorPrimaries.BT709,
                dst_color_trc=ColorTrc.BT709,
                interpolation=SCALING,
                threads=1,
            )
            frame.pts, frame.time_base, frame.duration = self.frames, self._period, 1
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Flush the encoder, write the index and move the file to its path."""
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._partial, self.path)
        except (OSError, FFmpegError):
            self.abort()
            raise

    def abort(self) -> None:
        """Drop what was written; the path stays untouched."""
        # The file is thrown away, so a trailer that cannot be written is no loss.
        with suppress(OSError, FFmpegError):
            self._container.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def read_frames(path: Path) -> Frames:
    """Decode every frame of a video to uint8 (T, H, W, 3) with the matrix its tags name."""
    reformatter = VideoReformatter()
    frames: list[Frames] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    dst_color_range=ColorRange.JPEG,
                    interpolation=SCALING,
                    threads=1,
                )
                frames.append(rgb.to_ndarray().astype(np.uint8, copy=False))
    except (OSError, FFmpegError, IndexError) as error:
        raise StillmotionError(f"{path} is not a video that can be read: {error}.") from error
    if not frames:
        raise StillmotionError(f"{path} holds no video frame.")
    return np.stack(frames)


def contact_sheet(paths: Sequence[Path], target: Path, columns: int = 5) -> None:
    """Write a PNG of the frames of each video, row after row, `columns` wide, one block per video."""
    films = [read_frames(path) for path in paths]
    width = THUMB_WIDTH
    heights = [round(width * film.shape[1] / film.shape[2]) for film in films]
    blocks = [
        math.ceil(len(film) / columns) * (height + GAP) for film, height in zip(films, heights, strict=True)
    ]
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, sum(blocks) + GAP * len(films)), "white")
    top = GAP
    for film, height, block in zip(films, heights, blocks, strict=True):
        for index, pixels in enumerate(film):
            row, column = divmod(index, columns)
            thumb = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(thumb, (GAP + column * (width + GAP), top + row * (height + GAP)))
        top += block + GAP
    sheet.save(target, "PNG", optimize=True)
