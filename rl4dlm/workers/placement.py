"""Who runs where: the Ray session, the reservation of resources, waits that say what they wait for."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl4dlm.errors import ClusterError, RunError
from rl4dlm.learner.protocols import Say
from rl4dlm.recipe.sections import ClusterConfig

SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Seat:
    """A place for one actor: a bundle of a placement group, and what the actor takes of it."""

    group: PlacementGroup
    bundle: int
    num_cpus: float
    num_gpus: float

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `Actor.options`."""
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=self.bundle
        )
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "scheduling_strategy": strategy}


@dataclass(frozen=True)
class Placement:
    """Seats of a run, and its reservation."""

    group: PlacementGroup
    trainers: tuple[Seat, ...]
    rollouts: tuple[Seat, ...]
    rewards: tuple[Seat, ...]

    def describe(self) -> list[str]:
        """One line per kind of worker: how many, with what, on which nodes."""
        nodes = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}

        def line(kind: str, seats: Sequence[Seat]) -> str:
            where = sorted({f"{addresses.get(nodes[s.bundle], '?')} ({nodes[s.bundle][:6]})" for s in seats})
            each = f"{seats[0].num_cpus:g} CPU" + (
                f", {seats[0].num_gpus:g} GPU" if seats[0].num_gpus else ""
            )
            return f"{len(seats)} {kind} ({each} each) on {', '.join(where)}"

        kinds = {
            "trainer rank(s)": self.trainers,
            "rollout worker(s)": self.rollouts,
            "reward worker(s)": self.rewards,
        }
        return [line(kind, seats) for kind, seats in kinds.items() if seats]

    def remove(self) -> None:
        """Give the reservation back."""
        remove_placement_group(self.group)


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every worker process: thread counts, no telemetry, no hub traffic beyond what is
    asked."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextmanager
def ray_session(cluster: ClusterConfig, say: Say) -> Iterator[None]:
    """Join the cluster that the recipe names, or start a local one that ends with the block.

    A cluster that was joined is left running; a local one is never shared and never touches another.

    Raises:
        ClusterError: the address does not answer, or a cluster lacks what the recipe asks for.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        yield
        return
    say("joining the Ray cluster" if cluster.address else "starting a local Ray cluster")
    try:
        if cluster.address:
            _require_listener(cluster.address)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, cpus_needed(cluster)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cluster.address = {cluster.address!r}: no Ray cluster could be reached or started: {error}.\n"
            "Fix: start one with `ray start --head`, or leave cluster.address out for a local one."
        ) from error
    try:
        check_resources(cluster, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes; a port that nobody listens on is known in seconds.

    Raises:
        ConnectionError: nothing answers at `host:port` or `ray://host:port`. `auto` is left to Ray.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers at {host}:{port} ({error.strerror or error})") from error


def cpus_needed(cluster: ClusterConfig) -> int:
    """CPUs that the run reserves. On one machine they may exceed the cores: colocated workers take turns."""
    return int(sum(bundle.get("CPU", 0) for bundle in bundles(cluster)) + 0.999)


def check_resources(cluster: ClusterConfig, available: dict[str, float]) -> None:
    """Refuse a reservation that the cluster can never fulfil.

    Raises:
        ClusterError: naming the resource, how much is asked for, how much there is, and the keys to change.
    """
    need: dict[str, float] = {}
    for bundle in bundles(cluster):
        for name, amount in bundle.items():
            need[name] = need.get(name, 0.0) + amount
    keys = {
        "GPU": "cluster.gpus_per_trainer, cluster.gpus_per_rollout_worker or the numbers of workers",
        "CPU": "cluster.cpus_per_worker or the numbers of workers",
    }
    for name, amount in need.items():
        have = available.get(name, 0.0)
        if amount <= have + 1e-6:
            continue
        if name in keys:
            raise ClusterError(
                f"the recipe asks for {amount:g} {name} and the cluster has {have:g}.\n"
                f"Fix: lower {keys[name]}, or add nodes."
            )
        raise ClusterError(
            f"no node carries the resource {name} (cluster.trainer_resource or cluster.rollout_resource).\n"
            f"Fix: start nodes with `ray start --resources='{{\"{name}\": 1}}'`, or leave that key out."
        )


def bundles(cluster: ClusterConfig) -> list[dict[str, float]]:
    """The reservation, bundle by bundle: trainers (with their colocated rollout workers), rollouts,
    rewards."""
    cpu, tiny = cluster.cpus_per_worker, 1e-3
    trainer: dict[str, float] = {"CPU": cpu}
    rollout: dict[str, float] = {"CPU": cpu}
    if cluster.trainer_resource:
        trainer[cluster.trainer_resource] = tiny
    if cluster.rollout_resource:
        rollout[cluster.rollout_resource] = tiny
    if cluster.gpus_per_trainer:
        trainer["GPU"] = cluster.gpus_per_trainer
    if cluster.gpus_per_rollout_worker:
        rollout["GPU"] = cluster.gpus_per_rollout_worker
    reward = {"CPU": 0.1}
    if cluster.placement == "separate":
        plan = [trainer] * cluster.num_trainers + [rollout] * cluster.num_rollout_workers
    else:
        shared = dict(trainer)
        if "GPU" in trainer or "GPU" in rollout:
            shared["GPU"] = trainer.get("GPU", 0.0) + rollout.get("GPU", 0.0)
        extra = max(0, cluster.num_rollout_workers - cluster.num_trainers)
        plan = [shared] * min(cluster.num_trainers, cluster.num_rollout_workers)
        plan += [trainer] * (cluster.num_trainers - len(plan)) + [rollout] * extra
    return [dict(bundle) for bundle in plan + [reward] * cluster.num_reward_workers]


def reserve(cluster: ClusterConfig, say: Say) -> Placement:
    """Reserve the run's resources, saying what is awaited, and hand out the seats.

    Raises:
        ClusterError: not granted within `cluster.start_timeout_s`.
    """
    plan = bundles(cluster)
    group = placement_group(plan, strategy="PACK")
    started = time.monotonic()
    while not group.wait(timeout_seconds=min(5, cluster.start_timeout_s)):
        waited = time.monotonic() - started
        say(
            f"waiting for {len(plan)} bundles ({_total(plan)}), {waited:.0f} s of "
            f"{cluster.start_timeout_s:.0f} s"
        )
        if waited > cluster.start_timeout_s:
            remove_placement_group(group)
            raise ClusterError(
                f"the cluster did not grant {_total(plan)} within cluster.start_timeout_s = "
                f"{cluster.start_timeout_s:g} s; free now: {_free()}.\n"
                "Fix: wait for other jobs, lower cluster.num_* or add nodes."
            )
    return Placement(group, *_seats(cluster, group))


def _seats(cluster: ClusterConfig, group: PlacementGroup) -> tuple[tuple[Seat, ...], ...]:
    trainers, rollouts = cluster.num_trainers, cluster.num_rollout_workers
    colocated = cluster.placement == "colocated"
    first_rollout = 0 if colocated else trainers
    first_reward = max(trainers, rollouts) if colocated else trainers + rollouts
    cpu = cluster.cpus_per_worker
    # Colocated workers take turns on one CPU reservation, so each claims half of it.
    shares = [
        0.5 if colocated and i < min(trainers, rollouts) else 1.0 for i in range(max(trainers, rollouts))
    ]
    return (
        tuple(Seat(group, i, cpu * shares[i], cluster.gpus_per_trainer) for i in range(trainers)),
        tuple(
            Seat(group, first_rollout + i, cpu * shares[i], cluster.gpus_per_rollout_worker)
            for i in range(rollouts)
        ),
        tuple(Seat(group, first_reward + i, 0.1, 0) for i in range(cluster.num_reward_workers)),
    )


def _total(plan: Sequence[dict[str, float]]) -> str:
    names = sorted({name for bundle in plan for name in bundle})
    return ", ".join(f"{sum(bundle.get(name, 0) for bundle in plan):g} {name}" for name in names)


def _free() -> str:
    free = ray.available_resources()
    return ", ".join(f"{free[name]:g} {name}" for name in sorted(free) if name in ("CPU", "GPU")) or "nothing"


class WaitedTooLong(RunError):
    """What was waited for did not come in time."""


def wait_all(refs: Sequence[ray.ObjectRef], what: str, timeout_s: float, say: Say) -> list[Any]:
    """`ray.get` that speaks every ten seconds and has a bound.

    Args:
        refs: results to wait for.
        what: what is awaited, for messages: "2 trainer ranks to start".
        timeout_s: seconds until it is given up.

    Raises:
        WaitedTooLong: not all ready in time.
        ray.exceptions.RayError: a worker failed or died.
    """
    started = last_said = time.monotonic()
    pending = list(refs)
    while pending:
        left = max(0.0, started + timeout_s - time.monotonic())
        ready, pending = ray.wait(pending, num_returns=1, timeout=min(SAY_EVERY_S, left))
        ray.get(ready)  # a dead worker must be heard of before the others are waited for
        now, done = time.monotonic(), len(refs) - len(pending)
        if pending and now - started >= timeout_s:
            raise WaitedTooLong(f"{what}: {done} of {len(refs)} ready after {now - started:.0f} s; given up.")
        if pending and now - last_said >= SAY_EVERY_S:
            say(f"waiting for {what}: {done} of {len(refs)} ready after {now - started:.0f} s")
            last_said = now
    return ray.get(list(refs))
