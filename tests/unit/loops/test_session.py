"""A session: whatever fails on the way up leaves nothing behind, and a resume that fails loses nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4dlm.errors import CheckpointError, UpdateError
from rl4dlm.learner import local
from rl4dlm.learner.protocols import RankDied, Workers
from rl4dlm.loops import session as session_module
from rl4dlm.loops.finetune import finetune
from rl4dlm.loops.train import train
from rl4dlm.recipe import Recipe, SFTRecipe, load_recipe
from rl4dlm.run.folder import RunFolder
from rl4dlm.run.ownership import LOCK_FILE

pytestmark = pytest.mark.slow

TINY = (
    *("cluster.backend=local", "cluster.num_trainers=1", "cluster.num_rollout_workers=1"),
    *("trainer.zero_stage=0", "trainer.warmup_steps=0", "trainer.max_steps=3", "trainer.save_steps=1"),
    *("trainer.save_total_limit=9", "tracking.wandb=disabled", "tracking.console=plain"),
    *("model.init.d_model=16", "model.init.n_layers=1", "model.init.n_heads=2"),
    *("model.init.mlp_hidden_size=32", "eval.num_prompts=4", "eval.num_samples=1", "eval.steps=1"),
    "rollout.slots=16",
)
RL = ("rollout.prompts_per_update=2", "rollout.num_generations=4", "warm_start.steps=2")


def rl_recipe(output: Path, *overrides: str) -> Recipe:
    return load_recipe("quickstart", [*TINY, *RL, f"run.output_dir={output}", "run.name=run", *overrides])


def sft_recipe(output: Path, *overrides: str) -> SFTRecipe:
    settings = ["sft.batch_size=4", f"run.output_dir={output}", "run.name=run", *overrides]
    return load_recipe("sft/tiny_sort", [*TINY, *settings])


class Watched:
    """Stands before an object: counts it while it lives, and raises where it is told to."""

    def __init__(self, watch: Watch, name: str, inner: Any, ends: tuple[str, ...]) -> None:
        self._watch, self._name, self._inner, self._ends = watch, name, inner, ends
        watch.alive.append(name)

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._inner, method)
        if not callable(call):
            return call

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._watch.at(f"{self._name}.{method}")
            if method in self._ends and self._name in self._watch.alive:
                self._watch.alive.remove(self._name)
            return call(*args, **kwargs)

        return watched


class Watch:
    """What of a run is alive, and the call at which something breaks."""

    def __init__(self, breaks_at: str) -> None:
        self.alive: list[str] = []
        self._breaks_at = breaks_at
        self.broke = False

    def at(self, call: str) -> None:
        if call == self._breaks_at and not self.broke:
            self.broke = True
            raise RuntimeError(f"{call} broke")

    @contextmanager
    def workers(self, recipe: Any) -> Iterator[Callable[[Any], Any]]:
        """`this_process`, watched."""
        self.at("open")
        self.alive.append("place")

        @contextmanager
        def reserve(say: Any) -> Iterator[Workers]:
            self.at("reserve")
            self.alive.append("reservation")
            yield Hired(self, local.LocalWorkers(recipe))  # type: ignore[misc]
            self.alive.remove("reservation")

        try:
            yield reserve
        finally:
            self.alive.remove("place")
            if "reservation" in self.alive:
                self.alive.remove("reservation")


class Hired:
    def __init__(self, watch: Watch, inner: local.LocalWorkers) -> None:
        self._watch, self._inner = watch, inner

    def describe(self) -> list[str]:
        self._watch.at("describe")
        return self._inner.describe()

    def policy(self) -> Any:
        self._watch.at("policy")
        return Watched(self._watch, "policy", self._inner.policy(), ("kill",))

    def sampler(self, model_path: str) -> Any:
        self._watch.at("sampler")
        return Watched(self._watch, "sampler", self._inner.sampler(model_path), ("close",))

    def scorer(self, reward: Any) -> Any:
        self._watch.at("scorer")
        return Watched(self._watch, "scorer", self._inner.scorer(reward), ("close",))


BOTH = (
    *("open", "reserve", "describe", "policy", "policy.start", "policy.load", "scorer", "sampler"),
    *("sampler.wait_ready", "sampler.sync", "sampler.generate", "scorer.score", "policy.save"),
    *("policy.export", "policy.close", "policy.publish"),
)
CASES = [
    *((train, rl_recipe, place) for place in (*BOTH, "policy.sft", "policy.update", "policy.replay_gap")),
    *((finetune, sft_recipe, place) for place in (*BOTH, "policy.sft", "policy.held_out")),
]


@pytest.mark.parametrize(("run", "recipe_of", "place"), CASES)
def test_whatever_fails_leaves_nothing_alive_and_nothing_locked(
    run: Any, recipe_of: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(place)
    monkeypatch.setattr(session_module, "open_workers", lambda recipe, say: watch.workers(recipe))
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match=f"{place} broke"):
        run(recipe_of(tmp_path))
    assert watch.alive == [] and torch.get_num_threads() == threads
    folder = tmp_path / "run"
    assert not (folder / LOCK_FILE).exists()
    if place == "open":
        assert not folder.exists()
        return
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "failed" and f"{place} broke" in events[-1]["text"]
    assert f"{place} broke" in (folder / "log.txt").read_text()


def contents(folder: Path) -> dict[str, str]:
    """Digests of what a resume must not lose."""
    files = [*folder.glob("checkpoints/**/*"), *folder.glob("rollouts/*"), *folder.glob("model/*")]
    files += [folder / f"{name}.jsonl" for name in ("metrics", "evaluations", "samples")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three updates with a checkpoint of each."""
    output = tmp_path_factory.mktemp("finished")
    train(rl_recipe(output))
    return output


@pytest.mark.parametrize(
    "place",
    ["open", "reserve", "policy.load", "sampler.wait_ready", "policy.restore", "sampler.sync"]
    + ["sampler.generate", "scorer.score", "policy.replay_gap", "policy.update"],
)
def test_a_resume_from_an_earlier_update_that_fails_loses_nothing(
    place: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(finished / "run", tmp_path / "run")
    before, watch = contents(tmp_path / "run"), Watch(place)
    monkeypatch.setattr(session_module, "open_workers", lambda recipe, say: watch.workers(recipe))
    with pytest.raises(RuntimeError, match=f"{place} broke"):
        train(rl_recipe(tmp_path), resume=True, step=1)
    assert contents(tmp_path / "run") == before and watch.alive == []
    train(rl_recipe(tmp_path), resume=True, step=1)  # the same again goes through, bit-equal
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in after if name.startswith("model/")} == {
        name: before[name] for name in before if name.startswith("model/")
    }
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["update"] for row in rows] == [1, 2, 3]


def test_a_damaged_checkpoint_is_refused_before_anything_starts(finished: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished / "run", tmp_path / "run")
    weights = RunFolder(tmp_path / "run").checkpoints / "step_000002" / "engine" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="step_000002"):
        train(rl_recipe(tmp_path), resume=True, step=2)
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before


class Dies(local.LocalPolicy):
    """Loses a rank at its second update, as often as it is told to."""

    deaths = 1

    def update(self, batch: Any, update: int) -> Any:
        if update == 2 and Dies.deaths:
            Dies.deaths -= 1
            raise RankDied("a trainer rank died during update 2")
        return super().update(batch, update)


def test_ranks_that_die_are_started_again_and_change_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LocalPolicy", Dies)
    Dies.deaths = 1
    train(rl_recipe(tmp_path))
    names = [name for name in contents(finished / "run") if name.startswith("model/")]
    assert [contents(tmp_path / "run")[name] for name in names] == [
        contents(finished / "run")[name] for name in names
    ]
    assert "rebuilt" in (tmp_path / "run" / "events.jsonl").read_text()


def test_ranks_that_die_twice_at_one_update_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LocalPolicy", Dies)
    Dies.deaths = 2
    with pytest.raises(UpdateError, match="update 2: the trainer group died twice"):
        train(rl_recipe(tmp_path))
    assert RunFolder(tmp_path / "run").find().update == 1  # type: ignore[union-attr]
