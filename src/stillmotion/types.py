"""The words every floor shares: states, rows and messages as frozen data, no behaviour.

A request moves held/ready -> running -> done; `attempt` is its fencing number.
Nothing here knows HTTP, SQL or torch.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

#: Named film sizes, width x height in pixels.
VIDEO_SIZES: dict[str, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}


class State(StrEnum):
    """Where a request stands; DONE is the only terminal state."""

    #: Waits because its key is at its concurrency limit.
    HELD = "held"
    #: May be claimed.
    READY = "ready"
    #: A worker holds its lease.
    RUNNING = "running"
    #: Reached its outcome.
    DONE = "done"


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"


class Level(StrEnum):
    """Severity of a log line."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    STDOUT = "STDOUT"
    STDERR = "STDERR"


class CancelAnswer(StrEnum):
    """What a cancel met."""

    #: It waited; it will never start.
    REMOVED = "removed"
    #: It runs; it stops at the next step.
    ASKED = "asked"
    ALREADY_DONE = "already_done"
    UNKNOWN = "unknown"


class Sampler(StrEnum):
    """Which sampling loop makes the film."""

    #: AnimateLCM's consistency sampler, few steps, no guidance ("turbo").
    LCM = "lcm"
    #: EDM Euler with per-frame classifier-free guidance ("high quality").
    EULER = "euler"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a request's log."""

    #: Unix seconds.
    at: float
    level: Level
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request failed, in our words; the HTTP edge turns it into fal's shape."""

    #: HTTP status the result route replays.
    status: int
    #: fal's error type, e.g. `image_load_error`, `runner_disconnected`, `internal_server_error`.
    kind: str
    message: str
    #: The input field at fault, if one is (`image_url`).
    field: str | None = None
    #: Facts that go with the kind, e.g. `{"max_size": 26214400}`.
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """URL prefixes of the door a request came in by, without trailing slash; later answers use them."""

    #: Before `/{owner}/{alias}/requests/...`.
    queue: str
    #: Before `/files/{id}/{name}`.
    files: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A caller's own name for a submit, and what must be equal when it is used again."""

    key: str
    #: SHA-256 hex of endpoint and body.
    digest: str


class Access(StrEnum):
    """What a caller who asks for a file meets."""

    ALLOW = "allow"
    #: Is told that it may not.
    FORBID = "forbid"
    #: Is told that there is no such file.
    HIDE = "hide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acl:
    """Who may read a file besides its owner."""

    default: Access = Access.ALLOW
    #: By key id; comes before the default.
    rules: Mapping[str, Access] = dataclasses.field(default_factory=dict[str, Access])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """What a caller wishes for the files it makes or uploads."""

    #: Seconds from completion to expiry; None = the server's own rule.
    keep_s: float | None = None
    #: None = anyone who knows the address.
    acl: Acl | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """A validated submit, about to become a row."""

    id: str
    #: The profile whose queue it waits in.
    profile: str
    endpoint: str
    key_id: str
    #: The validated input, defaults filled in and the seed drawn; a picture is never inside.
    input: Mapping[str, Any]
    #: `file:{id}` of a stored file, or an http(s) URL the worker fetches; None for prompt endpoints.
    picture: str | None
    bases: Bases
    low_priority: bool = False
    #: Second of the steady clock by which it must have started.
    start_by: float | None = None
    webhook: str | None = None
    #: True when a client waits on the open connection; such a request is cancelled when that client leaves.
    attached: bool = False
    #: Of its film.
    lifecycle: Lifecycle = Lifecycle()
    #: Names this submit for its caller: the same one again is answered with this request.
    idempotency: Idempotency | None = None
    #: False: the input is forgotten with the ending, everything else soon after.
    store_io: bool = True
    #: False: the first death of a runner fails it.
    retry: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row of the request table."""

    id: str
    profile: str
    endpoint: str
    key_id: str
    input: Mapping[str, Any]
    picture: str | None
    bases: Bases
    state: State
    ord: int
    attempt: int
    crashes: int
    attached: bool
    created: float
    owner: str | None = None
    lease_until: float | None = None
    cancel_at: float | None = None
    start_by: float | None = None
    started: float | None = None
    finished: float | None = None
    webhook: str | None = None
    outcome: Outcome | None = None
    #: The output as our own words: `{"file": id, "seed": int}`.
    result: Mapping[str, Any] | None = None
    failure: Failure | None = None
    #: Last progress the runner told: `{"stage": str, "step": int, "steps": int}`.
    progress: Mapping[str, Any] | None = None
    #: Weights, versions, device, threads, preset: equal fingerprints promise equal bytes.
    fingerprint: str | None = None
    #: Seconds by stage, e.g. `{"first_frame": 0.31, "denoise": 0.9}`.
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    #: Of its film.
    lifecycle: Lifecycle = Lifecycle()
    store_io: bool = True
    retry: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the finishing transaction writes."""

    outcome: Outcome
    result: Mapping[str, Any] | None = None
    failure: Failure | None = None
    fingerprint: str | None = None
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A hosted file; its bytes lie in the media store under `media_key`."""

    #: 128 random bits, hex; part of the public URL.
    id: str
    #: The caller who owns it.
    key_id: str
    #: The request that made it, None for uploads.
    request_id: str | None
    #: Name shown to people; never part of a path on disk.
    name: str
    content_type: str
    media_key: str
    #: Bytes; while the upload is pending, those of its parts.
    size: int
    #: SHA-256 hex of the bytes, quoted it is the ETag; empty while pending.
    digest: str
    created: float
    #: Of a pending upload, when it counts as abandoned.
    expires: float | None
    #: False until the bytes are complete and published.
    complete: bool
    #: Seconds from completion to expiry, where a pending upload has its own; None = the server's rule.
    keep_s: float | None = None
    #: Who may read it; None = anyone who knows its address.
    acl: Acl | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPart:
    """One part of an upload that comes in pieces; its bytes lie in the media store under `media_key`."""

    #: Counts from 1; the order of the bytes.
    number: int
    size: int
    #: SHA-256 hex of the bytes, quoted it is the part's ETag.
    digest: str
    media_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The authenticated key behind a call."""

    key_id: str
    name: str
    admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmth:
    """How many of the sizes that films are expected in a runner has made one in."""

    device: str
    warm: int
    sizes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a runner can take work now, and if not, why."""

    ready: bool
    reason: str
    #: Of the runners that can take work.
    runners: Sequence[Warmth] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a worker hands a runner: everything it may know of one attempt. Crosses the socket as JSON."""

    request_id: str
    attempt: int
    sampler: Sampler
    prompt: str | None
    #: Path of a checked, upright RGB PNG; None when the prompt makes the first frame.
    picture: str | None
    #: Pixels of the film; None = the bucket nearest to the picture.
    width: int | None
    height: int | None
    #: None = the profile's own number (high quality).
    steps: int | None
    #: Container frames per second; the UNet sees the profile's `condition_fps`.
    fps: int
    motion_bucket_id: int
    cond_aug: float
    seed: int
    #: Path the MP4 is written to; its folder exists.
    output: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Assignment":
        fields: dict[str, Any] = {name: message[name] for name in cls.__slots__}
        fields["sampler"] = Sampler(fields["sampler"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """What a runner made: the facts of the MP4 at `Assignment.output`."""

    width: int
    height: int
    frames: int
    #: Seconds by stage.
    timings: Mapping[str, float]
    #: When it was made under another fingerprint than its runner's.
    fingerprint: str | None = None


#: What is left of a film that needs its device no more: wait until the file is whole.
FinishFilm = Callable[[], Film]
