"""Rows to the frozen words of `types.py` and back."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import RowMapping

from stillmotion.types import (
    Access,
    Acl,
    Bases,
    Failure,
    FileRecord,
    Lifecycle,
    NewRequest,
    Outcome,
    Request,
    State,
)


def request_values(new: NewRequest, *, state: State, ord: int, now: float) -> dict[str, Any]:
    return {
        "id": new.id,
        "profile": new.profile,
        "endpoint": new.endpoint,
        "key_id": new.key_id,
        "input": dict(new.input),
        "picture": new.picture,
        "queue_base": new.bases.queue,
        "files_base": new.bases.files,
        "state": state.value,
        "ord": ord,
        "created": now,
        "start_by": new.start_by,
        "webhook": new.webhook,
        "attached": new.attached,
        "lifecycle": _lifecycle_values(new.lifecycle),
        "idempotency_key": new.idempotency.key if new.idempotency else None,
        "idempotency_digest": new.idempotency.digest if new.idempotency else None,
        "store_io": new.store_io,
        "retry": new.retry,
    }


def to_request(row: Mapping[str, Any] | RowMapping) -> Request:
    return Request(
        id=row["id"],
        profile=row["profile"],
        endpoint=row["endpoint"],
        key_id=row["key_id"],
        input=row["input"],
        picture=row["picture"],
        bases=Bases(queue=row["queue_base"], files=row["files_base"]),
        state=State(row["state"]),
        ord=row["ord"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        attached=row["attached"],
        created=row["created"],
        owner=row["owner"],
        lease_until=row["lease_until"],
        cancel_at=row["cancel_at"],
        start_by=row["start_by"],
        started=row["started"],
        finished=row["finished"],
        webhook=row["webhook"],
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        result=row["result"],
        failure=None if row["failure"] is None else to_failure(row["failure"]),
        progress=row["progress"],
        fingerprint=row["fingerprint"],
        timings=row["timings"] or {},
        lifecycle=_to_lifecycle(row["lifecycle"]),
        store_io=row["store_io"],
        retry=row["retry"],
    )


def _lifecycle_values(lifecycle: Lifecycle) -> dict[str, Any] | None:
    if lifecycle == Lifecycle():
        return None
    return {"keep_s": lifecycle.keep_s, "acl": _acl_values(lifecycle.acl)}


def _to_lifecycle(values: Mapping[str, Any] | None) -> Lifecycle:
    if values is None:
        return Lifecycle()
    return Lifecycle(keep_s=values["keep_s"], acl=_to_acl(values["acl"]))


def _acl_values(acl: Acl | None) -> dict[str, Any] | None:
    return None if acl is None else {"default": acl.default, "rules": dict(acl.rules)}


def _to_acl(values: Mapping[str, Any] | None) -> Acl | None:
    if values is None:
        return None
    rules = {user: Access(decision) for user, decision in values["rules"].items()}
    return Acl(default=Access(values["default"]), rules=rules)


def failure_values(failure: Failure) -> dict[str, Any]:
    return {
        "status": failure.status,
        "kind": failure.kind,
        "message": failure.message,
        "field": failure.field,
        "context": dict(failure.context),
    }


def to_failure(values: Mapping[str, Any]) -> Failure:
    return Failure(**values)


def file_values(record: FileRecord) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in FileRecord.__slots__}
    return values | {"acl": _acl_values(record.acl)}


def to_file(row: RowMapping) -> FileRecord:
    values: dict[str, Any] = dict(row)
    values["acl"] = _to_acl(values["acl"])
    return FileRecord(**values)
