"""Signed upload URLs: who holds one may upload one file, once, of one type, up to a size, for a while.

The signature covers version, way of uploading, file id, content type, size limit and expiry. That it works
only once is held by the file's record, which completes once (`store/files.py`).
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from stillmotion.durable import write_whole
from stillmotion.errors import DataRefused

SECRET_BYTES = 32
FIELDS = ("type", "max", "expires", "signature")


class UploadWay(StrEnum):
    """How the bytes of an upload come."""

    #: In one PUT.
    WHOLE = "PUT"
    #: In numbered parts.
    PARTS = "PARTS"


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """What a valid upload URL permits."""

    way: UploadWay
    file_id: str
    content_type: str
    max_bytes: int
    #: Unix seconds.
    expires: int


class UploadSigner:
    def __init__(self, secret: bytes) -> None:
        # A key of its own, so that no other use of the secret can stand in for an upload URL.
        self._key = hmac.digest(secret, b"stillmotion upload url", "sha256")

    def sign(
        self,
        file_id: str,
        content_type: str,
        max_bytes: int,
        expires: float,
        way: UploadWay = UploadWay.WHOLE,
    ) -> str:
        """Return the query string to append to the upload URL."""
        grant = UploadGrant(way, file_id, content_type, max_bytes, int(expires))
        return urlencode(
            {"type": content_type, "max": max_bytes, "expires": grant.expires, "signature": self._mark(grant)}
        )

    def check(
        self, file_id: str, query: str, now: float, way: UploadWay = UploadWay.WHOLE
    ) -> UploadGrant | None:
        """Return the grant, or None when the URL is altered, expired or meant for another file or way."""
        try:
            fields = dict(
                parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=len(FIELDS))
            )
        except ValueError:
            return None
        if set(fields) != set(FIELDS):
            return None
        if not (_is_number(fields["max"]) and _is_number(fields["expires"])):
            return None
        grant = UploadGrant(way, file_id, fields["type"], int(fields["max"]), int(fields["expires"]))
        genuine = hmac.compare_digest(self._mark(grant).encode(), fields["signature"].encode())
        return grant if genuine and now < grant.expires else None

    def _mark(self, grant: UploadGrant) -> str:
        facts = ("1", grant.way, grant.file_id, grant.content_type, str(grant.max_bytes), str(grant.expires))
        # Each fact carries its length, so that no two lists of facts make the same message.
        message = b"".join(b"%d:%s" % (len(fact), fact) for fact in (text.encode() for text in facts))
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15


def load_secret(data_dir: Path) -> bytes:
    """Read DATA/secret, made at the first start; only for who holds DATA/lock.

    A lost secret voids temporary tokens and upload URLs not yet used, nothing else.
    """
    path = data_dir / "secret"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, secrets.token_bytes(SECRET_BYTES))
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise DataRefused(
            f"{path} holds {len(secret)} bytes instead of {SECRET_BYTES}. Delete it to make a new one; "
            "only temporary tokens and upload URLs not yet used stop working."
        )
    return secret
