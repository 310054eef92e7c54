"""Installs what the tests need beside Python, where it may; says in one line what to install where it may not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NODE = Path(__file__).parent / "node"  # programs of the official Socket.IO client, and its packages
PACKAGES = {
    "mariadbd": "mariadb-server",
    "mosquitto_sub": "mosquitto-clients",
    "coap-client-notls": "libcoap3-bin",
    "curl": "curl",
    "node": "nodejs",
    "npm": "npm",
    "wrk": "wrk",
}


def missing() -> list[str]:
    """Debian packages whose command is not there."""
    path = os.environ["PATH"] + ":/usr/sbin"
    return [package for command, package in PACKAGES.items() if shutil.which(command, path=path) is None]


def main() -> int:
    """Exit status: 0 when everything is there."""
    packages = missing()
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "-y", "--no-install-recommends", "install"]):
            arguments = [*command, *packages] if "install" in command else command
            subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=600)
        packages = missing()
    if packages:
        print(f"the tests need these Debian packages: {' '.join(packages)}", file=sys.stderr)
        return 1
    if not (NODE / "node_modules" / "socket.io-client").exists():
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        return subprocess.run(command, cwd=NODE, check=False, timeout=180).returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
