"""Where this server may connect when a stranger names the address.

Invariants, for pictures and webhooks alike:
- a URL is parsed once, here; what was checked is what is connected to;
- the name is resolved once per connection, and every address it has must be public or allowed by the
  operator, else nothing is sent to any of them;
- the connection goes to a checked address; name, Host header and TLS name stay the URL's;
- proxies and credentials from the environment are never used.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import certifi
import httpcore
import httpx

from stillmotion.errors import StillmotionError, UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARS = 8192
#: Seconds for one address to answer before the next is tried.
CONNECT_TIMEOUT_S = 10.0
DEFAULT_PORTS = {"http": 80, "https": 443}

#: Not public, whatever `is_global` of this Python's ipaddress says: IANA's special-purpose registries,
#: and every form that carries an IPv4 address inside an IPv6 one.
SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relay
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
#: All public IPv6 lies here; mapped, NAT64, unique-local, link-local and multicast addresses do not.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class AddressRefused(StillmotionError):
    """The URL or what its name resolves to is not somewhere this server connects to."""


class NameUnknown(StillmotionError):
    """The host name has no address."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart once."""

    scheme: str
    #: ASCII (IDNA) name or address, IPv6 without brackets.
    host: str
    port: int
    #: Path and query as sent.
    path: bytes
    url: httpx.URL


@dataclass(frozen=True, slots=True)
class AllowList:
    """What the operator exempts from the rule that addresses must be public."""

    networks: tuple[Network, ...] = ()
    #: Host and port; port None means any.
    names: frozenset[tuple[str, int | None]] = frozenset()

    @classmethod
    def parse(cls, words: Iterable[str]) -> Self:
        """Read CIDRs, addresses, `host` and `host:port`; raises UserError naming the bad word."""
        networks: list[Network] = []
        names: set[tuple[str, int | None]] = set()
        for word in words:
            try:
                networks.append(ipaddress.ip_network(word, strict=False))
                continue
            except ValueError:
                pass
            match = re.fullmatch(r"\[?([A-Za-z0-9._-]+|[0-9A-Fa-f:.]+)\]?(?::(\d{1,5}))?", word)
            if match is None or "/" in word:
                raise UserError(
                    f"{word!r} is no address, CIDR or host name. Write 10.0.0.0/8, app.internal or "
                    "app.internal:3000."
                )
            names.add((_plain(match[1]), int(match[2]) if match[2] else None))
        return cls(tuple(networks), frozenset(names))

    def allows_name(self, host: str, port: int) -> bool:
        name = _plain(host)
        return (name, port) in self.names or (name, None) in self.names

    def allows_address(self, address: Address) -> bool:
        return any(address.version == net.version and address in net for net in self.networks)


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def is_public(address: Address) -> bool:
    """Tell whether packets to `address` leave for the public internet."""
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    if any(address.version == net.version and address in net for net in SPECIAL):
        return False
    return address.is_global


def parse_url(url: str) -> Target:
    """Take an http(s) URL apart; raises AddressRefused saying what is wrong with its form."""
    if len(url) > MAX_URL_CHARS:
        raise AddressRefused(f"The URL is longer than {MAX_URL_CHARS} characters.")
    if any(char <= " " or char in "\\\x7f" or char.isspace() for char in url):
        raise AddressRefused("The URL holds whitespace, control characters or a backslash.")
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
        port = parsed.port
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressRefused("The URL cannot be read.") from error
    # A webhook's is kept in this form, up to twelve times as long, and read here again at each try.
    if len(str(parsed)) > MAX_URL_CHARS:
        raise AddressRefused(f"The URL is longer than {MAX_URL_CHARS} characters when it is percent-encoded.")
    if parsed.scheme not in DEFAULT_PORTS:
        raise AddressRefused("The URL must start with http:// or https://.")
    if parsed.userinfo:
        raise AddressRefused("The URL must not hold a user name or password.")
    host = host.removeprefix("[").removesuffix("]")
    port = DEFAULT_PORTS[parsed.scheme] if port is None else port
    if not host or "%" in host or not 0 < port < 65536:
        raise AddressRefused("The URL names no usable host and port.")
    return Target(parsed.scheme, host, port, parsed.raw_path, parsed)


async def resolve(host: str, port: int, allow: AllowList) -> list[str]:
    """Look up `host`; every address must be public or allowed, else AddressRefused."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NameUnknown("The host name has no address.") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow.allows_name(host, port):
        for text in addresses:
            address = ipaddress.ip_address(text)
            if not is_public(address) and not allow.allows_address(address):
                raise AddressRefused("The URL leads to a private or reserved network address.")
    return addresses


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, checks and connects in one step, so that no second lookup can change the answer."""

    def __init__(self, allow: AllowList) -> None:
        self._allow = allow
        # httpcore types this name loosely, because anyio is optional to it.
        self._network: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses: Sequence[str] = await resolve(host, port, self._allow)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


@lru_cache(maxsize=1)
def trusted_roots() -> ssl.SSLContext:
    """Trust the system's certificate roots and certifi's; containers often lack the former."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def guarded_pool(allow: AllowList, roots: ssl.SSLContext | None = None) -> httpcore.AsyncConnectionPool:
    """Make an HTTP/1.1 client that can reach public and allowed addresses only.

    A refused address surfaces as AddressRefused out of the request. Redirects are not followed.
    """
    return httpcore.AsyncConnectionPool(
        ssl_context=roots or trusted_roots(), network_backend=GuardedBackend(allow), keepalive_expiry=5.0
    )
