"""Stored objects are whole or absent, whatever happens to the one who sends them."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stillmotion.media.store import BLOCK, INCOMING, MediaStore, TooLarge, open_media
from stillmotion.media.types import is_inline_safe, safe_name, sniff_type

pytestmark = pytest.mark.anyio

CONTENT = os.urandom(2_500_000)


@pytest.fixture
def media(tmp_path: Path) -> Iterator[MediaStore]:
    store = open_media(tmp_path)
    yield store
    assert list((tmp_path / "media" / ".incoming").iterdir()) == [], "a transfer left something behind"


async def pieces(content: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def objects(tmp_path: Path) -> list[str]:
    root = tmp_path / "media"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_upload_is_kept_with_its_size_digest_and_head(media: MediaStore) -> None:
    size, digest, head = await media.receive("uploads/a1", pieces(CONTENT), len(CONTENT))
    assert (size, digest, head) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), CONTENT[:64])
    assert await media.read("uploads/a1") == CONTENT


async def test_an_upload_is_written_while_it_comes(media: MediaStore, tmp_path: Path) -> None:
    async def watched() -> AsyncIterator[bytes]:
        async for piece in pieces(CONTENT):
            yield piece
        [partial] = (tmp_path / "media" / INCOMING).iterdir()
        assert partial.stat().st_size > len(CONTENT) - 2 * BLOCK

    await media.receive("uploads/a1", watched(), len(CONTENT))


async def test_empty_and_tiny_uploads_are_kept(media: MediaStore) -> None:
    assert (await media.receive("uploads/e", pieces(b""), 10))[0] == 0
    assert await media.receive("uploads/t", pieces(b"abc", 1), 3) == (
        3,
        hashlib.sha256(b"abc").hexdigest(),
        b"abc",
    )
    assert await media.read("uploads/e") == b""


async def test_upload_past_its_limit_leaves_nothing(media: MediaStore, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="2,499,999 bytes"):
        await media.receive("uploads/a1", pieces(CONTENT), len(CONTENT) - 1)
    assert objects(tmp_path) == []


async def test_sender_that_fails_half_way_leaves_nothing(media: MediaStore, tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await media.receive("uploads/a1", breaking(), len(CONTENT))
    assert objects(tmp_path) == []


async def test_cancelled_upload_leaves_nothing(media: MediaStore, tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield CONTENT
        reached.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(media.receive("uploads/a1", stuck(), len(CONTENT)))
    await reached.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert objects(tmp_path) == []


async def test_upload_cancelled_at_any_moment_leaves_all_or_nothing(
    media: MediaStore, tmp_path: Path
) -> None:
    for turns in range(40):
        key = f"uploads/{turns}"
        upload = asyncio.create_task(media.receive(key, pieces(CONTENT[:1_200_000]), len(CONTENT)))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait([upload])
        if key in objects(tmp_path):
            assert await media.read(key) == CONTENT[:1_200_000]


async def test_published_file_is_moved_in(media: MediaStore, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(CONTENT)
    size, digest = await media.publish(film, "films/r1/1/film.mp4")
    assert (size, digest) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert not film.exists()
    assert (tmp_path / "media/films/r1/1/film.mp4").read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["publish", "receive"])
async def test_bytes_are_on_disk_before_they_have_their_name_and_the_name_before_the_answer(
    media: MediaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def watched_replace(source: Path, target: Path) -> None:
        replace(source, target)
        done.append(f"{source.name} is {target.name}")

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    if way == "publish":
        (tmp_path / "film.mp4").write_bytes(CONTENT)
        await media.publish(tmp_path / "film.mp4", "films/r1/film.mp4")
    else:
        await media.receive("films/r1/film.mp4", pieces(CONTENT), len(CONTENT))
    partial = done[0]
    assert done == [partial, f"{partial} is film.mp4", "r1", "films", "media"]


async def test_publishing_a_missing_file_says_so(media: MediaStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await media.publish(tmp_path / "none.mp4", "films/r1/1/film.mp4")
    assert objects(tmp_path) == []


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 2_500_000), (2_499_999, 2_500_000), (5, 5), (7, 2_000_000)]
)
async def test_stream_gives_exactly_the_range(media: MediaStore, start: int, end: int) -> None:
    await media.receive("uploads/a1", pieces(CONTENT), len(CONTENT))
    assert b"".join([part async for part in media.stream("uploads/a1", start, end)]) == CONTENT[start:end]


async def test_download_that_began_before_a_delete_ends_whole(media: MediaStore) -> None:
    await media.receive("uploads/a1", pieces(CONTENT), len(CONTENT))
    stream = media.stream("uploads/a1", 0, len(CONTENT))
    got = await anext(stream)
    await media.delete(["uploads/a1"])
    async for part in stream:
        got += part
    assert got == CONTENT


async def test_missing_objects_are_not_found(media: MediaStore) -> None:
    with pytest.raises(FileNotFoundError):
        await media.read("uploads/none")
    with pytest.raises(FileNotFoundError):
        await anext(media.stream("uploads/none", 0, 5))


async def test_delete_takes_the_object_and_its_empty_folders(media: MediaStore, tmp_path: Path) -> None:
    await media.receive("films/r1/1/a.mp4", pieces(b"a"), 9)
    await media.receive("films/r2/1/a.mp4", pieces(b"a"), 9)
    await media.delete(["films/r1/1/a.mp4", "films/gone", "films/r1/1/a.mp4"])
    assert objects(tmp_path) == ["films/r2/1/a.mp4"]
    assert not (tmp_path / "media/films/r1").exists()


async def test_a_folder_goes_with_all_its_objects_and_no_others(media: MediaStore, tmp_path: Path) -> None:
    for key in ("uploads/a/1", "uploads/a/2", "uploads/ab", "uploads/b/1"):
        await media.receive(key, pieces(b"a"), 9)
    await media.delete_folder("uploads/a")
    await media.delete_folder("uploads/none")
    assert objects(tmp_path) == ["uploads/ab", "uploads/b/1"]


async def test_a_folder_that_vanishes_under_a_rename_is_made_again(
    media: MediaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, vanished = os.replace, list[Path]()

    def late(partial: Path, place: Path) -> None:
        if not vanished:
            # As a delete of its last object takes it away.
            vanished.append(place.parent)
            place.parent.rmdir()
        rename(partial, place)

    monkeypatch.setattr(os, "replace", late)
    await media.receive("films/r1/1/film.mp4", pieces(b"film"), 10)
    assert vanished and await media.read("films/r1/1/film.mp4") == b"film"


async def test_publishing_beside_deletes_in_the_same_folder_never_fails(
    media: MediaStore, tmp_path: Path
) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(25):
            await media.receive(f"uploads/shared/{name}", pieces(b"x"), 9)
            await media.delete([f"uploads/shared/{name}"])

    await asyncio.gather(*(come_and_go(name) for name in "abcd"))
    assert objects(tmp_path) == []


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", ".incoming/x", "a/.x", "a\0b", "a\nb", "a/", "ü", "a b"],
)
async def test_keys_not_made_by_us_are_refused(media: MediaStore, key: str) -> None:
    with pytest.raises(ValueError, match="media key"):
        await media.read(key)


async def test_transfers_a_kill_cut_short_are_cleared_at_the_next_start(tmp_path: Path) -> None:
    open_media(tmp_path)
    incoming = tmp_path / "media" / ".incoming"
    (incoming / "half").write_bytes(b"half")
    open_media(tmp_path)
    assert list(incoming.iterdir()) == []


async def test_a_cancel_while_the_bytes_take_their_place_leaves_nothing(
    media: MediaStore, tmp_path: Path
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"whole"

    receiving = asyncio.create_task(media.receive("uploads/a", chunks(), 10))
    while not (tmp_path / "media/uploads/a").exists():
        assert not receiving.done()
        await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert objects(tmp_path) == []


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x10\n\0\0WEBPVP8 ", "image/webp"),
        (b"\0\0\0 ftypisom", "video/mp4"),
        (b"\0\0\n\nftypavif", "image/avif"),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"\x1aE\xdf\xa3", "video/webm"),
        (b"<svg xmlns=", None),
        (b"<!doctype html>", None),
        (b"", None),
    ],
)
async def test_first_bytes_decide_the_type(head: bytes, content_type: str | None) -> None:
    assert sniff_type(head) == content_type


async def test_only_types_without_script_are_shown_inline() -> None:
    assert is_inline_safe("video/mp4") and is_inline_safe("Image/PNG; charset=x")
    for content_type in ("text/html", "image/svg+xml", "application/pdf", "text/plain", "", "video/mp4x"):
        assert not is_inline_safe(content_type)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rocket.png", "rocket.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat photo.jpg", "cat photo.jpg"),
        ("naïve ☃.png", "naïve ☃.png"),
        ("a\r\nSet-Cookie: x=1.png", "aSet-Cookie_ x=1.png"),
        ('a"b<c>.png', "a_b_c_.png"),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("a\0b\u202egnp.exe", "abgnp.exe"),
        ("a\u2028b.png", "ab.png"),
        ("...", "file"),
        ("", "file"),
        ("a" * 4096 + ".png", "a" * 96 + ".png"),
    ],
)
async def test_names_are_safe_to_show_and_to_send(name: str, shown: str) -> None:
    assert safe_name(name) == shown


async def test_a_disk_that_cannot_be_read_is_an_os_error(media: MediaStore, tmp_path: Path) -> None:
    # A file where a folder must be: an I/O error that is not "not found".
    (tmp_path / "media" / "uploads").write_bytes(b"")
    with pytest.raises(OSError, match="a1"):
        await media.read("uploads/a1")
    with pytest.raises(OSError, match="a1"):
        await media.delete(["uploads/a1"])
