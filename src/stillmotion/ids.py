"""Random names: request ids, file ids, seeds, key secrets. All from the system's CSPRNG."""

import re
import secrets
import uuid

#: JSON numbers are exact in JavaScript below this.
SEED_LIMIT = 2**53

_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def request_id(now: float) -> str:
    """Make a UUID version 7 (RFC 9562 section 5.7): sorts by creation time."""
    millis = int(now * 1000) & ((1 << 48) - 1)
    value = (millis << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def is_request_id(text: str) -> bool:
    """Tell whether a text has the form of one; PostgreSQL cannot even be asked for some that have not."""
    return _REQUEST_ID.fullmatch(text) is not None


def file_id() -> str:
    """Make 128 random bits as 32 hex digits: unguessable, so a public URL stays private until shared."""
    return secrets.token_hex(16)


def draw_seed() -> int:
    return secrets.randbelow(SEED_LIMIT)
