"""Whatever a reward function does: it costs its own sample, it is counted, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4dlm.errors import PluginError
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward import loading, pool
from rl4dlm.reward.batch import Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.types import Prompt, Scores

PLUGIN = """
import asyncio, os, signal, subprocess, sys, time

LEFTOVERS = os.path.join(os.path.dirname(__file__), "pids")

def note(pid):
    with open(LEFTOVERS, "a") as file:
        file.write(f"{pid}\\n")

def moody(prompts, completions, **columns):
    values = [float(len(text)) for text in completions]
    for index, text in enumerate(completions):
        if text == "hang":
            while True:
                pass
        if text == "hang in C":
            10 ** 10 ** 10
        if text == "os exit":
            os._exit(7)
        if text == "sys exit":
            sys.exit(0)
        if text == "interrupt":
            raise KeyboardInterrupt
        if text == "raise":
            raise ValueError("cannot\\nscore this")
        if text == "recurse":
            def deeper(): deeper()
            deeper()
        if text == "kill itself":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "close":
            os.closerange(3, 64)
        if text == "short":
            return values[1:]
        if text == "text":
            return ["1.0"] * len(values)
        if text == "nan":
            values[index] = float("nan")
        if text == "inf":
            values[index] = float("inf")
        if text == "die with child":
            pid = os.fork()
            if not pid:
                time.sleep(100)
            note(pid)
            os._exit(1)
        if text == "print":
            print("garbage" * 1000, flush=True)
            os.write(1, b"\\x05\\0\\0\\0\\0\\0\\0\\0{}{}{")
            os.write(2, b"more of it")
        if text == "fork":
            os.fork()
        if text == "leave child":
            note(subprocess.Popen(["sleep", "100"]).pid)
        if text == "leave daemon":
            note(subprocess.Popen(["sleep", "100"], start_new_session=True).pid)
            if os.fork() == 0:
                os.setsid()
                note(os.getpid())
                time.sleep(100)
                os._exit(0)
    return values

def pid(completions, **columns):
    time.sleep(0.2)
    return [float(os.getpid())] * len(completions)

def unhurried(completions, **columns):
    time.sleep(0.15 * len(completions))
    return [1.0] * len(completions)

async def awaited(completions, **columns):
    await asyncio.gather(*(asyncio.sleep(0.01) for _ in completions))
    return [3.0] * len(completions)

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth)}

def choosy(completions, level, log_metric, **columns):
    log_metric("levels", sum(level))
    return [None if one == 0 else float(one) for one in level]

def stepwise(completions, trajectory):
    return [float(record["step_map"].max()) for record in trajectory]

def hang_noted(completions, **columns):
    note(os.getpid())
    10 ** 10 ** 10

def forge(completions, **columns):
    from rl4dlm.reward.channel import write_message
    channel = int(sys.argv[3])
    if completions[0] == "stale":
        write_message(channel, b'{"id": 0, "values": [99.0], "metrics": []}')
        write_message(channel, b"[]")
    elif completions[0] == "misfit":
        write_message(channel, b'{"id": 2, "values": [1.0, 1.0], "metrics": []}')
    elif completions[0] == "nonsense":
        write_message(channel, b"no json")
    elif completions[0] == "huge":
        os.write(channel, b"\\xff" * 8)
    return [1.0] * len(completions)

def dies_later(completions, **columns):
    import threading
    threading.Timer(0.05, os._exit, [1]).start()
    return [1.0] * len(completions)
"""

GOOD = ["a", "bb", "ccc", "dddd", "eeeee"]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    return file


def config(plugin: Path, *functions: Any, **settings: Any) -> RewardConfig:
    paths = [f"{plugin}:{function}" if isinstance(function, str) else function for function in functions]
    return RewardConfig(functions=paths, **{"timeout_s": 0.6} | settings)


def score(rewards: RewardPool, completions: list[str], **columns: list[Any]) -> Scores:
    """Scores of completions of one prompt: a group."""
    rows = [{name: values[row] for name, values in columns.items()} for row in range(len(completions))]
    return rewards.score([[Scorable("p", text, row) for text, row in zip(completions, rows, strict=True)]])


def groups_of(*groups: list[str]) -> list[list[Scorable]]:
    return [[Scorable(f"p{at}", text) for text in group] for at, group in enumerate(groups)]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int], within_s: float = 3.0) -> bool:
    end = time.monotonic() + within_s
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(runs, pids))


def process_ids(rewards: RewardPool) -> list[int]:
    return [runner.process.pid for runner in rewards._runners if runner.process.pid is not None]


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ("hang", "timeout", "no answer within 0.6 s"),
        ("hang in C", "timeout", "no answer within 0.6 s"),
        ("os exit", "died", "the process exited with status 7"),
        ("kill itself", "died", "the process was killed by SIGKILL"),
        ("close", "died", "the process"),
        ("die with child", "died", "the process exited with status 1"),
        ("sys exit", "raised", "SystemExit: 0"),
        ("interrupt", "raised", "KeyboardInterrupt"),
        ("raise", "raised", "ValueError: cannot"),
        ("recurse", "raised", "RecursionError"),
        ("text", "raised", "TypeError: returned the text '1.0' where a number or None is expected"),
        ("short", "wrong_length", "returned 0 rewards for 1 completion"),
        ("nan", "not_finite", "returned nan"),
        ("inf", "not_finite", "returned inf"),
    ],
)
def test_a_bad_sample_is_counted_and_the_others_are_scored(plugin, bad, kind, message):
    with RewardPool(config(plugin, "moody")) as rewards:
        scores = score(rewards, [*GOOD[:2], bad, *GOOD[2:]])
        pids = process_ids(rewards)
    assert scores.errors == {kind: 1}
    assert scores.failed.tolist() == [False, False, True, False, False, False]
    np.testing.assert_array_equal(scores.reward, np.array([1, 2, np.nan, 3, 4, 5], np.float32))
    assert len(scores.messages) == 1 and scores.messages[0].startswith(f"moody: {kind}: {message}")
    assert pids and all_gone(pids)


def test_an_error_message_names_the_line_in_the_plugin(plugin):
    line = PLUGIN.splitlines().index('            raise ValueError("cannot\\nscore this")') + 1
    with RewardPool(config(plugin, "moody")) as rewards:
        scores = score(rewards, ["raise"])
    assert scores.messages == (f"moody: raised: ValueError: cannot ({plugin}:{line})",)


def test_what_a_function_prints_disturbs_nothing_and_is_shown_on_demand(plugin, capfd):
    for show_output in (False, True):
        with RewardPool(config(plugin, "moody"), show_output=show_output) as rewards:
            for _ in range(2):
                scores = score(rewards, ["print", "a", "bb"])
                assert scores.errors == {}
                assert scores.reward.tolist() == [5, 1, 2]
        printed = capfd.readouterr()
        assert printed.out == ""
        assert ("garbage" in printed.err and "more of it" in printed.err) == show_output


def test_of_a_function_that_forks_only_one_copy_goes_on(plugin):
    with RewardPool(config(plugin, "moody")) as rewards:
        for _ in range(2):
            assert score(rewards, ["fork", "a"]).reward.tolist() == [4, 1]
        (pid,) = process_ids(rewards)
        copies = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert all_gone([int(copy) for copy in copies])


@pytest.mark.parametrize(
    ("forged", "errors"),
    [("stale", {}), ("misfit", {"died": 1}), ("nonsense", {"died": 1}), ("huge", {"died": 1})],
)
def test_a_message_that_is_no_reply_cannot_pass_for_one(plugin, forged, errors):
    with RewardPool(config(plugin, "forge")) as rewards:
        scores = score(rewards, [forged])
        assert scores.errors == errors
        assert scores.reward.tolist() == [1.0] if not errors else scores.failed.all()


@pytest.mark.parametrize("leaving", ["leave child", "leave daemon", "die with child"])
def test_what_a_function_started_does_not_outlive_the_pool(plugin, leaving):
    with RewardPool(config(plugin, "moody")) as rewards:
        score(rewards, [leaving])
        left = [int(line) for line in (plugin.parent / "pids").read_text().split()]
        pids = process_ids(rewards)
        start = time.monotonic()
    assert left and all_gone(left + pids, within_s=0.5)
    assert time.monotonic() - start < 5


def test_a_hanging_sample_takes_its_children_with_it(plugin):
    with RewardPool(config(plugin, "moody")) as rewards:
        scores = score(rewards, ["leave daemon", "hang"])
        assert scores.errors == {"timeout": 1}
        # The chunk of both was killed whole; the daemon that is left is the one of the second, single try.
        left = [int(line) for line in (plugin.parent / "pids").read_text().split()]
        assert all_gone(left)


@pytest.mark.slow
def test_a_batch_in_which_everything_hangs_is_given_up(plugin, monkeypatch):
    monkeypatch.setattr(pool, "MAX_CULPRITS", 3)
    start = time.monotonic()
    with RewardPool(config(plugin, "moody", timeout_s=0.25)) as rewards:
        scores = score(rewards, ["hang"] * 40)
    # A call of 40 has three deadlines; then three single ones, not 40.
    assert time.monotonic() - start < 40 * 0.25
    assert scores.errors == {"timeout": 40}
    assert scores.failed.all()


def test_giving_up_leaves_groups_that_work_alone(plugin, monkeypatch):
    monkeypatch.setattr(pool, "MAX_CULPRITS", 1)
    with RewardPool(config(plugin, "moody", timeout_s=0.4)) as rewards:
        scores = rewards.score(groups_of(["hang"] * 3 + ["a"] * 13, ["bb"] * 16))
    assert scores.failed.tolist() == [True] * 16 + [False] * 16
    assert set(scores.messages) == {
        "moody: timeout: no answer within 0.4 s",
        "moody: timeout: no answer within 0.4 s (with its call)",
    }


def test_many_samples_that_raise_are_all_found_and_no_other_is_blamed(plugin):
    with RewardPool(config(plugin, "moody")) as rewards:
        scores = score(rewards, ["raise", "a"] * 16)
    assert scores.failed.tolist() == [True, False] * 16
    assert scores.errors == {"raised": 16}


@pytest.mark.slow
def test_a_slow_function_is_not_a_hanging_one_and_is_not_interrupted_twice(plugin):
    with RewardPool(config(plugin, "unhurried", timeout_s=0.8)) as rewards:
        # Eight samples take 1.2 s, more than the chunk's 0.8 s; each alone takes 0.15 s.
        assert score(rewards, ["x"] * 8).reward.tolist() == [1.0] * 8
        before = process_ids(rewards)
        assert score(rewards, ["x"] * 8).reward.tolist() == [1.0] * 8
        assert process_ids(rewards) == before


def test_a_process_that_died_between_batches_costs_nothing(plugin):
    with RewardPool(config(plugin, "dies_later")) as rewards:
        for _ in range(2):
            assert score(rewards, ["x"]).errors == {}
            time.sleep(0.3)


def test_several_processes_share_a_batch(plugin):
    with RewardPool(config(plugin, "pid", num_processes=2)) as rewards:
        scores = rewards.score(groups_of(["x"] * 9, ["x"] * 9))
        assert sorted(set(scores.reward.tolist())) == sorted(map(float, process_ids(rewards)))
        assert len(process_ids(rewards)) == 2
        # Each leads a session: Ctrl-C in the terminal of the run does not reach it.
        assert [os.getsid(pid) for pid in process_ids(rewards)] == process_ids(rewards)


def test_functions_are_weighed_and_one_that_fails_excludes_the_sample(plugin):
    settings = config(plugin, "moody", "choosy", "awaited", reward_weights=[1.0, 10.0, 100.0])
    with RewardPool(settings) as rewards:
        scores = score(rewards, ["a", "raise", "ccc"], level=[1, 2, 0])
    # 1 + 10 * 1 + 100 * 3; excluded; 3 + nothing for None + 100 * 3.
    np.testing.assert_array_equal(scores.reward, np.array([311, np.nan, 303], np.float32))
    np.testing.assert_array_equal(scores.components["choosy"], np.array([1, 2, np.nan], np.float32))
    assert list(scores.components) == ["moody", "choosy", "awaited"]
    assert scores.errors == {"raised": 1}
    assert scores.logged == {"levels": 3.0}


def test_verl_s_signature_works_as_it_is(plugin):
    rows = [{"data_source": "d", "reward_model": {"ground_truth": truth}} for truth in ("4", "5")]
    with RewardPool(config(plugin, "compute_score")) as rewards:
        assert rewards.score([[Scorable("p", "4", row) for row in rows]]).reward.tolist() == [1.0, 0.0]


def test_a_step_wise_function_receives_step_maps(plugin):
    maps = [np.array([0, 2, 1], np.int32), np.array([4, 0, 1], np.int32)]
    records = [{"completion_ids": np.arange(3), "step_map": step_map} for step_map in maps]
    with RewardPool(config(plugin, "stepwise")) as rewards:
        assert rewards.check([Prompt(0, "p", "p", ())]) == {"stepwise": []}
        group = [Scorable("p", "x", trajectory=record) for record in records]
        assert rewards.score([group]).reward.tolist() == [2.0, 4.0]


def test_a_dotted_name_and_an_entry_point_are_found_by_the_process_too(plugin, monkeypatch):
    module = plugin.rename(plugin.parent / "rewards_on_the_path.py").stem
    monkeypatch.syspath_prepend(str(plugin.parent))
    point = metadata.EntryPoint("pluggy", f"{module}:awaited", loading.ENTRY_POINT_GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    with RewardPool(RewardConfig(functions=[f"{module}:moody", "pluggy"])) as rewards:
        assert score(rewards, ["abc"]).reward.tolist() == [6.0]


def test_a_module_of_the_standard_library_cannot_be_hidden_by_the_working_directory(plugin, monkeypatch):
    (plugin.parent / "json.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(plugin.parent)
    with RewardPool(config(plugin, "moody")) as rewards:
        assert score(rewards, ["abc"]).reward.tolist() == [3.0]


def test_columns_that_some_rows_lack_are_none_there(plugin):
    (plugin.parent / "see.py").write_text("def see(completions, c): return [float(v is None) for v in c]\n")
    with RewardPool(RewardConfig(functions=[str(plugin.parent / "see.py")])) as rewards:
        assert rewards.score([[Scorable("p", "x", {"c": 1}), Scorable("p", "x")]]).reward.tolist() == [
            0.0,
            1.0,
        ]


def test_an_empty_batch_has_no_scores(plugin):
    with RewardPool(config(plugin, "moody")) as rewards:
        assert len(score(rewards, []).reward) == 0


def test_check_scores_the_reference_answers():
    prompts = [Prompt(0, "31=", "31=", (), {"answer": "13"}), Prompt(1, "21=", "21=", (), {"answer": "12"})]
    with RewardPool(RewardConfig(functions=["sort", "sort:sort_exact"])) as rewards:
        assert rewards.check(prompts) == {"sort": [1.0, 1.0], "sort_exact": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name\n", r"cannot be imported: .*nothing_of_this_name.* \(.*broken\.py:1\)"),
        ("def broken(text): return 1\n", r"has the parameters \(text\); expected f\(prompts, completions"),
        (
            "import os\nos._exit(3)\n",
            r"importing the reward function ended its process: .* exited with status 3",
        ),
        ("while True: pass\n", r"importing the reward function takes more than 1\.5 s"),
        (
            "def broken(completions, numbers): return []\n",
            r"fails on row 5: .*needs numbers, which .*: answer",
        ),
        (
            "def broken(completions): return [float('nan')]\n",
            r"fails on row 5: broken: not_finite: returned nan",
        ),
        ("def broken(completions):\n    while True: pass\n", r"fails on row 5: broken: timeout"),
    ],
    ids=["import", "signature", "exit", "endless import", "column", "nan", "hang"],
)
def test_check_refuses_what_would_fail_in_the_run(tmp_path, text, message):
    file = tmp_path / "broken.py"
    file.write_text(text)
    settings = RewardConfig(functions=[str(file)], timeout_s=0.6)
    with RewardPool(settings, load_timeout_s=1.5) as rewards:
        with pytest.raises(PluginError, match=message):
            rewards.check([Prompt(5, "31=", "31=", (), {"answer": "13"})])
        pids = process_ids(rewards)
    assert all_gone(pids)


def test_a_function_that_can_no_longer_be_loaded_fails_its_samples_at_once(tmp_path):
    file = tmp_path / "gone.py"
    file.write_text("open(__file__ + '.log', 'a').write('tried ')\nraise OSError('the disk is gone')\n")
    with RewardPool(RewardConfig(functions=[str(file), "format"])) as rewards:
        scores = score(rewards, ["x"] * 40)
    assert scores.errors == {"raised": 40}
    assert scores.components["format"].tolist() == [0.0] * 40
    assert "cannot be imported: OSError: the disk is gone" in scores.messages[0]
    assert (tmp_path / "gone.py.log").read_text() == "tried "


def test_closing_ends_a_call_that_is_under_way(plugin):
    rewards = RewardPool(config(plugin, "moody", timeout_s=60))
    caught: list[BaseException] = []

    def work() -> None:
        try:
            score(rewards, ["hang", "a"])
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not process_ids(rewards):
        time.sleep(0.01)
    pids = process_ids(rewards)
    start = time.monotonic()
    rewards.close()
    thread.join(timeout=10)
    assert time.monotonic() - start < 10 and caught
    assert all_gone(pids)
    with pytest.raises(ValueError, match="closed"):
        score(rewards, ["a"])


def test_reward_processes_die_with_a_killed_parent(plugin):
    program = (
        "import sys\n"
        "from rl4dlm.recipe.sections import RewardConfig\n"
        "from rl4dlm.reward.batch import Scorable\n"
        "from rl4dlm.reward.pool import RewardPool\n"
        "rewards = RewardPool(RewardConfig(functions=[sys.argv[1]], timeout_s=60))\n"
        "rewards.score([[Scorable('p', 'x')]])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, f"{plugin}:hang_noted"])
    try:
        pids = plugin.parent / "pids"
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert parent.poll() is None
            time.sleep(0.02)
        child = int(pids.read_text())
        assert runs(child)
        # It is deep in C and will not look at its input: the kernel must end it.
        os.kill(parent.pid, signal.SIGKILL)
        assert all_gone([child])
    finally:
        parent.kill()
        parent.wait()
