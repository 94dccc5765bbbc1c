"""The reader that the built-in rewards share: any notation of a number is that number, and no other one."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4dlm.recipe import shipped_folder

if str(shipped_folder("reward_fns")) not in sys.path:
    sys.path.append(str(shipped_folder("reward_fns")))

from reward_answers import places, values  # noqa: E402
from reward_answers.grammar import MAX_DEPTH, parse  # noqa: E402
from reward_answers.numbers import numbers_in, spelled  # noqa: E402
from reward_answers.same import constant_in, read, same, same_choice  # noqa: E402
from reward_answers.tokens import Unreadable, tokens_of  # noqa: E402

WHOLE = st.integers(0, 10**12)
PROPER = st.tuples(st.integers(1, 400), st.integers(1, 400)).filter(lambda pair: pair[0] < pair[1])


@settings(max_examples=150, deadline=None)
@given(whole=WHOLE, part=PROPER, negative=st.booleans())
def test_a_mixed_number_is_its_value_in_every_notation(whole, part, negative):
    sign = "-" if negative else ""
    value = (whole + Fraction(*part)) * (-1 if negative else 1)
    top, bottom = part
    for text in (
        f"{sign}{whole}\\frac{{{top}}}{{{bottom}}}",
        f"{sign}{whole} {top}/{bottom}",
        f"{sign}{whole:,} \\dfrac{{{top}}}{{{bottom}}}",
        f"{sign}\\frac{{{whole * bottom + top}}}{{{bottom}}}",
    ):
        assert [number.value for number in numbers_in(f"It takes {text} hours.")] == [value], text
        found = constant_in(text)
        assert found is not None and found.value == value, text


@settings(max_examples=150, deadline=None)
@given(digits=st.integers(1, 10**9), power=st.integers(-40, 40), other=st.integers(1, 10**9))
def test_powers_of_ten_are_exact_and_unequal_ones_stay_unequal(digits, power, other):
    forms = [f"{digits}e{power}", f"{digits} \\times 10^{{{power}}}", f"{digits}×10^{power}"]
    for form in forms:
        assert [number.value for number in numbers_in(form)] == [digits * Fraction(10) ** power]
        assert same(form, forms[0])
        assert same(form, f"{other}e{power}") == (digits == other)
        assert not same(form, f"{digits}e{power - 1}")


@settings(max_examples=150, deadline=None)
@given(a=st.fractions(max_denominator=10**6), b=st.fractions(max_denominator=10**6))
def test_fractions_are_the_same_where_they_are_equal_and_in_both_directions(a, b):
    some, other = f"\\frac{{{a.numerator}}}{{{a.denominator}}}", f"{b.numerator}/{b.denominator}"
    assert same(some, other) == same(other, some) == (a == b)
    assert same(f"{some}\\sqrt{{7}}", f"{other}\\cdot\\sqrt{{7}}") == (a == b)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from 12/25/2024 on, 3:30 or 1.2.3, x4, 2x, 1,8", []),
        ("1,234,567 and 1{,}234 and 1\\,234.5", [1234567, 1234, Fraction(2469, 2)]),
        ("90^\\circ, 5 cm^2", [90, 5]),
        ("- 5 pots\n- 7 pans", [5, 7]),
        ("20 - 18, 20-18, 20 -18", [20, 18, 20, 18, 20, 18]),
        ("from -4 to (-3), x = -2, $-1, -$6", [-4, -3, -2, -1, -6]),
        ("204_5 and 204_{6} and 9_5", [54, 76]),
        ("2½ and ¾", [Fraction(5, 2), Fraction(3, 4)]),
        ("٣ and ７", []),
        ("3/0", []),
        ("9" * 201, []),
        ("1e99999", []),
    ],
)
def test_numbers_of_prose_are_read_whole_or_not_at_all(text, found):
    assert [number.value for number in numbers_in(text)] == found


def test_symbols_become_their_commands_and_nothing_else_changes():
    assert spelled("x² ≠ 2½ − y₁") == "x^{2} \\ne  2\\frac{1}{2} - y_{1}"
    assert spelled("x^2") == "x^2" and spelled("٣") == "٣"


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("Think. <think>\n", "<think>\n"),
        ("so \\boxed{", "\\boxed{"),
        ("use <think> and </think>.", ""),
        ([{"role": "user", "content": "<think>"}], ""),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is"}], "It is"),
        ([], ""),
        (None, ""),
    ],
)
def test_what_a_prompt_opens(prompt, opened):
    assert places.opened(prompt) == opened


def test_stars_of_a_power_are_no_emphasis():
    assert places.without_markdown("2**8+3**5") == "2**8+3**5"
    assert places.without_markdown("is **8+3**, `x`") == "is 8+3, x"


def test_work_and_depth_are_bounded():
    with pytest.raises(Unreadable, match="nested too deeply"):
        parse(tokens_of("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH))
    with pytest.raises(Unreadable, match="too much to compute"):
        values.allow_work()
        for _ in range(10_000):
            values.exact(parse(tokens_of("3^{9000}")), {})
    assert read("9^{9^{9}}") is not None and not same("9^{9^{9}}", "9^{9^{8}}")
    assert not same("(x+y)^{99999}", "(y+x)^{99999}")
    values.allow_work()


@settings(max_examples=150, deadline=None)
@given(
    whole=st.integers(0, 99),
    before=st.text("0123456789", max_size=4),
    period=st.text("0123456789", min_size=1, max_size=5),
)
def test_a_recurring_decimal_is_its_fraction(whole, before, period):
    shift = 10 ** len(before)
    value = Fraction(f"{whole}.{before}0") + Fraction(int(period), (10 ** len(period) - 1) * shift)
    fraction = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    for text in (f"{whole}.{before}\\overline{{{period}}}", f"{whole}.{before}{period * 3}..."):
        found = constant_in(text)
        assert found is not None and found.value == value, text
        assert same(text, fraction) and not same(text, f"{fraction} + 1")


def test_recurring_decimals_are_read_in_prose():
    found = numbers_in("It is -0.\\overline{3}, 0.1\\overline{6} or 2.151515... of 7.")
    assert [number.value for number in found] == [Fraction(-1, 3), Fraction(1, 6), Fraction(71, 33), 7]


@pytest.mark.parametrize(
    "label", [r"\textbf{(C)}\ ", r"\textbf{(C) }", r"\text{(C)} ", "(C) ", r"\mathrm{(C)}\quad "]
)
def test_a_choice_is_its_letter_and_its_value(label):
    choice = label + r"\frac{7}{2}"
    for right in ("C", r"\text{(C)}", "3.5", r"\textbf{(C)}\ 7/2"):
        assert same_choice(right, choice) or same(right, choice), right
        assert same_choice(choice, right) or same(choice, right), right
    for wrong in ("D", "7", r"\textbf{(D)}\ 7/2", r"\textbf{(C)}\ 7"):
        assert not same_choice(wrong, choice) and not same(wrong, choice), wrong
