from __future__ import annotations

import json
import math
import os
from io import FileIO
from pathlib import Path

import pytest
from tracking_toys import HOSTILE, log_updates, open_tracker, printed, recorded_console, sample

from rl4dlm.errors import CheckpointError, StorageError
from rl4dlm.tracking import RunHistory
from rl4dlm.tracking.files import JsonLines, replace_file, tracked_rows


def without_times(path: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "time_s"} for row in tracked_rows(path)]


def test_metrics_are_one_flat_object_per_update(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.log(1, {"reward": 0.5, "rewards/sort/mean": 0.25, "num_tokens": 12})
        tracker.log(2, {"reward": math.nan, "kl": math.inf})
    rows = without_times(tmp_path / "metrics.jsonl")
    assert rows[0] == {"update": 1, "reward": 0.5, "rewards/sort/mean": 0.25, "num_tokens": 12}
    # JSON has no NaN and no infinity.
    assert rows[1] == {"update": 2, "reward": None, "kl": None}
    assert all(row["time_s"] >= 0 for row in tracked_rows(tmp_path / "metrics.jsonl"))


def test_every_row_is_on_disk_before_the_next_one_is_made(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.log(1, {"reward": 0.5})
        assert len(tracked_rows(tmp_path / "metrics.jsonl")) == 1
        tracker.evaluation(1, {"eval/greedy_accuracy": 0.5}, [sample(1)])
        assert len(tracked_rows(tmp_path / "evaluations.jsonl")) == 1
        assert len(tracked_rows(tmp_path / "samples.jsonl")) == 1


def test_samples_survive_a_round_trip_whatever_the_model_wrote(tmp_path: Path) -> None:
    wrote = sample(
        0, completion=HOSTILE + "\n\u2028\u00e9", reward=math.nan, rewards={"a": math.nan}, correct=None
    )
    with open_tracker(tmp_path) as tracker:
        tracker.evaluation(0, {}, [wrote])
    (read,) = RunHistory.load(tmp_path).samples
    assert read.completion == wrote.completion
    assert math.isnan(read.reward) and math.isnan(read.rewards["a"]) and read.correct is None
    assert (tmp_path / "samples.jsonl").read_bytes().count(b"\n") == 1


def test_a_resumed_run_has_the_files_of_the_uninterrupted_run(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    with open_tracker(whole) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.1}, [sample(0)])
        log_updates(tracker, range(1, 7))
        tracker.evaluation(6, {"eval/greedy_accuracy": 0.6}, [sample(6)])
    with open_tracker(halves) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.1}, [sample(0)])
        log_updates(tracker, range(1, 6))
        tracker.evaluation(5, {"eval/greedy_accuracy": 0.55}, [sample(5)])
    with open_tracker(halves, resume_from=3) as tracker:
        assert tracker.evaluated(0) and not tracker.evaluated(5)
        log_updates(tracker, range(4, 7))
        tracker.evaluation(6, {"eval/greedy_accuracy": 0.6}, [sample(6)])
    for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl"):
        assert without_times(halves / name) == without_times(whole / name), name


def test_the_clock_of_a_resumed_run_goes_on_from_the_last_kept_row(tmp_path: Path) -> None:
    rows = [{"update": 1, "time_s": 100.0}, {"update": 2, "time_s": 200.0}, {"update": 3, "time_s": 300.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_tracker(tmp_path, resume_from=2) as tracker:
        assert 200.0 <= tracker.elapsed_s < 260.0


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_torn_by_a_kill_is_dropped_on_resume(tmp_path: Path, cut: int) -> None:
    with open_tracker(tmp_path) as tracker:
        log_updates(tracker, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with open_tracker(tmp_path, resume_from=2) as tracker:
        log_updates(tracker, [2, 3])
    assert [row["update"] for row in tracked_rows(path)] == [1, 2, 3]


def test_a_resume_says_which_updates_have_lost_their_metrics(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        log_updates(tracker, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    console = recorded_console()
    with open_tracker(tmp_path, resume_from=3, console=console) as tracker:
        log_updates(tracker, [4])
    assert "metrics.jsonl has no row of update 3: it was torn or cut" in " ".join(printed(console).split())
    assert [e["kind"] for e in RunHistory.load(tmp_path).events].count("warning") == 1
    with open_tracker(tmp_path, resume_from=2):
        pass
    assert [e["kind"] for e in RunHistory.load(tmp_path).events].count("warning") == 1


def test_metrics_reach_the_disk_before_anything_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda file: flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
    )
    with open_tracker(tmp_path) as tracker:
        log_updates(tracker, [1])
        tracker.evaluation(1, {}, [])
    assert flushed.index("metrics.jsonl") < flushed.index("evaluations.jsonl")


def test_samples_of_an_evaluation_that_was_cut_short_are_dropped_on_resume(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.1}, [sample(0)])
        JsonLines(tmp_path / "samples.jsonl").append(json.loads(json.dumps(vars(sample(2)))))
    with open_tracker(tmp_path, resume_from=2) as tracker:
        assert not tracker.evaluated(2)
        tracker.rewind()
    assert [row["update"] for row in tracked_rows(tmp_path / "samples.jsonl")] == [0]


def test_a_resume_that_fails_before_it_rewinds_has_lost_no_row(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        for update in (0, 2, 4):
            tracker.evaluation(update, {"eval/greedy_accuracy": 0.1}, [sample(update)])
            log_updates(tracker, [update + 1])
    names = ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl")
    before = [(tmp_path / name).read_bytes() for name in names]
    with open_tracker(tmp_path, resume_from=2) as tracker:
        tracker.phase("loading the model")
        tracker.warn("something")
        tracker.fail("the checkpoint cannot be read")
    assert [(tmp_path / name).read_bytes() for name in names] == before
    with open_tracker(tmp_path, resume_from=2) as tracker:
        tracker.rewind()
    assert [row["update"] for row in tracked_rows(tmp_path / "metrics.jsonl")] == [1]
    assert [row["update"] for row in tracked_rows(tmp_path / "samples.jsonl")] == [0, 2]


def test_a_broken_line_before_the_last_one_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"update": 1, "time_s": 1}\nnonsense\n{"update": 3, "time_s": 3}\n'
    )
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: .*nonsense"):
        open_tracker(tmp_path, resume_from=1)


def test_a_new_run_refuses_the_folder_of_another_one_and_leaves_it_alone(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        log_updates(tracker, [1])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="holds another run"):
        open_tracker(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_steps_of_a_phase_that_was_cut_short_are_replaced_when_it_is_repeated(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.phase("warm start", 3)
        tracker.phase_step(1, {"loss": 9.0})
        tracker.phase_step(2, {"loss": 8.0})
    with open_tracker(tmp_path, resume_from=0) as tracker:
        tracker.phase("warm start", 3)
        for step in (1, 2, 3):
            tracker.phase_step(step, {"loss": 1.0 * step})
    curve = RunHistory.load(tmp_path).phase_curves()["warm start"]["loss"]
    assert (curve.x, curve.y) == ((1, 2, 3), (1.0, 2.0, 3.0))


def test_the_settings_of_the_sampler_stand_beside_the_score(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.5}, [], {"greedy": {"temperature": 0.0}})
    history = RunHistory.load(tmp_path)
    assert history.evaluations[0]["decode"] == {"greedy": {"temperature": 0.0}}
    assert list(history.evaluation_curves()) == ["eval/greedy_accuracy"]


class DiskWithRoomFor(FileIO):
    """A file on a disk that takes a few more bytes and then is full."""

    room = 10

    def write(self, data: object) -> int:
        chunk = bytes(data)[: self.room]  # type: ignore[call-overload]
        self.room -= len(chunk)
        if not chunk:
            raise OSError(28, "No space left on device")
        return super().write(chunk)


def test_a_full_disk_is_an_error_with_a_remedy_and_leaves_only_whole_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"update": 1})
    lines.close()
    lines._file = DiskWithRoomFor(lines.path, "ab")
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written: .*No space left(.|\n)*Fix:"):
        lines.append({"update": 2, "reward": 0.5})
    lines.close()
    assert lines.path.read_bytes() == b'{"update": 1}\n'


def test_a_failure_is_recorded_by_the_other_sinks_when_the_disk_is_full(tmp_path: Path, monkeypatch) -> None:
    tracker = open_tracker(tmp_path)

    def full(self: JsonLines, row: object) -> None:
        raise StorageError("full")

    monkeypatch.setattr(JsonLines, "append", full)
    tracker.fail("disk full")
    tracker.close()
    assert (tmp_path / "report.html").exists()


def test_replacing_a_file_keeps_the_old_one_when_the_disk_refuses(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "report.html"
    replace_file(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StorageError):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_events_tell_how_the_run_ended(tmp_path: Path) -> None:
    with open_tracker(tmp_path / "finished") as tracker:
        tracker.finish(tracker.summary({"metrics": tmp_path / "metrics.jsonl"}))
    with open_tracker(tmp_path / "failed") as tracker:
        tracker.fail("a rank died twice")
    with open_tracker(tmp_path / "stopped"):
        pass
    for ending in ("finished", "failed", "stopped"):
        assert RunHistory.load(tmp_path / ending).events[-1]["kind"] == ending


def test_the_summary_compares_the_first_evaluation_with_the_last_even_after_a_resume(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.125}, [])
        log_updates(tracker, [1])
    with open_tracker(tmp_path, resume_from=1) as tracker:
        log_updates(tracker, [2])
        tracker.evaluation(2, {"eval/greedy_accuracy": 0.5}, [])
        summary = tracker.summary({})
    assert summary.updates == 2
    assert (summary.before, summary.after) == ({"eval/greedy_accuracy": 0.125}, {"eval/greedy_accuracy": 0.5})
