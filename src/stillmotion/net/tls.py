"""Certificates for the HTTPS listener from a private authority that can vouch for nothing else.

The authority in DATA/tls is name-constrained: whoever trusts `ca.pem` trusts it for the names it was made
for, not for the rest of the web, even if `ca.key` is stolen. It is kept as long as it covers every name
asked for, so that clients that trust it keep working; the server's certificate is renewed under it.
"""

import ipaddress
import logging
import re
import secrets
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stillmotion.clock import Clock
from stillmotion.durable import write_whole
from stillmotion.errors import DataRefused, UserError

log = logging.getLogger(__name__)

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CA_DAYS = 3650
LEAF_DAYS = 365
#: Days before expiry at which a new one is made, at a start or while the server runs.
RENEW_DAYS = 30
#: Certificates are valid from this long ago, for clients whose clock is behind.
BACKDATED = timedelta(days=1)
DNS_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
#: Where distributions keep their roots when OpenSSL was built to look elsewhere.
ROOT_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files."""

    #: The server's certificate followed by the authority's.
    cert: Path
    key: Path
    #: What clients must trust.
    ca: Path
    #: The system's roots and `ca`, for clients that take one file instead of their own roots.
    bundle: Path


@dataclass(frozen=True, slots=True)
class _Issuer:
    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure_certificates(data_dir: Path, names: Iterable[str], now: float) -> TlsFiles:
    """Make or renew what is missing, expires within 30 days or does not cover `names`.

    localhost, 127.0.0.1 and ::1 are always covered. This machine's own name and addresses are when the
    authority is made; later ones are covered only if the authority may vouch for them, because a new
    authority would cost every client its trust. `now` is Unix seconds.
    """
    folder = data_dir / "tls"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = TlsFiles(folder / "server.pem", folder / "server.key", folder / "ca.pem", folder / "bundle.pem")
    moment = datetime.fromtimestamp(now, UTC)
    asked = _general_names((*LOCAL_NAMES, *names))
    own = _general_names(_machine_names())
    issuer = _load_issuer(folder)
    if issuer is None or not _is_fresh(issuer.cert, moment) or not _permits(issuer.cert, asked):
        if issuer is not None:
            log.warning("a new certificate authority replaces the old: clients must trust %s anew", files.ca)
        issuer = _make_issuer(_merge(asked, own), moment)
        write_whole(folder / "ca.key", _key_pem(issuer.key))
        write_whole(files.ca, _cert_pem(issuer.cert), 0o644)
    wanted = _merge(asked, [name for name in own if _permits(issuer.cert, [name])])
    if not _is_current(files, issuer, wanted, moment):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _make_leaf(issuer, key, wanted, moment)
        write_whole(files.key, _key_pem(key))
        write_whole(files.cert, _cert_pem(leaf) + _cert_pem(issuer.cert), 0o644)
    bundle = _system_roots().rstrip() + b"\n" + _cert_pem(issuer.cert)
    if not files.bundle.exists() or files.bundle.read_bytes() != bundle:
        write_whole(files.bundle, bundle, 0o644)
    return files


class LiveCertificate:
    """The server's certificate in one SSL context for all listeners, which follows its renewals."""

    def __init__(self, data_dir: Path, names: Sequence[str], clock: Clock) -> None:
        self._data_dir = data_dir
        self._names = names
        self._clock = clock
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.set_alpn_protocols(["http/1.1"])
        self.renew()

    def renew(self) -> None:
        """Make new what expires within 30 days; handshakes from here on use it, open connections go on."""
        files = ensure_certificates(self._data_dir, self._names, self._clock.now())
        self.context.load_cert_chain(files.cert, files.key)


def _machine_names() -> list[str]:
    host = socket.gethostname()
    names = [host] if DNS_NAME.fullmatch(host.lower()) else []
    # A machine name without address counts alone.
    with suppress(OSError):
        names += [str(entry[4][0]) for entry in socket.getaddrinfo(host, None)]
    for addresses in psutil.net_if_addrs().values():
        names += [entry.address for entry in addresses if entry.family in (socket.AF_INET, socket.AF_INET6)]
    return [name for name in names if "%" not in name]


def _general_names(words: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for word in words:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(word.strip("[]"))))
            continue
        except ValueError:
            pass
        try:
            ascii_name = word.encode("idna").decode().lower().rstrip(".")
        except UnicodeError:
            ascii_name = ""
        if not DNS_NAME.fullmatch(ascii_name):
            raise UserError(
                f"{word!r} is no host name or address a certificate can carry. Write video.example.org or "
                "192.168.1.5, without scheme or port."
            )
        names.append(x509.DNSName(ascii_name))
    return _merge(names, [])


def _merge(first: Sequence[x509.GeneralName], second: Sequence[x509.GeneralName]) -> list[x509.GeneralName]:
    return sorted({*first, *second}, key=repr)


def _is_fresh(cert: x509.Certificate, moment: datetime) -> bool:
    return cert.not_valid_before_utc <= moment < cert.not_valid_after_utc - timedelta(days=RENEW_DAYS)


def _permits(authority: x509.Certificate, names: Sequence[x509.GeneralName]) -> bool:
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    permitted = constraints.permitted_subtrees or []
    return all(_constraint(name) in permitted for name in names)


def _constraint(name: x509.GeneralName) -> x509.GeneralName:
    if isinstance(name, x509.IPAddress):
        return x509.IPAddress(ipaddress.ip_network(str(name.value)))
    return name


def _load_issuer(folder: Path) -> _Issuer | None:
    cert_path, key_path = folder / "ca.pem", folder / "ca.key"
    if not (cert_path.exists() and key_path.exists()):
        return None
    try:
        cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        cert.extensions.get_extension_for_class(x509.NameConstraints)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise DataRefused(_broken(folder)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DataRefused(_broken(folder))
    # A crash between writing the key and its certificate leaves a pair that does not match.
    return _Issuer(cert, key) if key.public_key() == cert.public_key() else None


def _broken(folder: Path) -> str:
    return (
        f"{folder}/ca.pem or ca.key is not what this server wrote there. Put them back, or delete both to "
        "make a new authority; clients must then trust the new ca.pem."
    )


def _is_current(
    files: TlsFiles, issuer: _Issuer, names: Sequence[x509.GeneralName], moment: datetime
) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate(files.cert.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        leaf.verify_directly_issued_by(issuer.cert)
    except (OSError, ValueError, TypeError, InvalidSignature):
        # Absent, cut short or from another authority: all are replaced.
        return False
    held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return _is_fresh(leaf, moment) and list(held) == list(names) and key.public_key() == leaf.public_key()


def _make_issuer(names: Sequence[x509.GeneralName], moment: datetime) -> _Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    # A number in the name, so that a client that trusts an older authority of ours never mixes them up.
    subject = _subject(f"Stillmotion private CA {secrets.token_hex(4)}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    cert = (
        _builder(subject, subject, key.public_key(), moment, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[_constraint(name) for name in names], excluded_subtrees=None
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    return _Issuer(cert, key)


def _make_leaf(
    issuer: _Issuer,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    moment: datetime,
) -> x509.Certificate:
    authority_id = issuer.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(_subject("Stillmotion server"), issuer.cert.subject, key.public_key(), moment, LEAF_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False
        )
        .sign(issuer.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, moment: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - BACKDATED)
        .not_valid_after(moment + timedelta(days=days))
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _system_roots() -> bytes:
    openssl_file = ssl.get_default_verify_paths().cafile
    for candidate in (openssl_file, *ROOT_FILES, certifi.where()):
        if candidate and Path(candidate).is_file():
            return Path(candidate).read_bytes()
    raise DataRefused("This system has no file of certificate roots. Install its ca-certificates package.")


def _cert_pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
