"""Models from scratch within bounds: a dry run makes no weight, and what cannot fit is refused."""

from __future__ import annotations

import resource

import pytest
from family_toys import FAMILY_CASES, INIT

from rl4dlm import models
from rl4dlm.errors import ModelError
from rl4dlm.models import loading

TOKENIZER = models.build_char_tokenizer("0123456789=")


@pytest.mark.parametrize(("family", "block_length"), FAMILY_CASES)
def test_a_plan_has_the_facts_of_the_model_that_it_plans(family, block_length):
    options = {"family": family, "block_length": block_length}
    made = models.create(INIT, TOKENIZER, 0, **options)
    assert models.plan(INIT, TOKENIZER, **options) == (models.describe(made), made.spec)


def test_a_plan_of_any_size_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = INIT.model_copy(update={"d_model": 65536, "mlp_hidden_size": 262144, "n_layers": 64})
    facts, _ = models.plan(huge, TOKENIZER)
    # per layer 2 x 65536^2 (queries, output), half of that for keys and values, 3 x 65536 x 262144
    assert facts.num_parameters > 64 * (3 * 65536**2 + 3 * 65536 * 262144)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_weights_that_do_not_fit_into_the_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda: 1 << 20)
    with pytest.raises(ModelError, match=r"asks for 1.9 GiB .* has 0.0 GiB of memory left. Fix: lower model"):
        models.create(INIT.model_copy(update={"d_model": 4096, "mlp_hidden_size": 16384}), TOKENIZER, 0)


def test_free_memory_is_what_the_machine_has():
    free = models.memory.free_memory()
    assert free is None or (1 << 20) < free < (1 << 50)


@pytest.mark.parametrize("name", ["d_model", "n_layers", "n_heads", "mlp_hidden_size", "max_sequence_length"])
@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_a_size_beyond_reason_is_refused_at_once(name, family):
    init = INIT.model_copy(update={name: 2**30})
    with pytest.raises(ModelError, match="^model.init: .*Fix: correct this key"):
        models.plan(init, TOKENIZER, family=family, block_length=4)
