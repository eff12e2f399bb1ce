"""The guard: which addresses count as public, which URLs are read at all."""

import ipaddress

import pytest

from stillmotion.errors import UserError
from stillmotion.net.guard import AddressRefused, AllowList, NameUnknown, is_public, parse_url, resolve

pytestmark = pytest.mark.anyio

NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "64:ff9b::808:808",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:db8::1",
    "2002:a00:1::", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1",
    "ff02::1", "fe80::1%eth0", "fd00:ec2::254",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_address_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"]
)
def test_address_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "", "http://", "https:///x", "//host/x", "host/x", "http:host", "http:/host", "ftp://host/x",
        "file:///etc/passwd", "gopher://host", "data:image/png;base64,AA", "http://good@evil/",
        "http://good:pw@evil/", "http:\\\\evil\\x", "http://good\\@evil/", "http://ho st/", " http://host/",
        "http://host/\t", "http://host/\r\nX: y", "http://host\0/",
        "http://host/a b", "http://host/a\\b", "http://host/\u2028", "http://host/\u00a0",
        "http://host:99999/", "http://host:0/", "http://host:x/", "http://[::1", "http://[fe80::1%25eth0]/", "http://１２７.0.0.1/",
        "http://host\u3000/", "http://host\u00a0/", "http://" + "a" * 9000, "http://%31%32%37.0.0.1/",
        "http://host/" + "ü" * 2000,
    ],
)  # fmt: skip
def test_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("http://example.org", "http", "example.org", 80, b"/"),
        ("HTTPS://Example.ORG:8443/a%20b?x=%2F@y#frag", "https", "example.org", 8443, b"/a%20b?x=%2F@y"),
        ("http://[2606:4700::1111]:81/x", "http", "2606:4700::1111", 81, b"/x"),
        ("https://bücher.example/ü", "https", "xn--bcher-kva.example", 443, b"/%C3%BC"),
    ],
)
def test_url_is_taken_apart_once(url: str, scheme: str, host: str, port: int, path: bytes) -> None:
    target = parse_url(url)
    assert (target.scheme, target.host, target.port, target.path) == (scheme, host, port, path)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0x7f.1",
        "2130706433",
        "017700000001",
        "127.1",
        "0",
        "::1",
        "::ffff:127.0.0.1",
    ],
)
async def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="private or reserved"):
        await resolve(host, 80, AllowList())


async def test_unknown_name_is_told_apart() -> None:
    with pytest.raises(NameUnknown):
        await resolve("no-such-host.invalid", 80, AllowList())


@pytest.mark.parametrize(
    ("words", "host", "port", "allowed"),
    [
        (["127.0.0.0/8"], "127.0.0.1", 80, True),
        (["127.0.0.1"], "127.0.0.1", 80, True),
        (["10.0.0.0/8", "::1/128"], "127.0.0.1", 80, False),
        (["::1"], "::1", 80, True),
        (["localhost", "127.0.0.2"], "LocalHost", 80, True),
        (["LOCALHOST.:3000"], "localhost", 3000, True),
        (["localhost:3000"], "localhost", 80, False),
        (["127.0.0.1:3000"], "127.0.0.1", 3000, True),
        (["[::1]:3000"], "::1", 3000, True),
        (["[::1]:3000"], "::1", 80, False),
        (["app.internal"], "127.0.0.1", 80, False),
    ],
)
async def test_operator_allows_networks_names_and_ports(
    words: list[str], host: str, port: int, allowed: bool
) -> None:
    allow = AllowList.parse(words)
    if allowed:
        assert await resolve(host, port, allow)
    else:
        with pytest.raises(AddressRefused):
            await resolve(host, port, allow)


@pytest.mark.parametrize(
    "word", ["", "10.0.0.0/33", "http://host", "host/path", "a b", "host:port", "host:1:2", "*"]
)
def test_bad_allow_word_is_named(word: str) -> None:
    with pytest.raises(UserError, match="CIDR or host name"):
        AllowList.parse([word])
