from __future__ import annotations

from collections import Counter

from rl4dlm.rollout import Request, mix_block_lengths

REQUESTS = [Request(uid, sample, 100 * uid + sample, (1, 2)) for uid in range(200) for sample in range(2)]


def drawn(*path: int | str) -> dict[int, set[int | None]]:
    """By prompt, the block lengths of its completions."""
    lengths: dict[int, set[int | None]] = {}
    for request in mix_block_lengths(REQUESTS, [8, 2, 4], *path):
        lengths.setdefault(request.prompt_uid, set()).add(request.block_length)
    return lengths


def test_completions_of_a_prompt_share_a_block_length_and_all_lengths_occur_alike():
    found = drawn(0, "block_length", 1)
    assert all(len(lengths) == 1 for lengths in found.values())
    counts = Counter(next(iter(lengths)) for lengths in found.values())
    # 200 draws from three: 66.7 expected, standard deviation 6.7.
    assert set(counts) == {2, 4, 8} and min(counts.values()) > 40


def test_block_lengths_are_a_function_of_run_seed_update_and_prompt():
    assert drawn(0, "block_length", 1) == drawn(0, "block_length", 1)
    assert drawn(0, "block_length", 1) != drawn(0, "block_length", 2)
    assert drawn(0, "block_length", 1) != drawn(1, "block_length", 1)
    some = mix_block_lengths(REQUESTS[100:110], [8, 2, 4], 0, "block_length", 1)
    assert some == mix_block_lengths(REQUESTS, [8, 2, 4], 0, "block_length", 1)[100:110]


def test_without_lengths_the_requests_stay_as_they_are():
    assert mix_block_lengths(REQUESTS, None, 0) == REQUESTS
