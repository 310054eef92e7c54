"""The contract at run time: every method with its access and its REST mapping, read from the descriptors."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import aemos.v1
from aemos.v1 import options_pb2
from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

Access = options_pb2.Access
AccessValue: TypeAlias = "options_pb2.Access.ValueType"


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `path` is its gRPC name; `verb` and `route` are empty when it is not offered as REST."""

    path: str
    service: str
    name: str
    access: AccessValue
    verb: str
    route: str
    has_body: bool
    request: type[Message]
    response: type[Message]


@cache
def methods() -> dict[str, Method]:
    """Every method of the contract by its gRPC path; RuntimeError when one does not declare its access."""
    found = {}
    for service in _services():
        for descriptor in service.methods:
            method = _method(service, descriptor)
            found[method.path] = method
    return found


def _services() -> list[ServiceDescriptor]:
    names = sorted(m.name for m in pkgutil.iter_modules(aemos.v1.__path__) if m.name.endswith("_pb2"))
    files = [importlib.import_module(f"aemos.v1.{name}").DESCRIPTOR for name in names]
    return [service for file in files for service in file.services_by_name.values()]


def _method(service: ServiceDescriptor, descriptor: MethodDescriptor) -> Method:
    options = descriptor.GetOptions()
    access = options.Extensions[options_pb2.access]
    if access == Access.ACCESS_UNSPECIFIED:
        raise RuntimeError(f"{descriptor.full_name} does not declare its access")
    rule = options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern") or ""
    return Method(
        path=f"/{service.full_name}/{descriptor.name}",
        service=service.full_name,
        name=descriptor.name,
        access=access,
        verb=verb.upper(),
        route=getattr(rule, verb) if verb else "",
        has_body=bool(rule.body),
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
    )
