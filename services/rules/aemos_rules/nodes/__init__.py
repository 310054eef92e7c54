"""What a node can be, by family: one class for each kind, registered by being defined."""

from __future__ import annotations

from . import actions, filters, remembering, scheduled, transforms, windows
from .registry import KINDS, NodeKind, make_node, node_types

__all__ = [
    "KINDS",
    "NodeKind",
    "actions",
    "filters",
    "make_node",
    "node_types",
    "remembering",
    "scheduled",
    "transforms",
    "windows",
]
