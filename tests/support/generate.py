"""Generates the contract's code; with --check, says whether what is committed is that, and lints the contract."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.api.annotations_pb2

ROOT = Path(__file__).resolve().parents[2]
# protoc finds its plugins, and we find buf, beside this Python.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
SITE = Path(google.api.annotations_pb2.__file__).parents[2]
MESSAGES = Path("libs/aemos_proto/aemos/v1")
DATACLASSES = Path("libs/aemos_client/aemos_client/contract")


def generate(root: Path) -> None:
    """Writes both packages below `root`."""
    protos = sorted(str(path) for path in (ROOT / "proto/aemos/v1").glob("*.proto"))
    messages, dataclasses = root / MESSAGES.parents[1], root / DATACLASSES
    for folder in (messages, dataclasses):
        folder.mkdir(parents=True, exist_ok=True)
    includes = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"-I{SITE}"]
    outputs = [f"--{kind}_out={messages}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    descriptors = ["--include_source_info", f"--descriptor_set_out={root / MESSAGES / 'contract.binpb'}"]
    sdk = [f"--python_betterproto2_out={dataclasses}", "--python_betterproto2_opt=client_generation=async"]
    for options in (outputs, descriptors, sdk):
        subprocess.run([*includes, *options, *protos], check=True, capture_output=True, timeout=120)
    for package in (messages / "aemos", messages / "aemos/v1"):
        (package / "__init__.py").write_text(
            '"""Generated code of the contract: change proto/ and run `make proto`."""\n', encoding="utf-8"
        )


def lint() -> None:
    """buf's rules on the contract; it wants the imported files beside it."""
    target = ROOT / ".build/googleapis/google/api"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("annotations.proto", "http.proto", "httpbody.proto"):
        shutil.copy(SITE / "google/api" / name, target)
    for command in (["buf", "lint"], ["buf", "format", "--diff", "--exit-code", "proto"]):
        subprocess.run(command, cwd=ROOT, check=True, timeout=120)


def differences(fresh: Path) -> list[str]:
    """Generated files that are not what is committed."""
    found = []
    for folder in (MESSAGES, DATACLASSES):
        for path in sorted((fresh / folder).rglob("*")):
            committed = ROOT / path.relative_to(fresh)
            if path.is_file() and not (committed.is_file() and filecmp.cmp(path, committed, shallow=False)):
                found.append(str(path.relative_to(fresh)))
    return found


def main() -> int:
    """Exit status: 1 when something differs."""
    if sys.argv[1:] != ["--check"]:
        generate(ROOT)
        return 0
    lint()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder))
    if stale:
        print(f"not up to date, run `make proto`: {', '.join(stale)}", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main())
