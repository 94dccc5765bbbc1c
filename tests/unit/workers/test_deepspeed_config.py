from __future__ import annotations

import pytest

from rl4dlm.recipe.sections import TrainerConfig
from rl4dlm.workers.engine import deepspeed_config


@pytest.mark.parametrize(
    ("num_trainable", "bucket"), [(1, 2), (2, 2), (314_113, 314_114), (8_000_000_001, 500_000_000)]
)
def test_buckets_hold_what_is_trained_up_to_a_bound_and_are_even(num_trainable: int, bucket: int) -> None:
    zero = deepspeed_config(TrainerConfig(), num_trainable)["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (bucket, bucket)
