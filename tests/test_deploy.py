"""The files that start clusters are ones that Ray, Kubernetes, KubeRay, Docker and the shell accept."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from own_cluster import free_port
from ray.autoscaler._private.util import prepare_config, validate_config
from running import ROOT

import pez
from jobs import arguments
from jobs.caption import CaptionJob

TOOLS = Path(sys.executable).parent

# Fields of ray.io/v1 (KubeRay 1.5) that these files use, and their types; the whole schema is in KubeRay's Helm chart.
JOB = {
    **{"entrypoint": str, "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")},
    **{"shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int, "rayClusterSpec": dict},
}
CLUSTER = {
    **{"rayVersion": str, "authOptions": dict, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict},
    **{"headGroupSpec": dict, "workerGroupSpecs": list},
}
AUTOSCALER = {"upscalingMode": ("Default", "Aggressive", "Conservative"), "idleTimeoutSeconds": int}
HEAD = {"rayStartParams": dict, "template": dict}
WORKERS = {**HEAD, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}


def expect_fields(found: dict[str, Any], known: dict[str, Any]) -> None:
    for name, value in found.items():
        assert name in known, f"unknown field {name}"
        kind = known[name]
        assert value in kind if isinstance(kind, tuple) else isinstance(value, kind), f"{name} is {value!r}"


def loaded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text())
    return found


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = loaded(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def test_the_cluster_file_is_one_that_ray_accepts() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    assert all("RAY_AUTH_MODE=token" in config[f"{role}_start_ray_commands"][-1] for role in ("head", "worker"))


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("raycluster.yaml", "RayCluster")])
def test_kuberay_knows_every_field(name: str, kind: str) -> None:
    found = loaded(name)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", kind)
    if kind == "RayJob":
        expect_fields(found["spec"], JOB)
    cluster = cluster_of(name)
    expect_fields(cluster, CLUSTER)
    expect_fields(cluster["autoscalerOptions"], AUTOSCALER)
    expect_fields(cluster["authOptions"], {"mode": ("token",)})
    expect_fields(cluster["headGroupSpec"], HEAD)
    for group in cluster["workerGroupSpecs"]:
        expect_fields(group, WORKERS)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_kubernetes_accepts_every_pod(name: str) -> None:
    cluster = cluster_of(name)
    for template in [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, "1.30", strict=True)


def test_job_and_cluster_are_of_one_version_with_the_requirements() -> None:
    assert cluster_of("rayjob.yaml") == cluster_of("raycluster.yaml")
    cluster = cluster_of("rayjob.yaml")
    [ray] = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == ray
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {f"registry.example.com/pez-captions:{pez.__version__}"}


def test_the_command_of_the_job_is_one_that_pez_accepts() -> None:
    name, command, *words = shlex.split(loaded("rayjob.yaml")["spec"]["entrypoint"])
    assert (name, command) == ("pez", "caption")
    job = arguments.read(CaptionJob, "", "pez caption", words)
    workers = cluster_of("rayjob.yaml")["workerGroupSpecs"][0]
    assert (job.cluster.actors, job.cluster.min_actors) == (workers["maxReplicas"], workers["minReplicas"])
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (str(job.cluster.cpus_per_actor), job.cluster.gpus_per_actor) == (f"{limits['cpu']}.0", 1)


def test_the_image_of_workers_is_linted_and_has_pinned_requirements() -> None:
    lint = subprocess.run(
        [TOOLS / "hadolint", ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stdout
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "pip install --no-cache-dir -c constraints.txt" in text
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()} == kept
    assert all((ROOT / name).exists() for name in kept)


def test_the_script_for_slurm_is_linted() -> None:
    lint = subprocess.run(
        [TOOLS / "shellcheck", ROOT / "deploy" / "slurm.sbatch"], capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stdout


@pytest.mark.slow
@pytest.mark.alone  # `ray symmetric-run` wants a machine without a Ray
@pytest.mark.usefixtures("no_ray_cluster")
@pytest.mark.parametrize(("steps", "status"), [("2", 0), ("-1", 2)])
def test_the_script_for_slurm_runs_a_job_and_passes_its_status(tmp_path: Path, steps: str, status: int) -> None:
    """On an allocation of one node, whose `srun` and `scontrol` run here."""
    for name, line in (("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PATH": f"{tmp_path}:{TOOLS}:{environment['PATH']}", "PEZ_RAY_PORT": str(free_port())}
    environment |= {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "PYTHONPATH": str(ROOT)}
    words = ["--demo", "--output", str(tmp_path / "out"), "--tokens", "2", "--steps", steps, "--swaps", "0"]
    done = subprocess.run(
        [str(ROOT / "deploy" / "slurm.sbatch"), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists() == (status == 0)
