"""Fixtures of the data tests: tokenizers, files, and a cache of their own for `datasets`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_helpers import CHATML, CharTokenizer

from rl4dlm.data import PromptSource, open_prompts
from rl4dlm.recipe.sections import DataConfig

SHARED_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its Arrow files in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")


@pytest.fixture(scope="session")
def shared_data() -> Iterator[Path]:
    """The folder of real files beside the repository."""
    if not (SHARED_DATA / "gsm8k_train.jsonl").is_file():
        pytest.skip(f"{SHARED_DATA} has no real data")
    yield SHARED_DATA


@pytest.fixture(scope="session")
def plain_tokenizer() -> CharTokenizer:
    return CharTokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> CharTokenizer:
    return CharTokenizer(CHATML)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """`write_jsonl(rows, name="rows.jsonl")` -> path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def open_source(plain_tokenizer: CharTokenizer) -> Callable[..., PromptSource]:
    """`open_source(DataConfig fields, ...)` -> PromptSource, 2 rows for evaluation unless told."""

    def open_(
        tokenizer: CharTokenizer = plain_tokenizer,
        seed: int = 0,
        num_eval: int = 2,
        chat_template: str = "auto",
        **fields: Any,
    ) -> PromptSource:
        texts = tokenizer.texts(chat_template=chat_template)
        return open_prompts(DataConfig(**fields), texts, seed=seed, num_eval=num_eval)

    return open_
