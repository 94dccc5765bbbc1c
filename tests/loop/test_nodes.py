"""Two emulated nodes of a cluster that is not the run's: trainers on one, rollout workers on the other."""

from __future__ import annotations

from pathlib import Path

import launch
import pytest
import ray
from ray.cluster_utils import Cluster

from rl4dlm.loops.train import train
from rl4dlm.recipe import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Cluster:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 3, "resources": {"trainer": 1}, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=2, resources={"rollout": 1})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_trainers_and_rollout_workers_sit_on_the_nodes_that_the_recipe_names(
    cluster: Cluster, tmp_path: Path
) -> None:
    recipe = load_recipe(
        launch.write_recipe(tmp_path),
        [
            f"run.output_dir={tmp_path}",
            f"cluster.address={cluster.address}",
            "cluster.placement=separate",
            "cluster.trainer_resource=trainer",
            "cluster.rollout_resource=rollout",
            "cluster.num_rollout_workers=1",
            "trainer.max_steps=2",
            "warm_start.steps=20",
        ],
    )
    folder = train(recipe)
    placed = [row["text"] for row in launch.rows(folder.root / "events.jsonl") if "each) on" in str(row)]
    trainers = next(line for line in placed if "trainer rank" in line)
    rollouts = next(line for line in placed if "rollout worker" in line)
    assert "2 trainer rank(s)" in trainers and "1 rollout worker(s)" in rollouts
    nodes = {node["NodeID"][:6]: node["Resources"] for node in _alive(cluster)}
    assert "trainer" in nodes[_node_of(trainers)] and "rollout" in nodes[_node_of(rollouts)]
    assert _node_of(trainers) != _node_of(rollouts)
    assert (folder.model / "config.json").is_file()


def _alive(cluster: Cluster) -> list[dict]:
    """The nodes that are still there after the run left the cluster."""
    ray.init(address=cluster.address)
    alive = [node for node in ray.nodes() if node["Alive"]]
    assert len(alive) == 2
    return alive


def _node_of(line: str) -> str:
    return line.rpartition("(")[2].rstrip(")")
