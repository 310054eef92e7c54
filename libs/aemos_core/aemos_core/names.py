"""Redis keys and channels that more than one service knows, declared once. A key has one owner, named beside it."""

from __future__ import annotations

DEVICE_STATE_CHANGE = "notifications:device-state-change"
"""Channel (rules, through the notification log): the JSON of `origin`, one notification a message."""

DEVICE_CONNECTIVITY = "device-connectivity"
"""Event (ingest): a device came or went."""

READINGS_COMMITTED = "readings:committed"
"""Channel (ingest): a serialized ReadingBatch after its commit, for live user interfaces."""

LATEST_READINGS = "readings:latest"
"""Key (ingest): hash of each variable's newest reading, by telemetry data id; what is missing is in the database."""

RETENTION_LEASES = "leases:retention"
"""Prefix of keys (ingest): which process deletes old readings."""

REGISTRY_CHANGED = "registry:changed"
"""Channel (ingest): a hint to ask ListRegistryChanges now; carries nothing."""

RULE_CHAINS_CHANGED = "rulechains:changed"
"""Channel (rules): a hint that chains or schedules changed; carries nothing."""

RULE_CHAINS_VERSION = "rulechains:version"
"""Key (rules): grows with each change of a chain, for those that missed the hint."""

NOTIFICATION_LOGS = "notification-logs"
"""Key (rules): the set of organization ids that have a notification log."""

READY_PROBE = "gateway:ready"
"""Key (gateway): written to see whether Redis takes writes; holds nothing."""


def rule_chain_index(sensor_uuid: str) -> str:
    """Key (rules): JSON list of the ids of the chains that judge a sensor, for one hour."""
    return f"rulechain:sensor:{sensor_uuid}"


def notification_log(organization_id: int) -> str:
    """Key (rules): the stream of an organization's notifications, 24 hours."""
    return f"notification-log:{organization_id}"


def notification_seen(uuid: str) -> str:
    """Key (rules): set while the notification with this uuid is in the log."""
    return f"notification-seen:{uuid}"


def outbox_receipts(relay_id: str) -> str:
    """Key (each relay its own): message ids of jobs that workers finished."""
    return f"outbox:receipts:{relay_id}"


def outbox_mark(name: str) -> str:
    """Key (each relay its own): there until Redis forgets, so that the relay notices."""
    return f"outbox:mark:{name}"


def device_room(device_uuid: str) -> str:
    """Socket.IO room of a device, by uuid."""
    return f"device-uuid-{device_uuid}"


def device_id_room(device_id: int) -> str:
    """Socket.IO room of a device, by id."""
    return f"device-{device_id}"


def sensor_room(sensor_uuid: str) -> str:
    """Socket.IO room of a sensor, by uuid."""
    return f"sensor-uuid-{sensor_uuid}"


def alarms_room(organization_id: int) -> str:
    """Socket.IO room of all alarms of an organization."""
    return f"alarms-{organization_id}"


def rule_chain_room(rule_chain_id: int) -> str:
    """Socket.IO room of a rule chain's runs."""
    return f"rule-chain-{rule_chain_id}"


def organization_room(organization_id: int) -> str:
    """Socket.IO room of everything in an organization; producers need not name it, it hears all of them."""
    return f"organization-{organization_id}"


def everybody_room(organization_id: int) -> str:
    """Room of every client of an organization, for `broadcastAll`; nobody can ask for it."""
    return f"everybody-{organization_id}"
