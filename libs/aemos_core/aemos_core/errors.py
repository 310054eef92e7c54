"""The one error table: what goes wrong, and the answer on every protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2


class MqttAnswer(Enum):
    """MQTT 3.1.1 has no negative PUBACK: these are the answers it leaves for a PUBLISH."""

    EXPLAIN = "acknowledged, recorded, explained on the errors topic"
    CLOSE = "connection closed"
    SLOW = "read more slowly"
    SILENCE = "no PUBACK: the device sends again"


@dataclass(frozen=True, slots=True)
class Answers:
    """One row of the table. `coap` is class * 32 + detail (RFC 7252, 12.1.2); `job_again`: a job may succeed later."""

    grpc: grpc.StatusCode
    http: int
    coap: int
    mqtt: MqttAnswer
    job_again: bool


class Kind(Enum):
    """A kind of error; its value is what travels, its `answers` the row."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    EXISTS = "exists"
    STALE = "stale"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"

    @property
    def answers(self) -> Answers:
        """The kind's row of the table."""
        return TABLE[self]


def _coap(dotted: str) -> int:
    major, minor = dotted.split(".")
    return int(major) * 32 + int(minor)


_C, _M = grpc.StatusCode, MqttAnswer
TABLE: dict[Kind, Answers] = {
    Kind.MALFORMED: Answers(_C.INVALID_ARGUMENT, 400, _coap("4.00"), _M.EXPLAIN, False),
    Kind.INVALID: Answers(_C.INVALID_ARGUMENT, 422, _coap("4.00"), _M.EXPLAIN, False),
    Kind.UNAUTHENTICATED: Answers(_C.UNAUTHENTICATED, 401, _coap("4.01"), _M.CLOSE, False),
    Kind.FORBIDDEN: Answers(_C.PERMISSION_DENIED, 403, _coap("4.03"), _M.CLOSE, False),
    Kind.NOT_FOUND: Answers(_C.NOT_FOUND, 404, _coap("4.04"), _M.CLOSE, False),
    Kind.EXISTS: Answers(_C.ALREADY_EXISTS, 409, _coap("4.09"), _M.EXPLAIN, False),
    Kind.STALE: Answers(_C.ABORTED, 409, _coap("4.12"), _M.EXPLAIN, True),
    Kind.TOO_LARGE: Answers(_C.RESOURCE_EXHAUSTED, 413, _coap("4.13"), _M.EXPLAIN, False),
    Kind.BUSY: Answers(_C.RESOURCE_EXHAUSTED, 429, _coap("4.29"), _M.SLOW, True),
    Kind.UNAVAILABLE: Answers(_C.UNAVAILABLE, 503, _coap("5.03"), _M.SILENCE, True),
    Kind.INTERNAL: Answers(_C.INTERNAL, 500, _coap("5.00"), _M.SILENCE, True),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """A field that is wrong: `loc` is its path, such as "nodes.0.config.condition"."""

    loc: str
    message: str


class AemosError(Exception):
    """An error with its place in the table.

    `reason` is a stable word for programs, `detail` a sentence for people (no SQL, path or secret), `errors` the
    fields at fault, `retry_after` seconds.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        reason: str = "",
        errors: Iterable[FieldError] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.reason = reason or kind.value
        self.errors = tuple(errors)
        self.retry_after = 1 if retry_after is None and kind in (Kind.BUSY, Kind.UNAVAILABLE) else retry_after


def invalid(loc: str, message: str, reason: str = "") -> AemosError:
    """One field is wrong."""
    return AemosError(Kind.INVALID, f"{loc}: {message}", reason=reason, errors=[FieldError(loc, message)])


def refuse(errors: Sequence[FieldError], reason: str = "") -> None:
    """Raises INVALID when there is a mistake."""
    if errors:
        raise AemosError(Kind.INVALID, "; ".join(f"{e.loc}: {e.message}" for e in errors), reason=reason, errors=errors)


def malformed(detail: str, reason: str = "") -> AemosError:
    """The bytes cannot be parsed."""
    return AemosError(Kind.MALFORMED, detail, reason=reason)


def not_found(what: str) -> AemosError:
    """It does not exist, or it is another organization's: nobody can tell which."""
    return AemosError(Kind.NOT_FOUND, f"{what} not found")


def unauthenticated(detail: str = "a valid token is required") -> AemosError:
    """The caller did not prove who it is."""
    return AemosError(Kind.UNAUTHENTICATED, detail)


def unavailable(detail: str) -> AemosError:
    """It may succeed in a second."""
    return AemosError(Kind.UNAVAILABLE, detail)


def internal() -> AemosError:
    """The one answer to what nobody foresaw: nothing of the cause leaks."""
    return AemosError(Kind.INTERNAL, "something went wrong on our side; it has been logged")


_DOMAIN = "aemos"
_DETAILS_KEY = "grpc-status-details-bin"
_MOST_TEXT, _MOST_FIELDS = 500, 3_000
"""Bytes of a sentence, and of all fields at fault: who calls takes 8 KiB of metadata, or the call fails otherwise."""


def cut(text: str) -> str:
    """A sentence that is not too long for a call's metadata."""
    data = text.encode(errors="replace")
    return text if len(data) <= _MOST_TEXT else data[:_MOST_TEXT].decode(errors="ignore") + "…"


def to_grpc_trailers(error: AemosError) -> tuple[tuple[str, bytes], ...]:
    """The error as google.rpc.Status (the rich error model of gRPC), to send beside its status code.

    Of very many fields at fault the first are named.
    """
    status = status_pb2.Status(code=int(error.kind.answers.grpc.value[0]), message=cut(error.detail))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata={"kind": error.kind.value})
    status.details.add().Pack(info)
    if error.errors:
        bad = error_details_pb2.BadRequest()
        for wrong in error.errors:
            bad.field_violations.add(field=cut(wrong.loc), description=cut(wrong.message))
            if bad.ByteSize() > _MOST_FIELDS:
                break
        status.details.add().Pack(bad)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(error.retry_after)
        status.details.add().Pack(retry)
    return ((_DETAILS_KEY, status.SerializeToString()),)


# Of two kinds with one code, the later row is the nearer.
_KIND_OF_CODE = {row.grpc: kind for kind, row in TABLE.items()} | {
    _C.DEADLINE_EXCEEDED: Kind.UNAVAILABLE,
    _C.CANCELLED: Kind.UNAVAILABLE,
}


def from_grpc(error: grpc.aio.AioRpcError) -> AemosError:
    """The error that the other side meant; without our details, the nearest kind and no text of the other side's."""
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return _from_status(status_pb2.Status.FromString(value))
    kind = _KIND_OF_CODE.get(error.code(), Kind.INTERNAL)
    return AemosError(kind, "a service did not answer" if kind is Kind.UNAVAILABLE else kind.value)


def _from_status(status: status_pb2.Status) -> AemosError:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad, retry):
            detail.Unpack(message)
    return AemosError(
        Kind(info.metadata.get("kind", Kind.INTERNAL.value)),
        status.message,
        reason=info.reason,
        errors=[FieldError(v.field, v.description) for v in bad.field_violations],
        retry_after=retry.retry_delay.seconds or None,
    )
