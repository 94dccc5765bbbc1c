"""The over-denoising filter, without workers: verdicts are made up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rl4dlm.data import KeptPrompts, PromptSource, Renderer, TextFormat
from rl4dlm.errors import CheckpointError, DataError
from rl4dlm.run.over_denoising import over_denoised_prompts
from rl4dlm.types import Prompt


class Numbered(PromptSource):
    """Prompts whose uid is ten times their number."""

    def __init__(self, num_train: int | None = None) -> None:
        super().__init__(Renderer(TextFormat(None, lambda text: (0,))))
        self.num_train = num_train

    def batch(self, update: int, n: int) -> list[Prompt]:
        return [Prompt(10 * i, str(i), str(i), (i,)) for i in range(update * n, (update + 1) * n)]

    def eval_prompts(self, n: int | None = None) -> list[Prompt]:
        return [Prompt(-1, "held out", "held out", (0,))]


VERDICTS = {0: [1, 1, 0], 1: [0, 0, 1], 2: [0, 0, 0], 3: [1, 0, 1], 4: [0, 1, 0], 5: [0]}
"""Over-denoised are 0 and 4: right on the way, wrong in the end."""


class Judge:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.told: list[tuple[int, int]] = []

    def __call__(self, prompts: list[Prompt]) -> list[np.ndarray]:
        self.asked += [prompt.uid // 10 for prompt in prompts]
        return [np.array(VERDICTS[prompt.uid // 10], dtype=bool) for prompt in prompts]

    def tell(self, tried: int, kept: int) -> None:
        self.told.append((tried, kept))


def filtered(
    path, judge: Judge, num_prompts: int = 6, *, source=None, first_weights: bool = True
) -> list[int]:
    source = source or Numbered()
    return over_denoised_prompts(
        source, num_prompts, path, judge, judge.tell, batch=4, first_weights=first_weights
    )


def test_kept_are_prompts_that_are_right_on_the_way_and_wrong_in_the_end(tmp_path):
    judge = Judge()
    assert filtered(tmp_path / "verdicts.jsonl", judge) == [0, 4]
    assert judge.asked == [0, 1, 2, 3, 4, 5] and judge.told == [(4, 1), (6, 2)]


def test_no_more_prompts_are_tried_than_there_are(tmp_path):
    judge = Judge()
    assert filtered(tmp_path / "verdicts.jsonl", judge, source=Numbered(3)) == [0]
    assert judge.asked == [0, 1, 2]


def test_verdicts_are_written_down_and_not_asked_for_again(tmp_path):
    path, again = tmp_path / "verdicts.jsonl", Judge()
    filtered(path, Judge())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"number": 0, "uid": 0, "num_steps": 3, "correct_steps": 2, "correct": False}
    assert filtered(path, again, first_weights=False) == [0, 4] and again.asked == []


def test_an_interrupted_filter_goes_on_where_it_was(tmp_path):
    path, again = tmp_path / "verdicts.jsonl", Judge()
    filtered(path, Judge())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:9])  # killed while it wrote the fourth line
    assert filtered(path, again) == [0, 4] and again.asked == [3, 4, 5]


def test_verdicts_that_are_lost_cannot_be_made_again_by_other_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"verdicts on 0 of 6 prompts.*\nFix: put the file back"):
        filtered(tmp_path / "verdicts.jsonl", Judge(), first_weights=False)


def test_every_epoch_draws_each_kept_prompt_once():
    prompts = KeptPrompts(Numbered(), [3, 1, 7], seed=0, shuffle=True)
    drawn = [prompt.uid for update in range(6) for prompt in prompts.batch(update, 2)]
    assert all(sorted(drawn[at : at + 3]) == [10, 30, 70] for at in (0, 3, 6, 9))
    assert prompts.num_train == 3
    assert [prompt.uid for prompt in prompts.eval_prompts()] == [-1]
    in_order = KeptPrompts(Numbered(), [3, 1, 7], seed=0, shuffle=False)
    assert [prompt.uid for prompt in in_order.batch(0, 3)] == [30, 10, 70]


def test_keeping_nothing_or_too_little_is_an_error_with_a_remedy():
    with pytest.raises(DataError, match=r"no training prompt was kept.\nFix: raise data.over_denoising"):
        KeptPrompts(Numbered(), [], seed=0, shuffle=True)
    with pytest.raises(DataError, match="1 training prompts were kept, and one update draws .* = 2"):
        KeptPrompts(Numbered(), [5], seed=0, shuffle=True).batch(0, 2)
