"""Frames written are frames read: count, rate, colours, bytes."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stillmotion import video
from stillmotion.errors import StillmotionError
from stillmotion.video import VideoWriter, contact_sheet, read_frames


def moving_frames(count: int = 25, height: int = 96, width: int = 160) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [
            np.stack(
                [(columns + 7 * k) % 256, (2 * rows + k) % 256, np.full_like(rows, 9 * k % 256)], axis=-1
            )
            for k in range(count)
        ]
    ).astype(np.uint8)


def write(path: Path, frames: np.ndarray, fps: int = 10, threads: int = 1) -> None:
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps, threads) as writer:
        writer.write(frames)


@pytest.mark.parametrize("fps", [1, 7, 10, 25, 100])
def test_file_has_exactly_the_frames_written_at_exactly_the_rate(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "film.mp4"
    write(path, moving_frames(25), fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.start_time) == (25, fps, 0)
        shown = [round(frame.time * fps, 6) for frame in container.decode(stream)]
        assert shown == list(range(25))
        assert container.duration == round(25 * 1_000_000 / fps)


def test_file_is_browser_ready_h264_with_its_index_first(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write(path, moving_frames(5))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 160, 96)
        # 1 = BT.709 for all three (ITU-T H.273); range 1 = limited ("tv")
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1


def test_a_still_film_has_a_key_frame_every_twelve_and_none_is_decoded_out_of_turn(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write(path, np.repeat(moving_frames(1), 25, axis=0))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24]


@pytest.mark.parametrize("threads", [1, 2])
def test_encoder_has_the_threads_it_was_given(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "film.mp4"
    write(path, moving_frames(1, 512, 512), threads=threads)
    # x264 writes its options into the film.
    assert f" threads={threads} ".encode() in path.read_bytes()


def test_the_encoder_ran_by_the_options_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write(path, moving_frames(3))
    # It passes over what it does not understand, and writes into the film what it ran by.
    ran_by = path.read_bytes().partition(b"options: ")[2].split(b"\0")[0].split()
    assert {b"rc_lookahead=2", b"analyse=0x3:0x3", b"bframes=0", b"keyint=12", b"crf=18.0"} <= set(ran_by)


def test_colours_survive_the_round_trip(tmp_path: Path) -> None:
    colours = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
        (0, 0, 0),
        (128, 128, 128),
        (200, 100, 50),
    ]
    frames = np.zeros((len(colours), 64, 64, 3), np.uint8)
    frames[:] = np.array(colours, np.uint8)[:, None, None, :]
    path = tmp_path / "colours.mp4"
    write(path, frames)
    assert np.abs(read_frames(path).astype(int) - frames).max() <= 3


@pytest.mark.parametrize("size", [(320, 192), (80, 48), (158, 98)], ids=["double", "half", "nearly"])
def test_frames_of_another_size_are_scaled_to_the_film_s(tmp_path: Path, size: tuple[int, int]) -> None:
    waves = 128 + 60 * np.sin(np.add.outer(np.arange(96) / 20, np.arange(160) / 25))
    # Grey, because a film has half the colours each way.
    frame = np.repeat(waves.astype(np.uint8)[..., None], 3, axis=-1)
    path = tmp_path / "film.mp4"
    with VideoWriter(path, *size, 10) as writer:
        writer.write(frame[None])
    [made] = read_frames(path)
    wanted = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    assert np.abs(made.astype(int) - wanted).mean() < 1.5


def test_chunked_writing_gives_the_same_bytes_as_one_write(tmp_path: Path) -> None:
    frames = moving_frames(25)
    write(tmp_path / "whole.mp4", frames, threads=2)
    with VideoWriter(tmp_path / "chunks.mp4", 160, 96, 10, 2) as writer:
        for start in range(0, 25, 4):
            writer.write(frames[start : start + 4])
        assert writer.frames == 25
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "chunks.mp4").read_bytes()


def test_bytes_do_not_depend_on_the_routines_a_cpu_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (6, 96, 160, 3), np.uint8) // 8 + moving_frames(6) // 2
    write(tmp_path / "own.mp4", frames)
    monkeypatch.setattr(video, "X264_PARAMS", video.X264_PARAMS + ":asm=0")
    write(tmp_path / "plain.mp4", frames)
    assert (tmp_path / "own.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_error_while_writing_leaves_no_file_and_keeps_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError), VideoWriter(path, 160, 96, 10) as writer:
        writer.write(moving_frames(2))
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]
    assert path.read_bytes() == b"older"


def test_path_stays_empty_until_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    writer = VideoWriter(path, 160, 96, 10)
    writer.write(moving_frames(3))
    assert not path.exists()
    writer.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]


# One frame is held back until the file is closed.
@pytest.mark.parametrize("frames", [1, 12])
def test_full_disk_is_an_error_without_a_file(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "film.mp4"
    (tmp_path / "film.mp4.part").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (frames, 256, 256, 3), np.uint8)
    with pytest.raises(OSError), VideoWriter(path, 256, 256, 10) as writer:
        writer.write(noise)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "height"), [(161, 96), (160, 95), (0, 0)])
def test_odd_sides_are_refused(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(ValueError, match="even sides"):
        VideoWriter(tmp_path / "film.mp4", width, height, 10)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 96, 160, 3), np.float32),
        np.zeros((96, 160, 3), np.uint8),
        np.zeros((1, 96, 160, 4), np.uint8),
    ],
)
def test_frames_of_another_shape_or_type_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with (
        pytest.raises(ValueError, match="Frames must be uint8"),
        VideoWriter(tmp_path / "film.mp4", 160, 96, 10) as writer,
    ):
        writer.write(frames)


def test_reading_something_else_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"not a video")
    with pytest.raises(StillmotionError, match=r"film\.mp4"):
        read_frames(path)


def test_contact_sheet_shows_every_frame_of_every_film(tmp_path: Path) -> None:
    frames = np.zeros((6, 64, 128, 3), np.uint8)
    frames[:] = np.arange(40, 241, 40, dtype=np.uint8)[:, None, None, None]
    write(tmp_path / "wide.mp4", frames)
    write(tmp_path / "tall.mp4", np.ascontiguousarray(frames.transpose(0, 2, 1, 3)))
    contact_sheet([tmp_path / "wide.mp4", tmp_path / "tall.mp4"], tmp_path / "sheet.png", columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * 196 + 4
        found = set(np.asarray(sheet)[:, :, 0].ravel().tolist())
    for value in range(40, 241, 40):
        assert found & set(range(value - 2, value + 3)), f"frame of grey {value} is missing"
