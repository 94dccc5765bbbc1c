"""Arguments that nobody means: one message and exit status 2, whatever the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_bad_input import Refused, good_model, place, refused, write_rows  # noqa: F401

LONG = "x" * 5000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", LONG], "no such recipe file"),
        (["train", "quickstart", f"run.name={LONG}"], "run.name"),
        (["train", "quickstart", "run.name=.."], "run.name = '..'"),
        (["train", "quickstart", "run.name=-rf"], "run.name = '-rf'"),
        (["train", "quickstart", f"run.output_dir={LONG}"], "a path of at most 1000 bytes"),
        (["train", "quickstart", f"model.path={LONG}", "model.init=null"], "a path of at most 1000 bytes"),
        (["train", "quickstart", "run.output_dir=a\0b"], "NUL"),
        (["sample", "--model", "a\0b", "--prompt", "1"], "NUL"),
        (["inspect", "a\0b"], "NUL"),
        (["inspect", LONG], "longer than a file's may be"),
        (["score", "--reward", "sort", LONG + ".jsonl"], "longer than a file's may be"),
        (["export", LONG, "out"], "longer than a file's may be"),
        (["recipes", "cp", "quickstart", LONG], "longer than a file's may be"),
        (["rewards", "test", "sort", "--data", LONG + ".jsonl"], "longer than a file's may be"),
        (["estimate", "quickstart", "--forwards", "²"], "is no list of counts"),
        (["estimate", "quickstart", "--forwards", "9" * 5000], "is no list of counts"),
        (["train", "quickstart", "--resume", "step=" + "9" * 5000], "not the number of an update"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_one_message(arguments: list[str], told: str, refused: Refused) -> None:  # noqa: F811
    refused(*arguments, told=[told, "Fix: "])


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "--reward", "sort", "rows.jsonl", "--timeout-s", "nan"],
        ["score", "--reward", "sort", "rows.jsonl", "--timeout-s", "inf"],
        ["score", "--reward", "sort", "rows.jsonl", "--timeout-s", "0"],
        ["score", "--reward", "sort", "rows.jsonl", "--limit", "1" + "0" * 30],
        ["score", "--reward", "sort", "rows.jsonl", "--num-processes", "9" * 5000],
        ["rewards", "test", "sort", "--timeout-s", "-inf"],
        ["eval", "--tasks", "gsm8k", "--model", "m", "--temperature", "nan"],
        ["sample", "--model", "m", "--prompt", "1", "-n", "1" + "0" * 30],
        ["sample", "--model", "m", "--prompt", "1", "--seed", "-1"],
        ["sample", "--model", "m", "--prompt", "1", "--seed", "1" + "0" * 30],
    ],
    ids=" ".join,
)
def test_a_number_that_no_option_takes_is_a_usage_error(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4dlm import cli

    monkeypatch.setattr("sys.argv", ["rl4dlm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in message
    assert "Invalid value" in message


def test_a_long_override_is_no_file_name(place: Path, refused: Refused) -> None:  # noqa: F811
    template = "{prompt} " + "word " * 1000
    told = ["data.task", "Fix: "]
    refused("train", "quickstart", f'data.prompt_template="{template}"', "data.task=7", told=told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested more than 100 levels"),
        ('{"a":' * 100_000, "nested more than 100 levels"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "more than 4300 digits"),
        ('{"rope_theta": Infinity}', "holds Infinity"),
        ('{"rope_theta": 1e999}', "1e999, which is too large"),
        ('{"rope_theta": NaN}', "holds NaN"),
        ('{"d_model": 1, "d_model": 2}', "the key 'd_model' twice"),
        ("\xff", "not UTF-8"),
    ],
    ids=lambda text: text[:20],
)
def test_a_hostile_config(text: str, told: str, place: Path, good_model: Path, refused: Refused) -> None:  # noqa: F811
    shutil.copytree(good_model, place / "model")
    (place / "model" / "config.json").write_bytes(text.encode("latin-1"))
    refused("sample", "--model", "model", "--prompt", "1=", told=["config.json", told, "Fix: "])


def test_a_prompt_that_spells_the_mask_is_not_sampled(
    place: Path,  # noqa: F811
    good_model: Path,  # noqa: F811
    refused: Refused,  # noqa: F811
) -> None:
    shutil.copytree(good_model, place / "model")
    sample = ["sample", "--model", "model", "--set", "max_completion_length=8", "--set", "block_length=8"]
    sample += ["--set", "diffusion_steps=8", "--prompt"]
    refused(*sample, "21<|mdm_mask|>=", told=["--prompt: the text spells the mask token", "Fix: "])
    stored = '[{"role": "user", "content": "1="}, {"role": "assistant", "content": "2"}]'
    refused(*sample, stored, told=["the prompt has 2 chat messages", "Fix: "])
    kwargs = ["--set", "model.chat_template_kwargs={enable_thinking: false}"]
    refused(*sample, "1=", *kwargs, told=["model.chat_template_kwargs", "needs a chat template", "Fix: "])


def test_rows_that_spell_the_mask_are_refused_before_any_command_starts(
    place: Path,  # noqa: F811
    good_model: Path,  # noqa: F811
    refused: Refused,  # noqa: F811
) -> None:
    shutil.copytree(good_model, place / "model")
    rows = [{"prompt": f"{i}=", "completion": str(i), "answer": str(i)} for i in range(9)]
    rows[6]["prompt"] += "<|mdm_mask|>"
    write_rows(place / "rows.jsonl", rows)  # type: ignore[arg-type]
    use = [
        "model.init=null",
        "model.path=model",
        "data.task=null",
        "data.train=rows.jsonl",
        "eval.num_prompts=2",
    ]
    told = ["data.train = rows.jsonl, row 6: the text spells the mask token", "Fix: "]
    few = ["rollout.prompts_per_update=4"]
    refused("train", "quickstart", *use, *few, "warm_start=null", "data.max_prompt_length=16", told=told)
    tuning = ["data.task_answers=demonstrations", "sft.batch_size=2", "reward=null"]
    refused("sft", "--dry-run", "sft/tiny_sort", *use, *tuning, told=told)
    refused("estimate", "rows.jsonl", "--model", "model", told=["row 6: the text spells the mask", "Fix: "])
