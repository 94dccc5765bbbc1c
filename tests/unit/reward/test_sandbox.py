"""The jail as the package and the `code` reward use it: layers, verdicts, what crosses, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from rl4dlm.reward import sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.layers()["jail"] != "on", reason="no jail can be set up here"
)
jail = sandbox.jail()


def passed(source: str, *tests: str, **fields: object) -> list[bool]:
    """Which tests a completion passes."""
    return list(jail.run_tests([source], jail.Tests(tests, **fields), jail.Setup(), stop=False).passed)


def test_the_layers_are_told_one_by_one():
    found = sandbox.layers()
    assert found["jail"] == "on" and found["system_calls"] == "on" and found["limits"] == "on"
    assert "on" in (found["private_root"], found["landlock"])
    assert set(found) == {"jail", "limits", "namespaces", "private_root", "landlock", "user", "system_calls"}
    assert all(text == "on" or text.startswith("off") for text in found.values())


@pytest.mark.parametrize("layer", ["system_calls", "limits"])
def test_without_a_layer_that_is_needed_nothing_is_run(layer):
    setup = jail.Setup(leave_out=(layer,))
    assert jail.layers(setup)["jail"].startswith("off")
    with pytest.raises(jail.JailError, match=f"{layer} off: left out"):
        jail.run_tests(["def f(): return 1"], jail.Tests(("assert f() == 1",)), setup)
    with pytest.raises(jail.JailError, match="allow_unprotected: true"):
        jail.run_script(["print(1)"], "", setup)


def test_without_a_root_of_its_own_and_without_landlock_nothing_is_run():
    with pytest.raises(jail.JailError, match="landlock off: left out"):
        jail.run_script(["print(1)"], "", jail.Setup(leave_out=("private_root", "landlock")))


def test_it_runs_unprotected_only_when_told_to():
    setup = jail.Setup(leave_out=("system_calls",), allow_unprotected=True)
    assert jail.run_script(["print(1)"], "", setup) == ("1\n", "")


def test_every_test_has_its_own_result():
    assert passed("def f(x): return x", "assert f(1) == 1", "assert f(1) == 2", "assert f(3) == 3") == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("(1, [2.5, None], {'a': {3}})", "assert f() == (1, [2.5, None], {'a': {3}})"),
        ("10 ** 5000", "assert f() == 10 ** 5000"),
        ("float('inf')", "assert f() == float('inf')"),
        ("b'\\xff'", "assert f() == b'\\xff'"),
        ("1 + 2j", "assert f() == 1 + 2j"),
        ("'\\ud800'", "assert f() == chr(0xd800)"),
        ("range(0, 6, 2)", "assert list(f()) == [0, 2, 4]"),
        ("frozenset([1])", "assert f() == {1} and isinstance(f(), frozenset)"),
        ("int", "assert f() is int"),
        ("map(str, [1, 2])", "assert list(f()) == ['1', '2']"),
        ("(x for x in 'ab')", "a = f()\nassert next(a) == 'a' and next(a) == 'b' and next(a, 0) == 0"),
        ("iter([1])", "assert 1 in f()"),
        ("__import__('collections').Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
        ("__import__('re').match('b', 'b')", "assert f().span() == (0, 1)"),
        ("__import__('array').array('i', [1, 2])", "assert f() == [1, 2]"),
        ("__import__('decimal').Decimal('1.5')", "assert str(f()) == '1.5'"),
    ],
)
def test_answers_arrive_as_equal_plain_data(value, test):
    assert passed(f"def f(): return {value}", test) == [True]


def test_an_answer_of_a_subclass_compares_as_its_builtin_base():
    source = "class Mine(list):\n    def __eq__(self, other): return True\ndef f(): return Mine([1])"
    tests = ("assert isinstance(f(), list) and f() == [1]", "assert f() == [2]", "assert [2] == f()")
    assert passed(source, *tests) == [True, False, False]


def test_objects_of_the_completion_can_be_made_changed_and_passed_back():
    source = """
class Node:
    def __init__(self, value): self.value, self.left = value, None
def depth(node): return 0 if node is None else 1 + depth(node.left)
"""
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)"
    tests = ("assert depth(root) == 3", "assert root.left.value == 2", "assert root == Node(1)")
    assert passed(source, *tests, setup=setup) == [True, True, False]


def test_a_builtin_exception_crosses_and_an_own_one_becomes_its_base():
    source = "class Odd(ValueError): pass\ndef f(x):\n    raise Odd('odd') if x else KeyError('k')"
    catch = (
        "try: f({})\nexcept {} as error: assert 'o' in str(error) or 'k' in str(error)\nelse: assert False"
    )
    assert passed(source, catch.format(1, "ValueError"), catch.format(0, "KeyError")) == [True, True]
    assert passed(source, catch.format(1, "KeyError")) == [False]


def test_a_completion_cannot_end_a_loop_of_the_tests_early():
    assert passed("def f(x): raise StopIteration", "assert all(map(f, [1, 2, 3]))") == [False]


def test_what_a_completion_does_to_its_arguments_stays_with_it():
    assert passed("def f(x):\n    x.clear()\n    return []", "a = [2, 1]\nassert f(a) == sorted(a)") == [
        False
    ]


def test_a_completion_cannot_replace_names_that_the_tests_have_anyway():
    source = (
        "import sys\nclass sys:\n    getsizeof = staticmethod(lambda x: 7)\nsorted = len\ndef f(x): return 7"
    )
    assert passed(source, "assert f([3]) == sys.getsizeof([3])", "assert f([3]) == sorted([7])[0]") == [
        False,
        True,
    ]


def test_a_function_named_like_a_builtin_can_be_tested():
    assert passed("def sum(a, b): return a - b", "assert sum(3, 1) == 2") == [True]


def test_a_test_that_is_no_python_is_the_rows_fault():
    with pytest.raises(jail.BrokenTests, match="SyntaxError"):
        passed("def f(): return 1", "assert f( == 1")


def test_a_completion_that_is_late_keeps_what_it_passed_before():
    setup = jail.Setup(jail.Limits(seconds=0.5))
    tests = jail.Tests(("assert f(1) == 1", "assert f(2) == 2", "assert f(1) == 1"))
    source = "def f(x):\n    while x == 2: pass\n    return x"
    verdict = jail.run_tests([source], tests, setup, stop=False)
    assert verdict.passed == (True, False, False) and verdict.share == pytest.approx(1 / 3)
    assert "no verdict within 0.5 s" in verdict.error


def test_equal_completions_see_equal_hashes():
    source = "def f(): return list({'a', 'b', 'c', 'd', 'e'})"
    answers = {jail.run_script([f"{source}\nprint(f())"], "", jail.Setup())[0] for _ in range(3)}
    assert len(answers) == 1


def test_the_environment_is_empty_and_the_working_directory_too():
    source = """
import os
for name in sorted(os.environ): print(name)
print(os.listdir(), os.environ["HOME"] == os.environ["TMPDIR"] == os.getcwd())
"""
    printed, why = jail.run_script([source], "", jail.Setup())
    *names, rest = printed.splitlines()
    assert (rest, why) == ("[] True", "")
    ours = {
        "HOME",
        "TMPDIR",
        "OMP_NUM_THREADS",
        "MALLOC_ARENA_MAX",
        "OPENBLAS_NUM_THREADS",
        "PYTHONHASHSEED",
        "PYTHONUTF8",
    }
    assert set(names) - {"LC_CTYPE"} == ours  # LC_CTYPE: Python's own, for UTF-8


def test_only_named_packages_can_be_imported():
    pytest.importorskip("numpy")
    source = "import numpy\nprint(numpy.arange(3).sum())"
    assert jail.run_script([source], "", jail.Setup())[0] == "3\n"
    assert jail.run_script([source], "", jail.Setup(packages=()))[0] is None


def test_a_program_reads_its_input_and_is_judged_by_its_status():
    assert jail.run_script(["import sys\nprint(sys.stdin.read()[::-1])\nsys.exit()"], "ab", jail.Setup()) == (
        "ba\n",
        "",
    )
    assert jail.run_script(["print(1)\nsys.exit(3)"], "", jail.Setup())[0] is None
    assert jail.run_script(["print(1)\nraise SystemExit(3)"], "", jail.Setup()) == (
        None,
        "ended with status 3",
    )


def test_a_program_that_prints_without_end_is_ended_before_its_deadline():
    start = time.monotonic()
    printed, why = jail.run_script(
        ["while True: print('x' * 9999)"], "", jail.Setup(jail.Limits(seconds=30.0))
    )
    assert printed is None and "1024 KiB" in why and time.monotonic() - start < 10


def test_the_jail_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "from rl4dlm.reward import sandbox; j = sandbox.jail();"
        "j.run_script(['import time; time.sleep(60)'], '', j.Setup(j.Limits(seconds=50.0)))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    runner = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        wait_for(lambda: len(processes_below(runner.pid)) == 2)
        below = processes_below(runner.pid)
    finally:
        runner.kill()
        runner.wait()
    wait_for(lambda: not [pid for pid in below if os.path.exists(f"/proc/{pid}")])
    assert list(tmp_path.iterdir()) == []


def processes_below(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = [int(child) for child in file.read().split()]
    return children + [below for child in children for below in processes_below(child)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
