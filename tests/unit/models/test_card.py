"""The model card: what it states, and what it does not tell the world."""

from __future__ import annotations

from typing import Any

import yaml

from rl4dlm.models import model_card
from rl4dlm.models.card import without_folders

RECIPE: dict[str, Any] = {
    "model": {"path": "GSAI-ML/LLaDA-8B-Instruct", "init": None},
    "data": {"task": None, "train": "/home/somebody/secret/rows.jsonl"},
    "reward": {"functions": ["sort", {"path": "~/plugins/mine.py:score"}]},
    "rollout": {"block_length": 32, "temperature": 0.9},
    "algorithm": {"type": "gdpo"},
    "run": {"seed": 3},
}
DECODE = {"greedy": {"block_length": 32, "temperature": 0.0}}
EVALUATIONS = [
    {"update": 0, "eval/greedy_accuracy": 0.25, "decode": DECODE},
    {"update": 40, "eval/greedy_accuracy": 0.5, "eval/pass_at_k": 0.75, "decode": DECODE},
    {"update": 80, "eval/greedy_accuracy": 0.9, "decode": DECODE},
]


def card(recipe: dict[str, Any] = RECIPE, update: int = 40, rows: list[dict[str, Any]] = EVALUATIONS) -> str:
    return model_card("my-run", recipe, yaml.safe_dump(recipe), update, rows)


def test_the_header_is_one_that_the_hub_reads():
    head = yaml.safe_load(card().split("---")[1])
    assert head["base_model"] == "GSAI-ML/LLaDA-8B-Instruct"
    assert "reinforcement-learning" in head["tags"]
    local = {**RECIPE, "model": {"path": "/data/models/x", "init": None}}
    assert "base_model" not in yaml.safe_load(card(local).split("---")[1])


def test_it_states_recipe_data_metrics_and_decode_settings_of_this_checkpoint():
    text = card()
    assert "# my-run" in text
    for row in ("| method | gdpo |", "| updates | 40 |", "| data | rows.jsonl |", "| seed | 3 |"):
        assert row in text
    assert "| rewards | sort, mine.py:score |" in text
    assert "| greedy_accuracy | 0.25 | 0.5 |" in text and "| pass_at_k |  | 0.75 |" in text
    assert "0.9 |" not in text  # of a later checkpoint
    assert "| greedy | block_length = 32, temperature = 0.0 |" in text
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0])["algorithm"] == {"type": "gdpo"}


def test_without_an_evaluation_it_says_how_rollouts_were_drawn():
    text = card(rows=[])
    assert "## Evaluation" not in text
    assert "| rollouts | block_length = 32, temperature = 0.9 |" in text


def test_a_run_without_rl_has_a_card_too():
    recipe = {key: RECIPE[key] for key in ("model", "data", "run")}
    text = card(recipe, rows=[])
    assert "| method | supervised fine-tuning |" in text and "| rewards" not in text


def test_local_folders_stay_at_home():
    assert "somebody" not in card() and "plugins" not in card() and "rows.jsonl" in card()
    assert without_folders("path: /a/b-c/d.py:f\nother: ../x/y, ./z.py") == "path: d.py:f\nother: y, z.py"
    assert without_folders("owner/name 1/2 rate: 1e-5") == "owner/name 1/2 rate: 1e-5"
