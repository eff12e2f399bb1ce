"""The private authority: real handshakes for its names, refusal for all others, trust that lasts."""

import ipaddress
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from stillmotion.errors import DataRefused, UserError
from stillmotion.net.tls import TlsFiles, ensure_certificates
from stillmotion.settings import DAY_S

FAL = ("fal.run", "queue.fal.run", "v3.fal.media")


def handshake(
    files: TlsFiles, name: str, trust: Path, cert: Path | None = None, key: Path | None = None
) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert or files.cert, key or files.key)
    client = ssl.create_default_context(cafile=trust)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as secure:
                secure.recv(1)
        except OSError:
            far.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name) as secure:
            secure.sendall(b"x")
    finally:
        near.close()
        thread.join()


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("trust", ["ca", "bundle"])
def test_handshake_works_for_every_name(tmp_path: Path, trust: str) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    for name in (*FAL, "localhost", "127.0.0.1", "::1"):
        handshake(files, name, getattr(files, trust))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for"):
        handshake(files, "rest.fal.ai", getattr(files, trust))


def forge(tmp_path: Path, name: x509.GeneralName) -> tuple[Path, Path]:
    """Sign a certificate for `name` with the stolen key of the authority."""
    authority = load(tmp_path / "tls" / "ca.pem")
    ca_key = serialization.load_pem_private_key((tmp_path / "tls" / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    cert_path, key_path = tmp_path / "forged.pem", tmp_path / "forged.key"
    cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_path, key_path


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (x509.DNSName("example.com"), "example.com"),
        (x509.DNSName("notfal.run"), "notfal.run"),
        (x509.IPAddress(ipaddress.ip_address("8.8.8.8")), "8.8.8.8"),
    ],
)
def test_stolen_authority_key_cannot_vouch_for_other_names(
    tmp_path: Path, name: x509.GeneralName, host: str
) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    cert, key = forge(tmp_path, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(files, host, files.bundle, cert, key)


def test_forgery_test_itself_would_notice_a_permitted_name(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    cert, key = forge(tmp_path, x509.DNSName("fal.run"))
    handshake(files, "fal.run", files.bundle, cert, key)


def test_certificates_carry_what_strict_clients_ask_for(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    leaf, authority = load(files.cert), load(files.ca)
    for cert, is_ca in ((leaf, False), (authority, True)):
        basic = cert.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
        assert basic.critical and usage.critical
        assert (basic.value.ca, usage.value.key_cert_sign, usage.value.digital_signature) == (
            is_ca,
            is_ca,
            not is_ca,
        )
        cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert authority.extensions.get_extension_for_class(x509.NameConstraints).critical
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    issuer_id = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issuer_id == authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert files.cert.read_bytes().count(b"BEGIN CERTIFICATE") == 2


def test_keys_are_private_and_the_bundle_holds_the_system_roots(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    for name in ("ca.key", "server.key"):
        assert (tmp_path / "tls" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0
    bundle = files.bundle.read_bytes()
    assert bundle.count(b"BEGIN CERTIFICATE") > 50
    assert bundle.endswith(files.ca.read_bytes())
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == [
        "bundle.pem", "ca.key", "ca.pem", "server.key", "server.pem",
    ]  # fmt: skip


def contents(files: TlsFiles) -> list[bytes]:
    return [files.ca.read_bytes(), files.cert.read_bytes(), files.key.read_bytes()]


def test_second_start_changes_nothing(tmp_path: Path) -> None:
    before = contents(ensure_certificates(tmp_path, FAL, time.time()))
    assert contents(ensure_certificates(tmp_path, reversed(FAL), time.time() + 300 * DAY_S)) == before


def test_leaf_is_renewed_under_the_same_authority_before_it_expires(tmp_path: Path) -> None:
    now = time.time()
    before = contents(ensure_certificates(tmp_path, FAL, now))
    files = ensure_certificates(tmp_path, FAL, now + 340 * DAY_S)
    after = contents(files)
    assert after[0] == before[0] and after[1] != before[1]
    assert load(files.cert).not_valid_after_utc > datetime.fromtimestamp(now + 700 * DAY_S, UTC)


def test_fewer_names_keep_the_authority_and_new_names_replace_it(tmp_path: Path) -> None:
    before = contents(ensure_certificates(tmp_path, FAL, time.time()))
    fewer = contents(ensure_certificates(tmp_path, FAL[:1], time.time()))
    assert fewer[0] == before[0] and fewer[1] != before[1]
    files = ensure_certificates(tmp_path, [*FAL, "video.example.org", "192.168.7.9"], time.time())
    assert contents(files)[0] != before[0]
    for name in (*FAL, "video.example.org", "192.168.7.9"):
        handshake(files, name, files.bundle)


def test_authority_is_replaced_before_it_expires(tmp_path: Path) -> None:
    before = contents(ensure_certificates(tmp_path, FAL, time.time() - 3640 * DAY_S))
    files = ensure_certificates(tmp_path, FAL, time.time())
    assert contents(files)[0] != before[0]
    handshake(files, "fal.run", files.bundle)


def test_crash_between_key_and_certificate_is_mended(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    for lost in (files.key, files.cert, files.bundle, tmp_path / "tls" / "ca.key"):
        lost.unlink()
        handshake(ensure_certificates(tmp_path, FAL, time.time()), "fal.run", files.bundle)
    other = ensure_certificates(tmp_path / "other", FAL, time.time())
    files.key.write_bytes(other.key.read_bytes())
    handshake(ensure_certificates(tmp_path, FAL, time.time()), "fal.run", files.bundle)
    files.cert.write_bytes(b"cut short")
    handshake(ensure_certificates(tmp_path, FAL, time.time()), "fal.run", files.bundle)


def test_foreign_authority_files_are_refused_not_overwritten(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, FAL, time.time())
    files.ca.write_bytes(b"my own")
    with pytest.raises(DataRefused, match=r"ca\.pem or ca\.key"):
        ensure_certificates(tmp_path, FAL, time.time())
    assert files.ca.read_bytes() == b"my own"


@pytest.mark.parametrize("name", ["", "https://x.org", "x.org:443", "a b", "-x.org", "x..org", "*.x.org"])
def test_name_a_certificate_cannot_carry_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="host name or address"):
        ensure_certificates(tmp_path, [name], time.time())
