"""Traces: which readings get one, what carries it, and where spans go.

A kept span costs about 68 us of CPU and a dropped one 10 us, so what is not sampled makes no span object at all:
`start_trace` answers None, and everything behind it asks for a carried context before it makes a span.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from aemos_core.settings import ServiceSettings
from aemos_core.span_file import RotatingFileExporter

SPAN_RECEIVE: Final = "receive reading"
SPAN_WRITE: Final = "write readings"
SPAN_COMMIT: Final = "commit readings"
SPAN_JOB: Final = "evaluate readings"
SPAN_RUN: Final = "run chain"
SPAN_PUBLISH: Final = "publish notification"
SPAN_EMIT: Final = "emit notification"

SCHEDULES_LATE: Final = "aemos.schedules.late"
"""Counter: runs that were fired more than 5 s after their time."""
_METRICS_MS: Final = 10_000

MAX_LINKS: Final = 32
NO_CONTEXT: Final = b""
"""The carried context of what is not sampled."""

Attributes = Mapping[str, str | int]

_tracer = trace.get_tracer("aemos")


class _NewTraces:
    """At most so many new traces a second, spent as they come; 0.1: one in ten seconds."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = time.monotonic()

    def take(self) -> bool:
        before, self._at = self._at, time.monotonic()
        self._left = min(max(1.0, self._per_second), self._left + (self._at - before) * self._per_second)
        if self._left < 1:
            return False
        self._left -= 1
        return True


_new_traces = _NewTraces(0)


@contextmanager
def exporting(service: str, settings: ServiceSettings) -> Iterator[None]:
    """Sends spans to the collector, or to files under `trace_dir`, and counters to the collector, until the end."""
    global _tracer, _new_traces
    exporter = _exporter(service, settings)
    if exporter is None:
        yield
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    _tracer, _new_traces = provider.get_tracer("aemos"), _NewTraces(settings.traces_per_second)
    meters = _meters(service, settings)
    try:
        yield
    finally:
        provider.shutdown()
        if meters is not None:
            meters.shutdown()


def _meters(service: str, settings: ServiceSettings) -> Any:
    if not settings.otlp_endpoint:
        return None
    insecure = not settings.otlp_endpoint.startswith("https")
    otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.metric_exporter")
    sdk = importlib.import_module("opentelemetry.sdk.metrics")
    reading = importlib.import_module("opentelemetry.sdk.metrics.export")
    exporter = otlp.OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=5)
    reader = reading.PeriodicExportingMetricReader(exporter, export_interval_millis=_METRICS_MS)
    provider = sdk.MeterProvider([reader], Resource.create({"service.name": service}), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider


def count(name: str, number: int) -> None:
    """Adds to a counter of this process."""
    _counter(name).add(number)


@cache
def _counter(name: str) -> metrics.Counter:
    return metrics.get_meter("aemos").create_counter(name)


def _exporter(service: str, settings: ServiceSettings) -> SpanExporter | None:
    if settings.otlp_endpoint:
        insecure = not settings.otlp_endpoint.startswith("https")
        # It takes half a second to import, and most processes on a developer's machine never need it.
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
        exporter: SpanExporter = otlp.OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=5)
        return exporter
    return RotatingFileExporter(Path(settings.trace_dir), service) if settings.trace_dir else None


def start_trace(name: str, attributes: Attributes) -> Span | None:
    """A root span, or None when this second's new traces are spent. End it yourself."""
    if not _new_traces.take():
        return None
    return _tracer.start_span(name, context=Context(), kind=SpanKind.SERVER, attributes=attributes)


def carry(span: Span | None) -> bytes:
    """What travels with a sampled reading: trace id and span id, 24 bytes; empty for None."""
    if span is None:
        return NO_CONTEXT
    context = span.get_span_context()
    return context.trace_id.to_bytes(16) + context.span_id.to_bytes(8)


def trace_id_of(carried: bytes) -> str:
    """The trace id as hex, empty when nothing is carried."""
    return carried[:16].hex()


def _span_context(carried: bytes) -> SpanContext:
    return SpanContext(
        int.from_bytes(carried[:16]), int.from_bytes(carried[16:24]), is_remote=True, trace_flags=TraceFlags(1)
    )


@contextmanager
def child(name: str, carried: bytes, attributes: Attributes | None = None) -> Iterator[Span | None]:
    """A span under a carried context; nothing at all when nothing is carried."""
    if not carried:
        yield None
        return
    parent = trace.set_span_in_context(NonRecordingSpan(_span_context(carried)), Context())
    with _tracer.start_as_current_span(name, context=parent, attributes=attributes) as span:
        yield span


@contextmanager
def batch(name: str, carried: Iterable[bytes], size: int) -> Iterator[Span | None]:
    """A span for a batch of `size`: the child of its only member, else a trace of its own linked to sampled members."""
    sampled = [c for c in carried if c][:MAX_LINKS]
    if not sampled:
        yield None
    elif size == 1:
        with child(name, sampled[0], {"batch.size": 1}) as span:
            yield span
    else:
        links = [Link(_span_context(c)) for c in sampled]
        attributes = {"batch.size": size}
        with _tracer.start_as_current_span(name, context=Context(), links=links, attributes=attributes) as span:
            yield span


def current() -> bytes:
    """The carried context of the span we are in; empty when there is none."""
    span = trace.get_current_span()
    return carry(span) if span.get_span_context().is_valid else NO_CONTEXT


@contextmanager
def ending(span: Span | None) -> Iterator[None]:
    """Makes a span from `start_trace` current, and ends it with the block."""
    if span is None:
        yield
        return
    with trace.use_span(span, end_on_exit=True):
        yield
