"""What a file is and how it may be shown: decided from its first bytes and a short list, never guessed."""

import re
import unicodedata

#: First 12 bytes are enough for every row; checked in order.
SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), content_type)
    for pattern, content_type in (
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBP", "image/webp"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"....ftyp(?:heic|heix|mif1|msf1)", "image/heic"),
        (rb"....ftypqt  ", "video/quicktime"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1aE\xdf\xa3", "video/webm"),
        (rb"OggS", "audio/ogg"),
        (rb"ID3|\xff[\xfb\xf3\xf2]", "audio/mpeg"),
        (rb"%PDF-", "application/pdf"),
        (rb"PK\x03\x04", "application/zip"),
    )
)
#: Shown inside a page; everything else is offered as a download. No format here can carry script.
INLINE = frozenset(
    {
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "image/avif",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "video/mp4",
        "video/quicktime",
        "video/webm",
    }
)
MAX_NAME_CHARS = 100
#: Device names Windows refuses with any extension; a download there would fail.
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE | re.DOTALL)


def sniff_type(head: bytes) -> str | None:
    """Name the content type the first bytes show; None when they show none."""
    return next((found for pattern, found in SIGNATURES if pattern.match(head)), None)


def is_inline_safe(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in INLINE


def safe_name(name: str) -> str:
    """Make a name to show people and to put into headers; never use it as a path."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(char for char in last if unicodedata.category(char)[0] not in "CZ" or char == " ")
    kept = re.sub(r'["<>:|?*;]', "_", kept).strip(" .")
    if len(kept) > MAX_NAME_CHARS:
        stem, dot, extension = kept.rpartition(".")
        ending = dot + extension if stem and len(extension) <= 10 else ""
        kept = kept[: MAX_NAME_CHARS - len(ending)].rstrip(" .") + ending
    if not kept:
        return "file"
    return f"_{kept}" if RESERVED.fullmatch(kept) else kept
