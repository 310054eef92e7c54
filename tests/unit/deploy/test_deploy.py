"""Facts about the deployment: manifests are valid and agree with settings, images and the Tiltfile."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import starlark
import yaml
from aemos_client.settings_page import settings_class

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent
PATH = f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}"
OVERLAYS = ["base", "overlays/dev"]
SERVICES = {"gateway", "ingest", "rules", "scheduler", "notify"}
WORKERS = {"rules-worker", "notify-worker"}
OWNERS = SERVICES - {"gateway"}
TILT_FUNCTIONS = ["docker_build_with_restart", "fall_back_on", "sync", "kustomize", "k8s_yaml", "k8s_resource"]

Manifest = dict[str, Any]
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def run(*command: str) -> str:
    """Output of a tool of the virtual environment; AssertionError with what it says when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def rendered(folder: str) -> list[Manifest]:
    """The objects of a kustomization under deploy/k8s."""
    return list(yaml.safe_load_all(run("kubectl", "kustomize", str(DEPLOY / "k8s" / folder))))


def of_kind(kind: str, folder: str = "overlays/dev") -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in rendered(folder) if m["kind"] == kind}


def pod(deployment: Manifest) -> Manifest:
    spec: Manifest = deployment["spec"]["template"]["spec"]
    return spec


def containers(folder: str = "overlays/dev") -> Iterator[tuple[str, Manifest]]:
    """(deployment, container) of ours, those that run before the service too."""
    for name, deployment in of_kind("Deployment", folder).items():
        for container in (*pod(deployment)["containers"], *pod(deployment).get("initContainers", ())):
            yield name, container


def environment(container: Manifest, folder: str = "overlays/dev") -> dict[str, str]:
    """The variables that a container gets from the ConfigMap and the Secrets that it names."""
    sources = {name: m["data"] for name, m in of_kind("ConfigMap", folder).items()}
    for name, secret in of_kind("Secret", folder).items():
        sources[name] = {k: base64.b64decode(v).decode() for k, v in secret["data"].items()}
    found: dict[str, str] = {v["name"]: v.get("value", "") for v in container.get("env", ())}
    for source in container["envFrom"]:
        (reference,) = source.values()
        found |= sources[reference["name"]]
    return found


@cache
def tilt_calls() -> list[Call]:
    """Evaluates the Tiltfile with stubs and gives its calls, in order; a stub returns its own call."""
    calls: list[Call] = []

    def stub(name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return [name, *args]

        return called

    dialect = starlark.Dialect.extended()
    dialect.enable_load = True
    extension, module = starlark.Module(), starlark.Module()
    for name in TILT_FUNCTIONS:
        module.add_callable(name, stub(name))
    extension.add_callable(TILT_FUNCTIONS[0], stub(TILT_FUNCTIONS[0]))
    files = {"ext://restart_process": extension.freeze()}
    code = starlark.parse("Tiltfile", (ROOT / "Tiltfile").read_text(), dialect)
    starlark.eval(module, code, starlark.Globals.standard(), starlark.FileLoader(files.__getitem__))
    return calls


def calls_of(function: str) -> list[Call]:
    return [call for call in tilt_calls() if call[0] == function]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifests_are_valid(folder: str) -> None:
    """Every object keeps to the schema of Kubernetes, with no field that it does not know."""
    for manifest in rendered(folder):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_everything_is_there(folder: str) -> None:
    """Each service and each worker is deployed, and each service can be called by its name."""
    assert set(of_kind("Deployment", folder)) == SERVICES | WORKERS
    assert set(of_kind("Service", folder)) >= SERVICES
    assert {m["metadata"].get("namespace", "aemos") for m in rendered(folder)} == {"aemos"}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_variables_are_known(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every AEMOS_ variable that a process gets is a setting it reads, and its value is a valid one."""
    for name, container in containers(folder):
        cls = settings_class(name.removesuffix("-worker"))
        given = {k: v for k, v in environment(container, folder).items() if k.startswith("AEMOS_")}
        assert given.keys() <= {f"AEMOS_{field.upper()}" for field in cls.model_fields}, name
        for variable, value in given.items():
            monkeypatch.setenv(variable, value)
        assert cls().bind == "0.0.0.0"


def test_who_gets_the_database() -> None:
    """Owners and their workers get the database's URL, gateway does not; owners migrate before they start."""
    with_database = {name for name, c in containers() if "AEMOS_DATABASE_URL" in environment(c)}
    assert with_database == OWNERS | {"rules-worker", "notify-worker"}
    migrating = {name: c["image"] for name, c in containers() if c.get("args") == ["migrate"]}
    assert migrating == {owner: f"aemos/{owner}" for owner in OWNERS}
    urls = {environment(c).get("AEMOS_DATABASE_URL") for name, c in containers() if name != "gateway"}
    assert urls == {"mysql+asyncmy://aemos:aemos@mysql:3306/aemos_{service}"}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_targets_lead_to_services(folder: str) -> None:
    """The address of each service is a Service with that port, which leads to a container's port and its gRPC probe."""
    variables = environment(pod(of_kind("Deployment", folder)["gateway"])["containers"][0], folder)
    for service in OWNERS:
        host, port = variables[f"AEMOS_{service.upper()}_TARGET"].split(":")
        ports = {p["port"]: p["targetPort"] for p in of_kind("Service", folder)[host]["spec"]["ports"]}
        main = pod(of_kind("Deployment", folder)[service])["containers"][0]
        named = {p["name"]: p["containerPort"] for p in main["ports"]}
        assert named[ports[int(port)]] == int(port)
        assert settings_class(service).model_fields[f"{service}_grpc_port"].default == int(port)
        assert {main[probe]["grpc"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {int(port)}


def test_gateway_probes() -> None:
    """Kubernetes asks gateway over HTTP, on the port that it listens on."""
    main = pod(of_kind("Deployment")["gateway"])["containers"][0]
    assert {p["name"]: p["containerPort"] for p in main["ports"]} == {
        "http": 3000, "mqtt": 1883, "coap": 5683, "grpc": 50050
    }  # fmt: skip
    probes = {name: main[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert probes == {
        "readinessProbe": {"path": "/readyz", "port": "http"},
        "livenessProbe": {"path": "/livez", "port": "http"},
    }


def test_processes_are_confined() -> None:
    """No process is root, gains privileges, or writes to its file system; dev alone lets Tilt replace files."""
    for _, container in containers("base"):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"]
    for deployment in of_kind("Deployment", "base").values():
        assert pod(deployment)["securityContext"]["runAsNonRoot"]
        assert pod(deployment)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("folder", OVERLAYS)
def test_time_to_drain(folder: str) -> None:
    """Kubernetes waits longer than a process takes to finish its work."""
    for deployment in of_kind("Deployment", folder).values():
        drain = environment(pod(deployment)["containers"][0], folder)["AEMOS_DRAIN_SECONDS"]
        assert pod(deployment)["terminationGracePeriodSeconds"] >= float(drain) + 5


def test_redis_keeps_jobs() -> None:
    """The queue's Redis evicts nothing and writes everything down."""
    (redis,) = pod(of_kind("StatefulSet")["redis"])["containers"]
    options = dict(zip(redis["args"][::2], redis["args"][1::2], strict=True))
    assert (options["--maxmemory-policy"], options["--appendonly"]) == ("noeviction", "yes")


def test_tilt_builds_what_manifests_name() -> None:
    """Tilt deploys the dev overlay and builds exactly the images of its deployments, each for its own service."""
    builds = {args[0]: kwargs for _, args, kwargs in calls_of("docker_build_with_restart")}
    assert set(builds) == {container["image"] for _, container in containers()}
    for image, build in builds.items():
        service = image.removeprefix("aemos/")
        assert build["dockerfile"] == "deploy/Dockerfile"
        assert build["build_args"]["SERVICE"] == service
        assert build["entrypoint"] == ["python", "-m", f"aemos_{service}"]
        synced = {tuple(step[1:]) for step in build["live_update"] if step[0] == "sync"}
        assert synced == {("libs", "/app/libs"), (f"services/{service}", f"/app/services/{service}")}
        assert all((ROOT / source).is_dir() for source, _ in synced)
    assert calls_of("k8s_yaml")[0][1] == (["kustomize", "deploy/k8s/overlays/dev"],)


def test_tilt_forwards_every_tcp_port() -> None:
    """What listens on TCP in a deployment is forwarded to the developer's machine, and the workloads exist."""
    forwards = {args[0]: kwargs.get("port_forwards", []) for _, args, kwargs in calls_of("k8s_resource")}
    assert set(forwards) == set(of_kind("Deployment")) | set(of_kind("StatefulSet"))
    for name, deployment in of_kind("Deployment").items():
        ports = pod(deployment)["containers"][0].get("ports", ())
        assert set(forwards[name]) == {p["containerPort"] for p in ports if p.get("protocol", "TCP") == "TCP"}
    assert {p for ports in forwards.values() for p in ports} == {3000, 3001, 1883, *range(50050, 50055)}


def test_dockerfile_is_clean() -> None:
    """hadolint has nothing to say."""
    assert run("hadolint", str(DEPLOY / "Dockerfile")) == ""


def test_dockerfile_runs_the_service() -> None:
    """The image is not root's, starts Python as process 1, and finds code and migrations where they are copied."""
    text = (DEPLOY / "Dockerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[-1])
    assert entry[:2] == ["/bin/sh", "-c"]
    assert entry[2].startswith("exec python -m ")
    user = re.findall(r"^USER (\d+)", text, re.MULTILINE)[-1]
    assert {pod(d)["securityContext"]["runAsUser"] for d in of_kind("Deployment").values()} == {int(user)}
    copied = set(re.findall(r"^COPY --chown\S+ (\S+) /app/(\S+)$", text, re.MULTILINE))
    assert copied == {("libs", "libs"), ("services/${SERVICE}", "services/${SERVICE}")}
    search = re.findall(r"PYTHONPATH=(\S+)", text)[0].replace("/app/", "").replace("${SERVICE}", "scheduler")
    assert all((ROOT / folder).is_dir() for folder in search.split(":"))
