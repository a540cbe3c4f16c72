"""Ray's own autoscaler, whose nodes are processes on this machine: it adds nodes for actors that wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from own_cluster import free_port, started_cluster
from running import ROOT

WORDS = ("--model", "demo", "--tokens", "4", "--steps", "1500", "--swaps", "0", "--shards-at-once", "1")
MAX_WORKERS = 1
COUNT_NODES = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"


@pytest.mark.slow
def test_a_cluster_grows_for_an_actor_that_waits(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps(autoscaler(f"127.0.0.1:{port}")))
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    words = ("--actors", "2", "--min-actors", "1", "--cpus-per-actor", "1", "--output", str(tmp_path / "out"), *WORDS)
    with started_cluster(tmp_path, f"--autoscaling-config={config}", cpus=1, port=port) as address:
        done = python(address, "-m", "jobs.caption", "--input", *scene_tars, *words)
        after = python(address, "-c", COUNT_NODES, address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(tmp_path / "out").num_rows == 12
    assert after.stdout.split() == [str(1 + MAX_WORKERS)], after.stderr


def autoscaler(address: str) -> dict[str, object]:
    """The configuration of a head and up to one worker, of one core each."""
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
    node = {"resources": {"CPU": 1}, "node_config": {}}
    types = {
        "ray.head.default": {**node, "max_workers": 0},
        "worker": {**node, "min_workers": 0, "max_workers": MAX_WORKERS},
    }
    return {
        "cluster_name": "fake",
        "max_workers": MAX_WORKERS,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
        **{f"{part}setup_commands": [] for part in ("", "head_", "worker_")},
        **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
        "file_mounts_sync_continuously": False,
    }


def python(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, *words]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
