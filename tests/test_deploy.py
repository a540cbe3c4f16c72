from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config


def test_the_cluster_file_is_one_that_ray_accepts() -> None:
    config = yaml.safe_load((Path(__file__).parent.parent / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    assert all("RAY_AUTH_MODE=token" in config[f"{role}_start_ray_commands"][-1] for role in ("head", "worker"))
