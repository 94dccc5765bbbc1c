"""Chat templates that would hang or fill the machine are refused; every other one runs as before."""

from __future__ import annotations

import time

import psutil
import pytest

from rl4dlm.data import TextFormat, template_bounds
from rl4dlm.data.render import open_renderer
from rl4dlm.data.template_bounds import require_bounded
from rl4dlm.errors import ModelError
from rl4dlm.models import CHAT_TEMPLATE, build_bpe_tokenizer
from rl4dlm.recipe.sections import DataConfig

TOKENIZER = build_bpe_tokenizer(["one two three"], 300, chat_template=True)
LOOPS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 1.0)


DOUBLING = (
    "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)
MEMORY = "asks for more than 512 MiB of memory"
HOSTILE = {
    "nested loops": (LOOPS, "takes more than 1 s"),
    "a text of ten thousand million characters": ("{{ 'x' * 10**10 }}", MEMORY),
    "a list of as many": ("{% set a = [1] * 10**10 %}", MEMORY),
    "doubling": (DOUBLING, f"({MEMORY}|takes more than 1 s)"),
    "a wide field": ("{{ '%9999999999d' % 1 }}", MEMORY),
    "a text that is long and fits": ("{{ 'x' * 2000000 }}", "makes more than 1,000,000 characters"),
    "a huge power": ("{{ 9 ** (9 ** 9) }}", "takes more than 1 s"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_bounds_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template, reason = HOSTILE[name]
    monkeypatch.setattr(TOKENIZER, "chat_template", template)
    started = time.monotonic()
    with pytest.raises(ModelError, match=f"chat template {reason}.*Fix: set model.chat_template: none"):
        open_renderer(DataConfig(train="rows.jsonl"), TextFormat(TOKENIZER, lambda text: ()))
    assert time.monotonic() - started < 5
    # A template that is not used is not run.
    open_renderer(
        DataConfig(train="rows.jsonl"), TextFormat(TOKENIZER, lambda text: (), chat_template="none")
    )


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{{ raise_exception('roles must alternate') }}",  # said where a row of the data raises it
        "{% for m in messages %}{% for i in range(200) %}{{ m['content'][i:i+1] }}{% endfor %}{% endfor %}",
    ],
)
def test_any_other_template_passes_and_leaves_no_child(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TOKENIZER, "chat_template", template)
    before = set(psutil.Process().children(recursive=True))
    require_bounded(TOKENIZER)
    assert set(psutil.Process().children(recursive=True)) <= before
