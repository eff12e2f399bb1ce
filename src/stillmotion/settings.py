"""Every setting of the server, once: name, default, unit, meaning; `stillmotion settings` prints this.

A value comes from the command line, else from `STILLMOTION_<NAME>` in the environment, else from the
default here. Nothing else in the program reads the environment.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stillmotion.errors import UserError

PREFIX = "STILLMOTION_"
MIB = 1024 * 1024
GIB = 1024 * MIB
DAY_S = 86_400
#: A hundred years: dates beyond the year 9999 cannot be written.
MOST_DAYS = 36_500


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _check_networks(words: list[str]) -> list[str]:
    for word in words:
        ip_network(word, strict=False)
    return words


def _check_origins(words: list[str]) -> list[str]:
    for word in words:
        parts = urlsplit(word)
        if word.lower() != "self" and (not parts.scheme or not parts.netloc or "*" in word):
            raise ValueError("write self, or origins with their scheme such as https://app.example.org")
    return words


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    # Asking for a port that is no number raises.
    usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    if not usable or parts.query or parts.fragment:
        raise ValueError("write it as https://films.example, with a path after it if there is one")
    return url


def _check_database(url: str) -> str:
    if urlsplit(url).scheme != "postgresql+psycopg":
        raise ValueError(
            "write it as postgresql+psycopg://user@host/name; leave it out for the SQLite file in the data "
            "directory"
        )
    return url


#: A comma-separated list in the environment.
Words = Annotated[list[str], BeforeValidator(_split)]
Networks = Annotated[Words, AfterValidator(_check_networks)]
PageOrigins = Annotated[Words, AfterValidator(_check_origins)]
HttpUrl = Annotated[str, AfterValidator(_check_url)]
DatabaseUrl = Annotated[str, AfterValidator(_check_database)]
CompileMode = Literal["off", "default", "max-autotune-no-cudagraphs", "reduce-overhead"]


def _setting(default: Any, unit: str, description: str, **limits: Any) -> Any:
    return Field(default=default, description=description, json_schema_extra={"unit": unit}, **limits)


class Settings(BaseModel):
    """All settings; frozen after start."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = _setting("127.0.0.1", "address", "Address the HTTP listener binds.")
    port: int = _setting(8000, "port", "Port of the HTTP listener; 0 picks a free one.", ge=0, le=65535)
    tls_port: int | None = _setting(
        None,
        "port",
        "Port of the HTTPS listener with a certificate from the private CA in DATA/tls.",
        ge=0,
        le=65535,
    )
    tls_name: Words = _setting([], "names", "Further host names and addresses for the certificate.")
    data_dir: Path = _setting(Path("stillmotion-data"), "path", "Where state, media, keys and the lock live.")
    database_url: DatabaseUrl | None = _setting(
        None,
        "URL",
        "PostgreSQL as postgresql+psycopg://…; unset means the SQLite file in the data directory.",
    )
    profile: str = _setting("auto", "name", "auto, pocket or svd: which weights and presets to run.")
    devices: Words = _setting(
        ["auto"], "devices", "cpu, cuda:0,cuda:1,… or auto; one runner each. cpu,cpu runs two."
    )
    memory_preset: str = _setting(
        "auto", "name", "A memory preset of the profile, or auto: the first that fits the free GPU memory."
    )
    compile: CompileMode = _setting(
        "off",
        "mode",
        "How the video networks are compiled: off, default, max-autotune-no-cudagraphs, or reduce-overhead "
        "(CUDA graphs). Compiling takes minutes, once; off, because no gain was measured on a GPU yet.",
    )
    public_url: HttpUrl | None = _setting(
        None, "URL", "Address path-style callers reach this server by, when behind a proxy."
    )
    trusted_proxies: Networks = _setting([], "CIDRs", "Peers whose X-Forwarded-* headers count.")
    allowed_hosts: Words = _setting(
        [], "names", "Further Host header names accepted on a loopback bind, against DNS rebinding."
    )
    proxy_key: str | None = _setting(
        None, "key", "Key the proxy route lends to pages that send none; unset means each call needs its own."
    )
    proxy_origins: PageOrigins = _setting(
        ["self"], "origins", "Origins of pages that may borrow the proxy key; self is this server's own."
    )

    fetch_allow: Words = _setting(
        [],
        "CIDRs, names",
        "Private addresses and host names an image_url may point to; all others must be public.",
    )
    webhook_allow: Words = _setting(
        [], "CIDRs, names", "Private addresses and host names a webhook may point to."
    )
    webhook_timeout_s: float = _setting(15, "s", "Whole time one webhook delivery may take.", gt=0)
    webhook_tries: int = _setting(10, "tries", "Deliveries before a webhook is parked.", ge=1)
    webhook_retry_base_s: float = _setting(15, "s", "First pause between webhook tries; it doubles.", gt=0)
    webhook_per_host: int = _setting(4, "deliveries", "Webhook deliveries under way at once per host.", ge=1)

    heartbeat_s: float = _setting(5, "s", "How often a worker renews its leases.", gt=0)
    lease_s: float = _setting(20, "s", "How long a claim holds without renewal.", gt=0)
    sweep_s: float = _setting(2, "s", "How often lapsed leases and passed deadlines are looked for.", gt=0)
    max_crashes: int = _setting(3, "crashes", "Runner deaths on one request before it fails.", ge=1)
    cancel_grace_s: float = _setting(5, "s", "How long a cancelled runner may take before SIGKILL.", gt=0)
    drain_grace_s: float = _setting(600, "s", "How long SIGTERM waits for running work.", gt=0)
    log_flush_s: float = _setting(0.25, "s", "How often new log lines and progress are written.", gt=0)
    start_timeout_s: float = _setting(
        600, "s", "How long a runner may take to load its weights and to compile for its first size.", gt=0
    )
    stall_timeout_s: float = _setting(
        600,
        "s",
        "How long a runner may work on one step, or compile for one size, before it counts as hung.",
        gt=0,
    )

    sse_ping_s: float = _setting(
        10, "s", "Longest silence on an event stream before a comment says that it lives.", gt=0
    )

    body_bytes: int = _setting(32 * MIB, "bytes", "Largest request body outside uploads (32 MiB).", ge=1024)
    picture_bytes: int = _setting(25 * 1000 * 1000, "bytes", "Largest input picture (25 MB).", ge=1024)
    picture_pixels: int = _setting(
        20_000_000, "pixels", "Largest input picture (20 MP), checked before decoding.", ge=1
    )
    fetch_timeout_s: float = _setting(30, "s", "Whole time a picture download may take.", gt=0)
    upload_bytes: int = _setting(5 * GIB, "bytes", "Largest uploaded file (5 GiB).", ge=1)
    upload_url_s: int = _setting(3600, "s", "How long an upload URL may be used (1 h).", ge=1, le=30 * DAY_S)
    output_days: float = _setting(30, "days", "How long films are kept.", gt=0, le=MOST_DAYS)
    upload_days: float = _setting(7, "days", "How long uploads are kept.", gt=0, le=MOST_DAYS)
    request_days: float = _setting(
        30, "days", "How long finished requests and their logs are kept.", gt=0, le=MOST_DAYS
    )
    unstored_result_s: float = _setting(
        3600, "s", "How long the result of a submit with X-Fal-Store-IO: 0 may be fetched.", ge=0
    )
    bad_keys_per_minute: int = _setting(
        20, "calls", "Calls with a wrong key one address may make before they are answered 429.", ge=1
    )
    key_cache_s: float = _setting(5, "s", "How long a verified key is trusted before it is read again.", ge=0)

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'stillmotion.db'}"


def without_password(text: str) -> str:
    """Hide the password of a database URL: what is told of settings lands in logs and bug reports."""
    # To the last @: a password may hold one, and whatever else ends a part of a URL.
    text = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", text)
    return re.sub(r"(\bpassword=)[^&']*", r"\1***", text)


def shell_environment() -> dict[str, str]:
    """Return all that is set for this program, to hand it on, changed, to another."""
    return dict(os.environ)


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting as `stillmotion settings` prints it."""

    name: str
    value: str
    default: str
    unit: str
    source: str
    description: str


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Merge flags over environment over defaults; None in `flags` means not given.

    Raises UserError naming the setting.
    """
    known = Settings.model_fields
    chosen: dict[str, Any] = {}
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name in known:
            chosen[name] = None if text == "" and type(None) in get_args(known[name].annotation) else text
    chosen.update({name: value for name, value in flags.items() if value is not None})
    try:
        return Settings.model_validate(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name, problem = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"Setting {PREFIX}{name.upper()} is {without_password(repr(chosen.get(name)))}: {problem}. "
            "Run `stillmotion settings` for what each setting means."
        ) from error


def describe_settings(
    settings: Settings, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> list[Origin]:
    """List every setting with its value, default, unit and where the value came from."""

    def shown(value: Any) -> str:
        if isinstance(value, list):
            return ",".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
        return "" if value is None else str(value)

    rows: list[Origin] = []
    for name, field in Settings.model_fields.items():
        variable = PREFIX + name.upper()
        source = (
            "flag" if flags.get(name) is not None else "environment" if variable in environ else "default"
        )
        extra = field.json_schema_extra
        unit = str(extra["unit"]) if isinstance(extra, dict) else ""  # pyright: ignore[reportUnknownArgumentType]
        rows.append(
            Origin(
                variable,
                shown(getattr(settings, name)),
                shown(field.default),
                unit,
                source,
                field.description or "",
            )
        )
    return rows
