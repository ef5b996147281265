"""The files that set clusters up: as valid as their schemas tell, and safe by default."""

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conf" / "cluster"


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


def test_the_file_for_ray_up_is_of_rays_schema():
    # Ray settles when it is imported where it will listen; other tests start one in this process.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = load("ray.yaml")
    validate_config(tree)
    validate_config(prepare_config(tree))
    with pytest.raises(Exception, match="unexpected"):
        validate_config({**tree, "worker_count": 2})


def test_nodes_ask_for_the_token_and_the_dashboard_stays_on_loopback():
    tree = load("ray.yaml")
    for command in (tree["head_start_ray_commands"][-1], tree["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in tree["head_start_ray_commands"][-1]


def test_the_rayjob_has_what_kuberay_requires():
    tree = load("rayjob.yaml")
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayJob")
    cluster = tree["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert "rayStartParams" in group
        (container,) = group["template"]["spec"]["containers"]
        assert set(container) >= {"name", "image", "resources", "env"}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        names = {entry["name"] for entry in container["env"]}
        assert {"LYAPSWEEP_STORE", "LYAPSWEEP_OPTUNA"} <= names
        for entry in container["env"]:
            if entry["name"] in ("LYAPSWEEP_STORE", "LYAPSWEEP_OPTUNA"):
                assert set(entry["valueFrom"]) == {"secretKeyRef"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    volumes = {v["name"] for v in groups[0]["template"]["spec"]["volumes"]}
    mounts = {m["name"] for m in groups[0]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts <= volumes


def test_the_versions_named_are_those_that_are_pinned():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wheel = f"lyapsweep-{project['version']}-py3-none-any.whl"
    assert load("ray.yaml")["file_mounts"][f"~/{wheel}"] == f"./dist/{wheel}"
    assert f"$HOME/{wheel}[cluster,postgres]" in load("ray.yaml")["setup_commands"][-1]
    for name in ("Dockerfile", "ray.yaml"):
        assert f"torch=={pins['torch']}" in (FOLDER / name).read_text()
    assert f"torch=={pins['torch']}" in (ROOT / "docs" / "cluster.md").read_text()


def test_services_listen_on_loopback_and_know_no_password():
    tree = load("compose.yaml")
    for name, service in tree["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        if "image" in service:
            assert re.search(r":[^:]*\d", service["image"]), f"{name}: the version must be pinned"
        for other in service.get("depends_on", {}):
            assert other in tree["services"]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in tree["volumes"]
        for key, value in (service.get("environment") or {}).items():
            if "PASSWORD" in key or "SECRET" in key:
                assert value.startswith("${"), f"{name}: {key} must come from .env"


def test_what_the_files_and_the_runbook_call_exists():
    """Every `lyapsweep` command, every variable of ours, every file."""
    from pipeline import cli

    cli._add_commands()
    commands = {c.name or c.callback.__name__.rstrip("_") for c in cli.app.registered_commands}
    commands |= {group.name for group in cli.app.registered_groups}
    text = "\n".join(
        [(ROOT / "docs" / "cluster.md").read_text(), *(p.read_text() for p in FOLDER.iterdir())]
    )
    called = set(re.findall(r"(?:^ {4}|-- |'|\|\| )lyapsweep ([a-z]+)", text, re.MULTILINE))
    assert {"plan", "sweep", "status", "doctor", "resume", "report", "export"} <= called <= commands
    source = "\n".join(p.read_text() for p in (ROOT / "pipeline").rglob("*.py"))
    strings = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
    for name in set(re.findall(r"LYAPSWEEP_[A-Z]+", text)):
        assert name in strings, f"nothing reads {name}"
    for path in re.findall(r"(?:conf|docs|tests)/[\w/]+\.(?:yaml|md|py)", text):
        assert (ROOT / path).exists(), path
