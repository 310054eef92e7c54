"""Facts about `aemos up` itself."""

from __future__ import annotations

from pathlib import Path

from tests.support.stack import running


def test_seeding_may_be_interrupted_and_may_make_no_device(tmp_path: Path) -> None:
    """After a start that ended before its demo organization was complete the next makes another one."""
    with running(tmp_path, AEMOS_DEMO_DEVICES="0") as stack:
        first = stack.demo["login"]
        assert stack.demo["devices"] == []
    for name in ("seeded.json", "demo.json"):
        (tmp_path / name).unlink()
    with running(tmp_path, AEMOS_DEMO_DEVICES="1") as stack:
        assert stack.demo["login"] != first
        assert stack.send(26)[0] == 201
