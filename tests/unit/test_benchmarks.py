"""Named tasks: the table, prompts from files, figures with known values, results that resume."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4dlm.benchmarks import (
    BENCHMARKS,
    LENGTHS,
    RunningMean,
    choose_tasks,
    decode_settings,
    find_rows,
    mean_figure,
    pass_at_k,
    pass_figures,
    task_prompts,
    wilson_interval,
)
from rl4dlm.benchmarks.results import Key, TaskFolder, disagreements, markdown, read_results
from rl4dlm.benchmarks.task_run import GREEDY, SAMPLED, TaskRun, run_task, task_result
from rl4dlm.commands.eval_tasks import SuiteRequest, suite_recipe
from rl4dlm.data import EVAL_UID, TextFormat
from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import CheckpointError, DataError, RecipeError
from rl4dlm.models import build_bpe_tokenizer, encode
from rl4dlm.recipe import shipped_folder
from rl4dlm.recipe.comparison import differences
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Groups, Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.types import Prompt, Scores

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many {legs}?", "answer": "2 + 2\n#### 4"},
    "math500": {"problem": "What is $\\frac{1}{2}$?", "answer": "\\frac{1}{2}"},
    "countdown": {"input": "30,100,93", "output": "23"},
    "sudoku": {"Puzzle": "3102200002100320", "Solution": "3142243142131324"},
    "humaneval": {"prompt": "def f():\n", "test": "def check(c): ...", "entry_point": "f", "task_id": "0"},
    "mbpp": {"text": "Add.", "test_list": ["assert add(1, 2) == 3"], "task_id": 11},
}
ASKED = {
    "gsm8k": "How many {legs}?",
    "math500": "What is $\\frac{1}{2}$?",
    "countdown": "Numbers: [30, 100, 93]\nTarget: 23",
    "sudoku": "Sudoku: 3102200002100320",
    "humaneval": "def f():\n",
    "mbpp": "Add.\nThe code must pass these tests:\nassert add(1, 2) == 3",
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {
        "chat": build_bpe_tokenizer(["words"], 300, chat_template=True),
        "plain": build_bpe_tokenizer(["words"], 300),
    }


def prompts_of(name: str, path: Path, tokenizer: Any, **options: Any) -> list[Prompt]:
    (choice,) = choose_tasks(f"{name}={path}")
    place = find_rows(choice, options.pop("split", "test"), None)
    chat_template = options.pop("chat_template", "auto")
    texts = TextFormat(tokenizer, partial(encode, tokenizer), chat_template=chat_template)
    return task_prompts(
        choice, place, texts=texts, **{"limit": None, "max_prompt_tokens": 100_000, **options}
    )


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- The table. ---


def test_the_table_holds_the_six_tasks_of_the_protocol() -> None:
    assert list(BENCHMARKS) == ["gsm8k", "math500", "countdown", "sudoku", "humaneval", "mbpp"] == list(ROWS)
    assert LENGTHS == (128, 256, 512)
    for length in LENGTHS:
        decode = decode_settings(length)
        assert (decode["block_length"], decode["diffusion_steps"]) == (32, length // 2)
    for task in BENCHMARKS.values():
        assert "test" in task.sources and task.metric in ("accuracy", "mean")


@pytest.mark.parametrize("name", ROWS)
def test_every_task_has_its_reward(name: str) -> None:
    file = shipped_folder("reward_fns") / f"{BENCHMARKS[name].reward}.py"
    assert file.is_file(), f"{name} needs reward {BENCHMARKS[name].reward}"


@pytest.mark.parametrize("name", ROWS)
def test_every_template_fills(name: str, tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[name])
    task = BENCHMARKS[name]
    (prompt,) = prompts_of(name, path, tokenizers["chat"])
    assert prompt.prompt == ASKED[name] and prompt.uid == EVAL_UID
    # The chat template trims the ends of a message.
    assert f"{task.instruction}\n\n{ASKED[name]}".strip() in prompt.text
    assert prompt.text.endswith(f"<|start_header_id|>assistant<|end_header_id|>\n\n{task.prefill}")
    assert prompt.token_ids == encode(tokenizers["chat"], prompt.text)
    (plain,) = prompts_of(name, path, tokenizers["plain"])
    assert plain.text == f"{task.instruction}\n\n{ASKED[name]}\n{task.prefill}"
    (forced,) = prompts_of(name, path, tokenizers["chat"], chat_template="none")
    assert forced.text == plain.text


def test_rewards_get_the_rows_columns(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    for name, row in ROWS.items():
        (prompt,) = prompts_of(name, write(tmp_path / f"{name}.jsonl", row), tokenizers["plain"])
        assert row.items() <= prompt.columns.items()
    hub_rows = {"nums": [3, 5, 8], "target": 16}
    (prompt,) = prompts_of("countdown", write(tmp_path / "hub.jsonl", hub_rows), tokenizers["plain"])
    assert prompt.prompt == "Numbers: [3, 5, 8]\nTarget: 16" and prompt.columns["numbers"] == [3, 5, 8]


def test_a_split_takes_its_rows_and_the_limit_the_first_of_them(
    tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    rows = [{**ROWS["mbpp"], "task_id": task_id} for task_id in (1, 11, 510, 511, 601, 974)]
    path = write(tmp_path / "mbpp.jsonl", *rows)
    ids = [p.columns["task_id"] for p in prompts_of("mbpp", path, tokenizers["plain"])]
    train = prompts_of("mbpp", path, tokenizers["plain"], split="train")
    assert ids == [11, 510] and [p.columns["task_id"] for p in train] == [601, 974]
    assert [p.uid - EVAL_UID for p in train] == [4, 5]
    assert len(prompts_of("mbpp", path, tokenizers["plain"], limit=1)) == 1


@needs_data
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k", 1319),
        ("math500", 500),
        ("countdown", 256),
        ("sudoku", 500),
        ("humaneval", 164),
        ("mbpp", 500),
    ],
)
def test_the_shared_data_is_read(name: str, count: int, tokenizers: dict[str, Any]) -> None:
    (choice,) = choose_tasks(name)
    place = find_rows(choice, "test", DATA)
    tokenizer = tokenizers["plain"]
    prompts = task_prompts(
        choice,
        place,
        texts=TextFormat(tokenizer, lambda text: tuple(text.encode("utf-8"))),
        limit=None,
        max_prompt_tokens=100_000,
    )
    assert len(prompts) == count == len({prompt.uid for prompt in prompts})


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_reference_solutions_pass_as_the_task_scores_them(name: str, tokenizers: dict[str, Any]) -> None:
    (choice,) = choose_tasks(name)
    prompts = task_prompts(
        choice,
        find_rows(choice, "test", DATA),
        texts=TextFormat(tokenizers["plain"], lambda text: ()),
        limit=20,
        max_prompt_tokens=1,
    )
    solutions = [str(p.columns.get("canonical_solution") or p.columns["code"]) for p in prompts]
    with RewardPool(RewardConfig(functions=[choice.benchmark.reward])) as pool:
        pairs = zip(prompts, solutions, strict=True)
        scores = pool.score([[Scorable(p.prompt, text, dict(p.columns))] for p, text in pairs])
    assert scores.errors == {}
    assert [p.uid for p, reward in zip(prompts, scores.reward, strict=True) if reward != 1.0] == []


@needs_data
def test_the_published_runs_were_asked_the_same_questions(tokenizers: dict[str, Any]) -> None:
    for name in ("gsm8k", "math500", "countdown", "sudoku"):
        (choice,) = choose_tasks(name)
        place = find_rows(choice, "test", DATA)
        prompts = task_prompts(
            choice,
            place,
            texts=TextFormat(tokenizers["plain"], lambda text: ()),
            limit=None,
            max_prompt_tokens=1,
        )
        lines = (DATA / f"llada8b_generations_{name}_len128.jsonl").read_text(encoding="utf-8").splitlines()
        asked = {json.loads(line)["question"] for line in lines}
        ours = {prompt.prompt for prompt in prompts}
        if name == "sudoku":  # the same puzzles, in words of our own
            asked, ours = ({text.strip()[-16:] for text in texts} for texts in (asked, ours))
        assert asked <= ours, name


# --- What is refused. ---


def test_unknown_tasks_splits_and_files_are_refused(tmp_path: Path) -> None:
    for text, told in (
        ("gsm9k", "Did you mean gsm8k?"),
        ("", "names no task"),
        ("gsm8k,gsm8k", "twice"),
        ("gsm8k=", "names no file"),
    ):
        with pytest.raises(RecipeError, match=told):
            choose_tasks(text)
    (choice,) = choose_tasks("countdown")
    with pytest.raises(DataError, match="has no split 'dev'"):
        find_rows(choice, "dev", None)
    with pytest.raises(DataError, match="not on the hub"):
        find_rows(choice, "test", None)
    with pytest.raises(DataError, match="countdown_cd3_test.jsonl is not in"):
        find_rows(choice, "test", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_rows(choice, "test", tmp_path / "no")


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("gsm8k", {"question": "q"}, "needs the columns question, answer"),
        ("gsm8k", {"question": None, "answer": "1"}, "row 0: column `question` is empty"),
        ("sudoku", {"Puzzle": "31", "Solution": "31"}, "row 0: the puzzle '31' is not 16 digits"),
        ("countdown", {"input": "a,b", "output": "3"}, "row 0: invalid literal"),
    ],
)
def test_a_row_that_makes_no_prompt_is_named(
    name: str, row: dict[str, Any], told: str, tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=told):
        prompts_of(name, write(tmp_path / "rows.jsonl", row), tokenizers["plain"])


def test_a_prompt_that_is_too_long_is_named(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS["gsm8k"], {**ROWS["gsm8k"], "question": "long " * 400})
    with pytest.raises(DataError, match="row 1: the prompt has .* tokens, and the model has room for 900"):
        prompts_of("gsm8k", path, tokenizers["plain"], max_prompt_tokens=900)


def test_overrides_that_a_named_task_brings_itself_are_refused(tmp_path: Path) -> None:
    def recipe(**changes: Any) -> Any:
        return suite_recipe(SuiteRequest("gsm8k", "model", tmp_path, **changes))

    assert recipe().rollout.diffusion_steps == 128 and recipe(length=512).rollout.diffusion_steps == 256
    assert recipe(overrides=("rollout.slots=3", "run.seed=9")).run.seed == 9
    for override in ("reward.functions=[sort]", "data.train=x", "quickstart", "eval.num_prompts=3"):
        with pytest.raises(RecipeError, match="with --tasks only"):
            recipe(overrides=(override,))
    with pytest.raises(RecipeError, match="does not divide"):
        recipe(length=100)
    with pytest.raises(RecipeError, match="greedy samples are all the same"):
        recipe(num_samples=4, temperature=0.0)


# --- Figures. ---


def test_wilsons_interval_has_its_published_values() -> None:
    # z = 1.959964: 81 of 263 give (0.2553, 0.3662) (Newcombe 1998, method 3); 0 of 20 give (0, 0.1611).
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
    with pytest.raises(ValueError):
        wilson_interval(0.5, 0)


def test_a_running_mean_is_the_mean_with_its_interval() -> None:
    values = [0.25, 0.5, 1.0, 0.0, 0.75, 0.1]
    figure = mean_figure(values)
    half = 1.959964 * np.std(values, ddof=1) / len(values) ** 0.5
    assert figure is not None and figure.value == pytest.approx(np.mean(values))
    assert figure.ci95 == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    binary = mean_figure([1, 0, 0, 1, 1])
    assert binary is not None and (binary.value, binary.ci95) == (0.6, wilson_interval(0.6, 5))
    assert RunningMean().figure() is None and mean_figure([0.5]).ci95 is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 1, 1, 1.0),
        (4, 0, 4, 0.0),
        (4, 1, 2, 0.5),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (10, 3, 1, 0.3),
        (10, 3, 5, 1 - 21 / 252),  # C(7,5)/C(10,5)
        (10, 8, 3, 1.0),  # fewer wrong ones than are drawn
        (20, 2, 10, 1 - 90 / 380),  # both correct ones missed: 10/20 * 9/19
    ],
)
def test_pass_at_k_has_its_golden_values(n: int, c: int, k: int, expected: float) -> None:
    product = 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)) if n - c >= k else 1.0
    assert pass_at_k(n, c, k) == pytest.approx(product, abs=1e-12)
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-6)


def test_pass_at_k_refuses_fewer_samples_than_k() -> None:
    for n, c, k in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
        with pytest.raises(ValueError):
            pass_at_k(n, c, k)


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    draws = rng.random((20_000, 6)) < 0.3
    found = np.mean([pass_at_k(6, int(row.sum()), 3) for row in draws])
    assert found == pytest.approx(1 - 0.7**3, abs=0.01)


def test_figures_over_prompts() -> None:
    figures = pass_figures([[True, False, False], [False] * 3, [True] * 3])
    assert list(figures) == ["avg@3", "pass@1", "pass@2", "pass@3"]
    assert figures["avg@3"].value == pytest.approx(4 / 9) == figures["pass@1"].value
    assert figures["pass@2"].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert figures["pass@3"].value == pytest.approx(2 / 3) and figures["pass@3"].count == 3
    with pytest.raises(ValueError):
        pass_figures([[True], [True, False]])


# --- Running a task, without Ray. ---


class Pool:
    """Draws completions whose text is the request's seed; remembers how many it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, requests: Any, spec: SamplerSpec, version: int) -> list[Any]:
        from tiny import tiny_rollout

        self.asked.append(len(requests))
        drawn = []
        for request in requests:
            rollout = tiny_rollout([0], [1, 3, 3], uid=request.prompt_uid, sample=request.sample)
            drawn.append(type(rollout)(**{**vars(rollout), "text": str(request.seed)}))
        return drawn


class Rewards:
    """Full marks where the seed is even; the reward of prompt 2 fails."""

    def score(self, groups: Groups, *, trainer_state: Any) -> Scores:
        rows = [row for group in groups for row in group]
        bad = [row.columns["at"] == 2 for row in rows]
        values = np.array(
            [np.nan if b else float(int(row.text) % 2 == 0) for b, row in zip(bad, rows, strict=True)]
        )
        return Scores(values.astype(np.float32), {"r": values}, {"raised": sum(bad)}, np.array(bad))


def task_run(num_prompts: int, num_samples: int) -> TaskRun:
    prompts = tuple(Prompt(EVAL_UID + i, str(i), str(i), (0,), {"at": i}) for i in range(num_prompts))
    specs = {GREEDY: SamplerSpec(4, 4, 4, 0.0), SAMPLED: SamplerSpec(4, 4, 4, 1.0)}
    return TaskRun("gsm8k", "accuracy", prompts, specs, num_samples, seed=0)


def run_all(run: TaskRun, done: dict[Key, Any], batch: int = 4) -> Pool:
    pool = Pool()
    for rows in run_task(run, pool.generate, Rewards(), dict(done), batch):  # type: ignore[arg-type]
        done |= {Key(row["mode"], row["row"], row["sample"]): row for row in rows}
    return pool


def test_a_task_continues_with_what_is_missing_and_draws_the_same() -> None:
    whole: dict[Key, Any] = {}
    pool = run_all(task_run(6, 3), whole)
    assert sum(pool.asked) == 6 + 18 and task_run(6, 3).num_missing(whole) == 0
    part = {key: row for key, row in whole.items() if key.row in (0, 3) or key.sample == 1}
    pool = run_all(task_run(6, 3), part, batch=100)
    assert sum(pool.asked) == 24 - len([k for k in whole if k.row in (0, 3) or k.sample == 1])
    assert part == whole
    grown: dict[Key, Any] = {}
    run_all(task_run(3, 2), grown)
    assert grown.items() <= whole.items()  # neither the limit nor the number of samples changes a draw
    assert len({row["completion"] for row in whole.values()}) == 24


def test_the_result_of_a_task_counts_failures_as_wrong_and_names_them() -> None:
    rows: dict[Key, Any] = {}
    run = task_run(6, 3)
    run_all(run, rows)
    result = task_result(run, rows)
    greedy = [rows[Key(GREEDY, i, 0)] for i in range(6)]
    right = sum(row["reward"] == 1 for row in greedy)
    assert result["figures"]["pass@1 greedy"]["value"] == pytest.approx(right / 6)
    assert result["figures"]["mean reward greedy"]["n"] == 5 and result["num_failed"] == 4
    assert {"avg@3", "pass@1", "pass@2", "pass@3"} <= result["figures"].keys()
    assert not any("@" in name[:4] for name in task_result(task_run(6, 1), rows)["figures"])


SETTINGS = {"seed": 0, "decode": {"greedy": {"max_completion_length": 32}}}
LINE = {"mode": GREEDY, "row": 0, "sample": 0, "reward": 1.0}
RESULT = {
    "task": "gsm8k",
    "figures": {"pass@1 greedy": {"value": 0.5, "ci95": [0.2, 0.8], "n": 4}},
    "num_failed": 1,
    "num_prompts": 4,
    "model": "m",
    "decode": {"greedy": {"temperature": 0.0}},
    "environment": {"torch": "2.13"},
}


def test_completions_outlive_a_kill(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path, "gsm8k", 32, SETTINGS)
    folder.add([LINE, {**LINE, "row": 1}])
    folder.close()
    with open(tmp_path / "gsm8k_len32.jsonl", "ab") as file:
        file.write(b'{"mode": "greedy", "row": 2')  # a kill in the middle of a line
    again = TaskFolder(tmp_path, "gsm8k", 32, SETTINGS)
    assert set(again.rows) == {Key(GREEDY, 0, 0), Key(GREEDY, 1, 0)}
    again.add([{**LINE, "row": 2}])
    again.close()
    assert len(TaskFolder(tmp_path, "gsm8k", 32, SETTINGS).rows) == 3


def test_a_finished_result_stands_for_its_sizes_only(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path, "gsm8k", 32, SETTINGS)
    assert folder.finished({"num_prompts": 4}) is None
    folder.finish(RESULT)
    assert folder.finished({"num_prompts": 4})["figures"] == RESULT["figures"]  # type: ignore[index]
    assert folder.finished({"num_prompts": 5}) is None


def test_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path, "gsm8k", 32, SETTINGS)
    folder.add([LINE])
    folder.finish(RESULT)
    with pytest.raises(CheckpointError, match="seed = 0, now 1"):
        TaskFolder(tmp_path, "gsm8k", 32, {**SETTINGS, "seed": 1})
    (tmp_path / "gsm8k_len32.jsonl").unlink()
    with pytest.raises(CheckpointError, match="seed = 0, now 1"):
        TaskFolder(tmp_path, "gsm8k", 32, {**SETTINGS, "seed": 1}).finished({})
    (tmp_path / "gsm8k_len32.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no result"):
        folder.finished({})


def test_results_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    for task, changes in (("a", {}), ("b", {"decode": {"greedy": {"temperature": 0.5}}}), ("c", {})):
        TaskFolder(tmp_path, task, 32, SETTINGS).finish({**RESULT, "task": task, **changes})
    results = read_results(tmp_path)
    assert disagreements(results) == [
        "a_len32.json and b_len32.json differ in decode: greedy.temperature: 0.0 and 0.5"
    ]
    TaskFolder(tmp_path, "d", 32, SETTINGS).finish({**RESULT, "task": "d", "environment": {"torch": "9"}})
    assert any("environment: torch: '2.13' and '9'" in line for line in disagreements(read_results(tmp_path)))
    table = markdown(results)
    assert "| a | 32 | pass@1 greedy | 50.0 | 20.0 to 80.0 | 4 |" in table
    assert "1 rewards failed" in table and "not comparable" in table
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1}})) == []
