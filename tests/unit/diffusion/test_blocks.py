"""Attention layouts: who sees whom."""

import torch

from rl4dlm.diffusion.blocks import BlockLayout, doubled_layout, prompt_tail, sequence_layout
from rl4dlm.models.llada import LLaDA, initialise_llada
from rl4dlm.models.network_config import made_config
from rl4dlm.recipe.sections import ModelInit


def network() -> LLaDA:
    init = ModelInit(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=48, max_sequence_length=64)
    module = LLaDA(made_config("llada", init, vocab_size=14, mask_id=12, eos_id=13, pad_id=13))
    initialise_llada(module, torch.Generator().manual_seed(0))
    return module.eval()


def real(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_a_sequence_without_blocks_sees_all_real_tokens() -> None:
    seen = sequence_layout(real([0, 1, 1]), None).visible()[0]
    assert seen[1:].tolist() == [[False, True, True], [False, True, True]]


def test_blocks_begin_at_the_first_real_token() -> None:
    seen = sequence_layout(real([0, 1, 1, 1, 1, 1]), 2).visible()[0]
    # Real tokens 0, 1 | 2, 3 | 4 stand in columns 1, 2 | 3, 4 | 5.
    assert seen[2].nonzero().flatten().tolist() == [1, 2]
    assert seen[3].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert seen[5].nonzero().flatten().tolist() == [1, 2, 3, 4, 5]


def test_a_doubled_sequence_has_as_many_pairs_as_the_formula_says() -> None:
    blocks, size = 3, 2
    seen = doubled_layout(real([1] * blocks * size), size, blocks * size).visible()[0]
    assert seen.sum() == size**2 * blocks * (blocks + 1)  # specs: models 8.4


def test_noisy_tokens_see_earlier_clean_blocks_and_their_own_noisy_block() -> None:
    seen = doubled_layout(real([1, 1, 1, 1]), 2, 4).visible()[0]
    assert seen[6].nonzero().flatten().tolist() == [0, 1, 6, 7]
    assert seen[2].nonzero().flatten().tolist() == [0, 1, 2, 3]  # clean tokens see no noisy ones


def test_padding_sees_itself_and_nothing_sees_padding() -> None:
    seen = sequence_layout(real([0, 1], [0, 0]), 2).visible()
    assert not seen[0, 1, 0]
    assert seen.any(dim=-1).all()  # no softmax over no keys


def test_segments_do_not_see_each_other() -> None:
    zeros = torch.zeros(1, 4, dtype=torch.long)
    layout = BlockLayout(zeros, zeros, zeros.bool(), torch.tensor([[0, 0, 1, 1]]))
    assert layout.visible()[0].tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2


def test_the_doubled_forward_equals_the_sequential_one_with_any_prompt_tail() -> None:
    module, size, completion = network(), 4, 8
    mask = 12
    for prompt in (4, 5, 7):
        tail = prompt_tail(prompt, size)
        ids = torch.randint(0, 10, (1, prompt + completion), generator=torch.Generator().manual_seed(prompt))
        hidden = torch.rand(1, completion, generator=torch.Generator().manual_seed(1)) < 0.6
        noisy = ids.clone()
        noisy[:, prompt:] = noisy[:, prompt:].masked_fill(hidden, mask)
        copied = completion + tail
        layout = doubled_layout(torch.ones_like(ids, dtype=torch.bool), size, copied)
        doubled = module(torch.cat([ids, noisy[:, prompt - tail :]], dim=1), layout=layout)[0, -completion:]
        for start in range(prompt - tail, prompt + completion, size):
            end = min(start + size, prompt + completion)
            # Clean earlier blocks, then this block noisy: what the sampler sees.
            sequence = torch.cat([ids[:, :start], noisy[:, start:end]], dim=1)
            real_tokens = torch.ones_like(sequence, dtype=torch.bool)
            alone = module(sequence, layout=sequence_layout(real_tokens, size))[0]
            first = max(start, prompt)
            torch.testing.assert_close(
                doubled[first - prompt : end - prompt], alone[first:end], atol=1e-5, rtol=0
            )


def test_left_padding_does_not_change_a_doubled_forward() -> None:
    module, size = network(), 4
    ids = torch.randint(0, 10, (1, 11), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(ids, dtype=torch.bool)
    plain = module(torch.cat([ids, ids[:, -8:]], 1), layout=doubled_layout(attention, size, 8))
    padded_ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.bool), attention], dim=1)
    shifted = module(torch.cat([padded_ids, ids[:, -8:]], 1), layout=doubled_layout(padded, size, 8))
    torch.testing.assert_close(shifted[:, 3:], plain, atol=1e-5, rtol=0)


def test_the_token_before_the_first_of_a_noisy_block_is_the_clean_one() -> None:
    """A prompt of three tokens, a completion of three, blocks of two: the copy begins inside a block."""
    layout = doubled_layout(real([0, 1, 1, 1, 1, 1, 1]), 2, 4)
    #  column:   0 is padding, 1 to 6 are clean, 7 to 10 repeat 3 to 6
    assert layout.before()[0].tolist() == [0, 1, 1, 2, 3, 4, 5, 2, 7, 4, 9]
