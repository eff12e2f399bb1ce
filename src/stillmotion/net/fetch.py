"""Downloading a picture from a URL a caller gave.

Every hop passes the guard; size is refused by header and counted while streaming; one time limit covers
everything from the name lookup to the last byte. An error tells the class of the problem, never what the
other side sent nor which address was met.
"""

import asyncio
import ssl

import httpcore
import httpx

from stillmotion import __version__
from stillmotion.errors import InputRefused
from stillmotion.net.guard import (
    CONNECT_TIMEOUT_S,
    AddressRefused,
    AllowList,
    NameUnknown,
    Target,
    guarded_pool,
    parse_url,
)

MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
HEADERS = (
    ("User-Agent", f"stillmotion/{__version__}"),
    ("Accept", "image/png, image/jpeg, image/webp, image/gif"),
    # Compressed pictures gain nothing, and a decompressor is a way around the size limit.
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)


async def fetch(
    url: str,
    *,
    allow: AllowList,
    max_bytes: int,
    timeout_s: float,
    roots: ssl.SSLContext | None = None,
) -> bytes:
    """Download `url`; raises InputRefused (file_download_error, file_too_large) without a field."""
    try:
        async with asyncio.timeout(timeout_s), guarded_pool(allow, roots) as pool:
            target = parse_url(url)
            for _ in range(MAX_REDIRECTS + 1):
                answer = await _get(pool, target, max_bytes)
                if isinstance(answer, bytes):
                    return answer
                target = answer
    except AddressRefused as error:
        raise _failed(f"{error} Give a public http(s) URL, upload the file or send a data URI.") from error
    except NameUnknown as error:
        raise _failed("The URL's host name could not be found.") from error
    except TimeoutError as error:
        raise _failed(f"The download took longer than the {timeout_s:g} s allowed.") from error
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise _failed(
            "No connection to the URL's host: refused, unreachable or without a trusted certificate."
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
        raise _failed("The connection broke or the answer was no valid HTTP.") from error
    raise _failed(f"The URL redirects more than {MAX_REDIRECTS} times.")


async def _get(pool: httpcore.AsyncConnectionPool, target: Target, max_bytes: int) -> bytes | Target:
    address = httpcore.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path
    )
    headers = [("Host", target.url.netloc.decode("ascii")), *HEADERS]
    timeouts = {"timeout": {"connect": CONNECT_TIMEOUT_S}}
    async with pool.stream("GET", address, headers=headers, extensions=timeouts) as response:
        fields = httpx.Headers(response.headers)
        if response.status in REDIRECTS and "location" in fields:
            return _redirected(target, fields["location"])
        if response.status != 200:
            raise _failed(f"The URL's server answered with status {response.status} instead of a picture.")
        if fields.get("content-encoding", "identity").lower() != "identity":
            raise _failed("The URL's server sent compressed content although asked not to.")
        length = fields.get("content-length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise _too_large(max_bytes)
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
        return bytes(body)


def _redirected(origin: Target, location: str) -> Target:
    # Joining would percent-encode what parse_url refuses, so the header is held to the same form first.
    if any(char <= " " or char in "\\\x7f" for char in location):
        raise AddressRefused("The URL redirects to an address that cannot be read.")
    try:
        target = parse_url(str(origin.url.join(location)))
    except httpx.InvalidURL as error:
        raise AddressRefused("The URL redirects to an address that cannot be read.") from error
    if origin.scheme == "https" and target.scheme == "http":
        raise AddressRefused("The URL redirects from https to http.")
    return target


def _failed(message: str) -> InputRefused:
    return InputRefused(message, kind="file_download_error")


def _too_large(max_bytes: int) -> InputRefused:
    return InputRefused(
        f"The file at the URL is larger than the {max_bytes:,} bytes allowed.",
        kind="file_too_large",
        context={"max_size": max_bytes},
    )
