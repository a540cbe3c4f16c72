"""What Prometheus reads from a node while a job runs."""

import json
import re
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from own_cluster import free_port, started_cluster
from running import ROOT

from jobs import caption, command
from pipeline.metrics import JobMetrics


class Noted:
    """Notes which metrics are made."""

    def __init__(self, name: str, **_: Any) -> None:
        self.made.append(name)

    def set(self, *_: Any) -> None:
        pass

    made: list[str]


def names(kind: str) -> list[str]:
    made: list[str] = []
    noted = type("Kind", (Noted,), {"made": made})
    other = type("Other", (Noted,), {"made": []})
    kinds = {name: noted if name == kind else other for name in ("Counter", "Gauge", "Histogram")}
    JobMetrics(SimpleNamespace(**kinds), {"learning": 1})
    return made


def test_the_dashboard_shows_metrics_that_are_exported() -> None:
    exported = {f"ray_{name}_total" for name in names("Counter")} | {f"ray_{name}" for name in names("Gauge")}
    exported |= {f"ray_{name}_{part}" for name in names("Histogram") for part in ("bucket", "sum", "count")}
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = {name for expression in expressions for name in re.findall(r"ray_pez_\w+", expression)}
    assert shown <= exported
    assert {name.removesuffix("_bucket") for name in shown} >= {"ray_pez_images_total", "ray_pez_unit_seconds"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray_cluster")
def test_a_scrape_holds_the_counts_of_the_reports(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(scene_tars[2]).write_bytes(Path(scene_tars[2]).read_bytes().replace(b"\x89PNG", b"\x89PNX", 1))
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    port = free_port()
    with started_cluster(tmp_path, f"--metrics-export-port={port}") as address:
        words = ["--input", *scene_tars, "--output", str(tmp_path / "out"), "--address", address, "--actors", "1"]
        monkeypatch.setattr(
            sys, "argv", ["pez", *words, "--model", "demo", "--tokens", "3", "--steps", "5", "--swaps", "0"]
        )
        with pytest.raises(SystemExit) as ended:
            command.run(caption.CaptionJob, None, caption.caption, "pez caption")
        assert ended.value.code == 0
        expected = 11.0
        deadline = time.monotonic() + 60
        while (found := scraped(port)).get("ray_pez_images_total") != expected and time.monotonic() < deadline:
            time.sleep(0.5)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "out" / "_reports").glob("*.json")]
    assert found["ray_pez_images_total"] == sum(report["ok"] for report in reports) == expected
    assert found["ray_pez_failures_total"] == 1
    assert found["ray_pez_units_total"] == found["ray_pez_unit_seconds_count"] == 3
    assert found["ray_pez_unit_similarity_count"] == 3
    mean = sum(report["mean_similarity"] * report["ok"] for report in reports) / expected
    assert found["ray_pez_mean_similarity"] == pytest.approx(mean)  # Ray's histograms know no exact sums
    assert found["ray_pez_units_left"] == 0


def scraped(port: int) -> dict[str, float]:
    """Values by name, summed over tags, as Prometheus reads them."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "pez_" in sample.name and not sample.name.endswith("_bucket"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
