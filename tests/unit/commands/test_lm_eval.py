"""The bridge to lm-evaluation-harness, on a tiny random model and a fake local task."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import conditional_table, enumerate_elbo

from rl4dlm.commands import lm_eval as lm_eval_bridge
from rl4dlm.commands.lm_eval import FolderModel, HarnessModel, HarnessSettings, harness_class, open_lm
from rl4dlm.errors import DataError, RecipeError
from rl4dlm.models import LoadedModel, build_bpe_tokenizer, build_char_tokenizer, create, denoiser, save
from rl4dlm.recipe.sections import ModelInit

INIT = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=64)


def ask(*args: Any) -> SimpleNamespace:
    """A request as lm_eval makes it."""
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """Digits; weights scaled up so that the likelihood depends on what is visible."""
    made = create(INIT, build_char_tokenizer("0123456789=+ "), seed=3)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return made


def harness(model: LoadedModel, **settings: Any) -> HarnessModel:
    return HarnessModel(model, HarnessSettings(block_length=8, length=16, slots=4, **settings))


def ids_of(model: LoadedModel, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False)


def exact(model: LoadedModel, context: str, continuation: str) -> float:
    table = conditional_table(denoiser(model), ids_of(model, context), ids_of(model, continuation))
    return enumerate_elbo(table.double())


def test_a_loglikelihood_is_the_elbo_within_its_noise(model: LoadedModel) -> None:
    pairs = [("12+3=", "15"), ("7=", "70123"), ("99+1=", "100")]
    estimates = [
        [
            value
            for value, _ in harness(model, num_states=64, seed=seed).loglikelihood([ask(*p) for p in pairs])
        ]
        for seed in range(12)
    ]
    for pair, values in zip(pairs, torch.tensor(estimates, dtype=torch.float64).T, strict=True):
        noise = values.std().item() / 12**0.5
        assert values.mean().item() == pytest.approx(exact(model, *pair), abs=4 * noise + 1e-3)
    # The model tells continuations apart by more than the noise, so agreement is no accident.
    assert abs(exact(model, "7=", "70123") - exact(model, "12+3=", "15")) > 1


def test_one_token_needs_no_sampling(model: LoadedModel) -> None:
    # One position has one mask, so every state is the same and the estimate is exact.
    ((value, _),) = harness(model, num_states=3).loglikelihood([ask("3+4=", "7")])
    assert value == pytest.approx(exact(model, "3+4=", "7"), abs=1e-5)


def test_splitting_the_states_over_forwards_changes_nothing(model: LoadedModel) -> None:
    request = [ask("12+3=", "1500")]
    ((whole, _),) = harness(model, num_states=24).loglikelihood(request)
    ((split, _),) = harness(model, num_states=24, token_budget=20).loglikelihood(request)
    assert split == pytest.approx(whole, abs=1e-4)


def test_a_space_at_the_end_of_the_context_belongs_to_the_continuation(model: LoadedModel) -> None:
    moved, kept = harness(model, num_states=8).loglikelihood([ask("1+1= ", "2"), ask("1+1=", " 2")])
    assert moved == kept


def test_greedy_is_what_greedy_decoding_of_that_length_writes(model: LoadedModel) -> None:
    bridge = harness(model, num_states=1)
    requests = [ask("5+5=", character) for character in "0123456789=+"]
    answers = bridge.loglikelihood(requests)
    # Of one token the exact likelihood is known: greedy is the most likely one and no other.
    best = max(range(len(answers)), key=lambda i: answers[i][0])
    assert [greedy for _, greedy in answers] == [i == best for i in range(len(answers))]
    unchecked = harness(model, num_states=1, check_greedy=False)
    assert not any(greedy for _, greedy in unchecked.loglikelihood(requests))


@pytest.mark.parametrize("context", ["5+5=", "5+5= ", ""])
def test_an_empty_continuation_is_refused_and_not_certain(model: LoadedModel, context: str) -> None:
    with pytest.raises(DataError, match="likelihood of the continuation '', which has no token.*\n.*Fix:"):
        harness(model).loglikelihood([ask(context, "")])


@pytest.fixture(scope="module")
def merging() -> LoadedModel:
    """A tokenizer with tokens of several characters: "green house" is shorter than "green hou" + "se"."""
    tokenizer = build_bpe_tokenizer(["the green house and the greenhouse"] * 20, 320)
    made = create(INIT, tokenizer, seed=3)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return made


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("the green hou", "se"),  # nothing would be left of the continuation
        ("the green hou", "se and"),  # a part of it would be left
        ("green", "house"),  # fewer tokens together than the context has alone
        ("", "house"),
    ],
)
def test_a_token_across_the_border_does_not_hide_the_continuation(
    merging: LoadedModel, context: str, continuation: str
) -> None:
    bridge = HarnessModel(merging, HarnessSettings(num_states=400, check_greedy=False))
    ((value, greedy),) = bridge.loglikelihood([ask(context, continuation)])
    prompt = ids_of(merging, context) or [merging.tokenizer.bos_token_id]
    table = conditional_table(denoiser(merging), prompt, ids_of(merging, continuation))
    assert value == pytest.approx(enumerate_elbo(table.double()), abs=0.5) and value < -1
    assert greedy is False


def test_every_continuation_that_shares_a_context_is_scored_on_the_same_context(merging: LoadedModel) -> None:
    bridge = HarnessModel(merging, HarnessSettings())
    pairs = [bridge._token_pair("the green hou", text) for text in ("se", "se and", "nd", " the")]
    assert {prompt for prompt, _ in pairs} == {tuple(ids_of(merging, "the green hou"))}
    decode = merging.tokenizer.decode
    assert [decode(ids) for _, ids in pairs] == ["se", "se and", "nd", " the"]


def test_a_context_that_is_empty_is_the_start_of_text(merging: LoadedModel) -> None:
    bridge = HarnessModel(merging, HarnessSettings(block_length=8, length=16))
    settings = {"until": [], "max_gen_toks": 8}
    start = merging.tokenizer.bos_token
    empty, spelled = bridge.generate_until([ask("", settings), ask(start, settings)])
    assert empty == spelled and empty


def test_rolling_sums_windows_that_fit_the_model(model: LoadedModel) -> None:
    bridge = harness(model, num_states=16)
    text = "0123456789" * 10  # 100 tokens, two windows of 63 and 37 beside the start of text
    (total,) = bridge.loglikelihood_rolling([ask(text)])
    parts = bridge.loglikelihood_rolling([ask(text[:63]), ask(text[63:])])
    assert total == pytest.approx(sum(parts)) and bridge.loglikelihood_rolling([ask("")]) == [0]


def test_a_text_whose_characters_give_no_token_is_refused(model: LoadedModel) -> None:
    bridge = harness(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_bridge, "encode", lambda tokenizer, text: ())
        with pytest.raises(DataError, match="likelihood of the text '12', which has no token"):
            bridge.loglikelihood_rolling([ask("12")])
        with pytest.raises(DataError, match="likelihood of the continuation '2', which has no token"):
            bridge.loglikelihood([ask("1", "2")])


def test_a_generation_ends_before_the_first_stop_string(model: LoadedModel) -> None:
    bridge = harness(model)
    (whole,) = bridge.generate_until([ask("9+9=", {"until": [], "max_gen_toks": 16})])
    assert len(whole) > 4
    late, early = whole[5:7], whole[2:4]
    (cut,) = bridge.generate_until([ask("9+9=", {"until": [late, early], "max_gen_toks": 16})])
    assert cut == whole[: min(whole.find(late), whole.find(early))]
    assert bridge.generate_until([ask("9+9=", {"until": early, "max_gen_toks": 16})]) == [
        whole[: whole.find(early)]
    ]


def test_requests_of_other_settings_are_answered_in_order(model: LoadedModel) -> None:
    bridge = harness(model)
    long, short = {"until": [], "max_gen_toks": 16}, {"until": [], "max_gen_toks": 3}
    together = bridge.generate_until([ask("1=", long), ask("2=", short), ask("3=", long)])
    alone = [bridge.generate_until([ask(*pair)])[0] for pair in (("1=", long), ("2=", short), ("3=", long))]
    assert together == alone and len(together[1]) <= 3


def test_repeated_sampling_differs_and_greedy_does_not(model: LoadedModel) -> None:
    sampled = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 1.5}
    bridge = harness(model)
    draws = bridge.generate_until([ask("1=", sampled)] * 3)
    assert len(set(draws)) > 1 and bridge.generate_until([ask("1=", sampled)] * 3) == draws
    greedy = {"until": [], "max_gen_toks": 16, "temperature": 1.5}
    assert len(set(bridge.generate_until([ask("1=", greedy)] * 3))) == 1


def test_a_long_context_is_cut_on_the_left(model: LoadedModel) -> None:
    bridge = harness(model)
    settings = {"until": [], "max_gen_toks": 16}
    tail = "7" * 20 + "+" * 28  # 64 positions leave 48 beside 16
    assert bridge.generate_until([ask("1" * 500 + tail, settings)]) == bridge.generate_until(
        [ask(tail, settings)]
    )
    with pytest.raises(DataError, match="exceeds the model's 64 positions"):
        bridge.generate_until([ask("1=", {"until": [], "max_gen_toks": 65})])


def test_a_local_task_is_answered_from_a_folder(tmp_path: Path, model: LoadedModel) -> None:
    """What lm_eval does with a multiple-choice task and a generation task, without lm_eval."""
    folder = save(model, tmp_path / "model", model.tokenizer)
    lm = open_lm(str(folder), num_states=32, block_length=8, batch_size=2)
    rows = [("1+1=", ["2", "3"]), ("2+2=", ["5", "4"])]
    answers = lm.loglikelihood([ask(q, choice) for q, choices in rows for choice in choices])
    picked = [max(range(2), key=lambda i, at=2 * row: answers[at + i][0]) for row in range(2)]
    truth = [
        max(range(2), key=lambda i, q=question, c=choices: exact(model, q, c[i]))
        for question, choices in rows
    ]
    assert picked == truth  # one token each: exact, so that the choice is too
    assert len(lm.generate_until([ask("1+1=", {"until": ["="], "max_gen_toks": 8})])) == 1


def test_what_is_unknown_is_refused(tmp_path: Path, model: LoadedModel) -> None:
    folder = str(save(model, tmp_path / "model", model.tokenizer))
    for arguments, told in (
        ({"num_stats": 3}, "'num_stats' is not known"),
        ({"dtype": "float99"}, "no torch dtype"),
        ({"num_states": 0}, "num_states = 0 is not positive"),
        ({"block_length": 9}, "does not divide block_length = 9"),
    ):
        with pytest.raises(RecipeError, match=told):
            open_lm(folder, **arguments)
    with pytest.raises(DataError, match="the tokenizer has none"):
        harness(model).apply_chat_template([{"role": "user", "content": "1"}])


def test_chat_messages_pass_through_the_tokenizers_template() -> None:
    tokenizer = build_bpe_tokenizer(["what"], 300, chat_template=True)
    lm = HarnessModel(create(INIT, tokenizer, seed=0))
    text = lm.apply_chat_template([{"role": "user", "content": "what"}])
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n") and "what" in text
    assert lm.chat_template(True) == tokenizer.chat_template and lm.chat_template() == ""


LOCAL_TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
""",
    "local_generation": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["="], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
    "local_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
""",
}


@pytest.mark.slow
def test_lm_eval_itself_runs_local_tasks_on_it(tmp_path: Path, model: LoadedModel) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    folder = save(model, tmp_path / "model", model.tokenizer)
    pairs = [("1+1=", ["2", "3"]), ("2+2=", ["5", "4"]), ("7=", ["7", "0"])]
    # The choice that the model prefers; of one token the likelihood is exact.
    labels = [max(range(2), key=lambda i, q=q, c=c: exact(model, q, c[i])) for q, c in pairs]
    lines = [
        json.dumps({"question": q, "choices": c, "label": label})
        for (q, c), label in zip(pairs, labels, strict=True)
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines) + "\n")
    for name, body in LOCAL_TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{source}\n{body}")
    harness_class()
    settings = f"pretrained={folder},num_states=4,block_length=8,length=8"
    found = lm_eval.simple_evaluate(
        model="rl4dlm",
        model_args=settings,
        tasks=list(LOCAL_TASKS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert found["local_choice"]["acc,none"] == 1.0
    assert 0 <= found["local_generation"]["exact_match,none"] <= 1
    assert found["local_text"]["byte_perplexity,none"] > 1


@pytest.fixture
def fake_lm_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type]]:
    """lm_eval's base class and registry, as far as the bridge touches them."""
    registry: dict[str, type] = {}
    package, api = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.api")
    base, names = types.ModuleType("lm_eval.api.model"), types.ModuleType("lm_eval.api.registry")

    class LM:
        def __init__(self) -> None:
            self._rank, self._world_size = 0, 1

    def register_model(name: str) -> Any:
        return lambda cls: registry.setdefault(name, cls)

    base.LM, names.register_model = LM, register_model  # type: ignore[attr-defined]
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    for module in (package, api, base, names):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    lm_eval_bridge.harness_class.cache_clear()
    yield registry
    lm_eval_bridge.harness_class.cache_clear()


def test_where_lm_eval_is_installed_the_model_is_one_of_its_own(
    fake_lm_eval: dict[str, type], tmp_path: Path, model: LoadedModel
) -> None:
    from lm_eval.api.model import LM  # type: ignore[import-not-found]

    lm = open_lm(str(save(model, tmp_path / "model", model.tokenizer)), num_states=2)
    assert isinstance(lm, LM) and isinstance(lm, FolderModel)
    assert fake_lm_eval == {"rl4dlm": type(lm)} and lm._world_size == 1  # type: ignore[attr-defined]
    assert len(lm.loglikelihood([ask("1=", "1")])) == 1


def test_without_lm_eval_nothing_of_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_bridge.importlib.util, "find_spec", lambda name: None)
    harness_class.cache_clear()
    assert harness_class() is FolderModel
    harness_class.cache_clear()
