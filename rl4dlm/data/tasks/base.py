"""What procedural tasks share: the split by key, and instances as a function of (seed, split, index)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import DataError

Split = Literal["train", "eval"]

EVAL_UID = 2**40
"""First uid of evaluation rows, of tasks and datasets alike; training rows count from 0."""

EVAL_SHARE = 5
"""One key in `EVAL_SHARE` belongs to evaluation."""

MAX_DRAWS = 10_000
"""Draws without a usable instance after which a split counts as empty or used up."""


@dataclass(frozen=True)
class Instance:
    """One problem of a task.

    Example: `Instance(uid=0, prompt="872744=", answer="244778", columns={"answer": "244778"})`.
    """

    uid: int
    """Index within its split; evaluation instances count from `EVAL_UID`."""
    prompt: str
    answer: str
    """An answer that earns full reward."""
    columns: Mapping[str, Any]
    """What reward functions need; contains `answer`."""


@dataclass(frozen=True)
class Draft:
    """A drawn problem before it is known which split it belongs to."""

    key: str
    """What train and evaluation may not share; the same problem in another order has the same key."""
    prompt: str
    answer: str
    columns: Mapping[str, Any]


def split_of(task: str, key: str) -> Split:
    """The split that owns a key: a hash of task name and key, whatever the seed and the difficulty settings.

    So a model trained at one seed and difficulty meets no evaluation key of any other.
    """
    return "eval" if derive_seed("split", task, key) % EVAL_SHARE == 0 else "train"


class Task(ABC):
    """A source of problems and of mediocre demonstrations; the key of a problem decides its split."""

    name: ClassVar[str]
    key_name: ClassVar[str]
    """What a key is, for people: `digit multiset`."""
    remedy: ClassVar[str]
    """Settings that make the space of instances larger."""
    characters: str
    """Every character that a prompt or an answer may hold, each once, sorted."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # Evaluation instances are drawn in order, each unlike those before it; kept to save time.
        self._eval: list[Instance] = []
        self._eval_prompts: set[str] = set()
        self._eval_rng = Random(derive_seed(seed, "task", self.name, "eval"))

    def instance(self, split: Split, index: int) -> Instance:
        """The instance at `index` (from 0) of a split: a pure function of (seed, split, index).

        Evaluation prompts are distinct; training prompts may repeat, as draws from a finite space do.

        Raises:
            DataError: the settings leave this split without the instance that was asked for.
        """
        if split == "train":
            rng = Random(derive_seed(self._seed, "task", self.name, "train", index))
            return self._draw_until_it_fits("train", index, rng)
        while len(self._eval) <= index:
            instance = self._draw_until_it_fits("eval", len(self._eval), self._eval_rng, self._eval_prompts)
            self._eval.append(instance)
            self._eval_prompts.add(instance.prompt)
        return self._eval[index]

    def demonstration(self, index: int, split: Split = "train") -> tuple[str, str]:
        """Prompt and completion of instance `index` of a split, by a demonstrator who is often wrong.

        The warm start of a run imitates these; what it lacks is left for RL to find.
        """
        instance = self.instance(split, index)
        path = (index,) if split == "train" else (split, index)
        rng = Random(derive_seed(self._seed, "demonstration", self.name, *path))
        return instance.prompt, self._demonstrate(instance, rng)

    def _draw_until_it_fits(
        self, split: Split, index: int, rng: Random, taken: Collection[str] = ()
    ) -> Instance:
        for _ in range(MAX_DRAWS):
            draft = self._draw(rng)
            if draft and draft.prompt not in taken and split_of(self.name, draft.key) == split:
                uid = index if split == "train" else EVAL_UID + index
                return Instance(uid, draft.prompt, draft.answer, draft.columns)
        found = (
            f"no {split} instance"
            if split == "train" or not index
            else f"only {index} distinct eval instances"
        )
        advice = " or lower eval.num_prompts" if split == "eval" and index else ""
        raise DataError(
            f"data.task: {self.name} with these settings has {found} ({MAX_DRAWS} draws gave no other).\n"
            f"Fix: {self.remedy}{advice}."
        )

    @abstractmethod
    def _draw(self, rng: Random) -> Draft | None:
        """A problem, or None where the numbers drawn make none."""

    @abstractmethod
    def _demonstrate(self, instance: Instance, rng: Random) -> str:
        """What a mediocre demonstrator answers."""
