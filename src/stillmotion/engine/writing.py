"""Latents to a file: frames are decoded in fixed chunks, and each chunk is encoded while the next decodes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from stillmotion.engine.codec import Codec
from stillmotion.engine.first_frame import not_finite
from stillmotion.engine.pictures import cut_bytes, to_bytes
from stillmotion.profiles import Size
from stillmotion.reporting import Report


def decoded_chunks(
    codec: Codec, latents: Tensor, chunk: int, report: Report | None = None
) -> Iterator[Tensor]:
    """Decode latents (1, T, C, h, w) to uint8 chunks (n, 3, H, W); the chunk length changes the pixels.

    Frames that overflow the number format are decoded again in float32.
    """
    if not _is_finite(latents):
        raise not_finite("The film")
    for first in range(0, latents.shape[1], chunk):
        part = latents[0, first : first + chunk]
        frames = codec.decode(part)
        if not _is_finite(frames):
            if report is not None:
                report.log(f"frames {first + 1} to {first + len(part)} overflowed, decoding them in float32")
            frames = codec.decode_in_float32(part)
        if not _is_finite(frames):
            raise not_finite("The film")
        yield to_bytes(frames)


def _is_finite(tensor: Tensor) -> bool:
    # One pass; `isfinite` of all takes five, 4 ms a chunk of the pocket films on a CPU.
    return all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))


def write_film(
    codec: Codec,
    latents: Tensor,
    *,
    path: Path,
    size: Size,
    fps: int,
    chunk: int,
    threads: int,
    report: Report,
) -> Callable[[], float]:
    """Decode a film and have its frames written to an MP4 by another thread.

    Call what is returned, once and from any thread, to wait for the whole file and learn the seconds after
    the last decoded frame. It needs no device.
    """
    from stillmotion.video import VideoWriter  # PyAV is not on every machine that samples

    total, done = latents.shape[1], 0
    with ExitStack() as unfinished:
        writer = unfinished.enter_context(VideoWriter(path, *size, fps, threads))
        encoder = unfinished.enter_context(ThreadPoolExecutor(1, "h264"))
        written: list[Future[None]] = []

        def write(part: Tensor) -> None:
            writer.write(cut_bytes(part, size))

        for frames in decoded_chunks(codec, latents, chunk, report):
            written.append(encoder.submit(write, frames))
            done += len(frames)
            report.progress("decode", done, total)
            report.check_cancelled()
        decoded, rest = time.perf_counter(), unfinished.pop_all()

    def close() -> float:
        with rest:
            for part in written:
                part.result()
        return time.perf_counter() - decoded

    return close
