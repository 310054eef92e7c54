"""What keeps the shape: who imports whom, how large things are, what is never committed."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "ingest", "rules", "scheduler", "notify")
PURE = (
    "services/*/aemos_*/domain.py",
    *(
        f"services/rules/aemos_rules/{name}.py"
        for name in ("conditions", "engine", "graph", "literals", "run", "nodes/*")
    ),
    "services/gateway/aemos_gateway/readings.py",
    "services/ingest/aemos_ingest/intervals.py",
    "libs/aemos_core/aemos_core/cron.py",
    "libs/aemos_core/aemos_core/times.py",
    "libs/aemos_core/aemos_core/timing.py",
    "services/rules/aemos_rules/report.py",
)
IO = {"sqlalchemy", "redis", "grpc", "asyncio", "aiohttp", "httpx", "dramatiq", "socket", "socketio", "uvicorn"}


def sources() -> list[Path]:
    """Hand-written modules."""
    found = [*ROOT.glob("libs/aemos_c*/**/*.py"), *ROOT.glob("services/*/aemos_*/**/*.py")]
    return [path for path in found if "contract/" not in str(path)]


def imports(path: Path) -> Iterator[str]:
    """Top-level names of what a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("service", SERVICES)
def test_services_never_import_each_other(service: str) -> None:
    """They speak by gRPC and Redis only."""
    others = {f"aemos_{name}" for name in SERVICES if name != service}
    for path in ROOT.glob(f"services/{service}/**/*.py"):
        assert not others & set(imports(path)), path


def test_pure_modules_import_no_io() -> None:
    """The judge's core and the decoders can be tested without a clock, a store or a network."""
    paths = {path for pattern in PURE for path in ROOT.glob(pattern)}
    assert len(paths) > 5
    for path in paths:
        assert not IO & set(imports(path)), path


def test_nothing_grows_too_large() -> None:
    """A file has at most 400 lines, a wiring 120, a function 50."""
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= (120 if path.name == "wiring.py" else 400), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 50, (path, node.name)


def test_dependencies_have_reasons() -> None:
    """Every dependency outside the repository says in one line why it is there."""
    for path in [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]:
        block = re.search(r"dependencies = \[\n(.*?)\n\]", path.read_text(encoding="utf-8"), re.DOTALL)
        assert block, path
        for line in block[1].splitlines():
            assert '"aemos-' in line or "#" in line, (path, line)


def test_no_package_registry_is_named() -> None:
    """Where packages come from is each machine's own business."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    registries = re.compile("|".join(("files.python" + "hosted", "pypi" + r"\.org", "registry" + r"\.npmjs")))
    for name in files:
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        assert not registries.search(content.decode("utf-8", "ignore")), name
