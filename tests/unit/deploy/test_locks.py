"""What images install is what was tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]


def _locked(path: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]*\])?==([^\s;]+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_images_install_versions_that_tests_ran_with() -> None:
    """The images' lock is a part of the other one."""
    assert _locked("deploy/requirements.lock").items() < _locked("requirements.lock").items()


def test_images_have_all_that_services_ask_for() -> None:
    """Who adds a dependency and forgets `make lock` hears it here, not from a crashing container."""
    locked = _locked("deploy/requirements.lock")
    for path in [*ROOT.glob("services/*/pyproject.toml"), *ROOT.glob("libs/aemos_core/pyproject.toml")]:
        for text in tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]:
            name = canonicalize_name(Requirement(text).name)
            assert name in locked or name.startswith("aemos-"), (path.parent.name, name)
