"""How a reward function is called: which signature it has, what it is given, what its answer means.

Two signatures are understood, told apart by parameter names:

    TRL   f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns)
          -> list[float | None], sync or async; it gets those that it names, and trajectory (ours).
    verl  compute_score(data_source, solution_str, ground_truth, extra_info) -> float or {"score": float,
          ...}; and its form for batches, compute_score(data_sources, solution_strs, ...) -> list

Every argument has the meaning that it has there; `docs/rewards.md` says which.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rl4dlm.errors import PluginError

if TYPE_CHECKING:
    import asyncio

TRL_PARAMETERS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
VERL_PARAMETERS = ("data_source", "solution_str", "ground_truth", "extra_info")
# Columns of these names are not handed on: they would collide with what a function is given anyway.
RESERVED = frozenset((*TRL_PARAMETERS, "trajectory", "prompt", "completion"))

EXPECTED = (
    "expected f(prompts, completions, **columns) as in TRL, "
    "or compute_score(data_source, solution_str, ground_truth, extra_info) as in verl (a function that makes "
    "a reward function is called in a file of your own: my_reward = make_it(...))"
)


Style = Literal["trl", "verl", "verl batch"]


class WrongLength(Exception):
    """A function returned another number of rewards than there were completions."""


@dataclass(frozen=True)
class Call:
    """What one call of a reward function is about: a few samples.

    Example: `Call(["2+2="], ["4"], {"answer": ["4"]})`.
    """

    prompts: list[Any]
    """As the dataset gives them: text, or chat messages."""
    completions: list[str]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """The other columns of the rows, one value per sample."""
    completion_ids: list[list[int]] | None = None
    """Per sample the ids up to and including the first stop id, no padding; None where they are not known."""
    trajectories: list[Mapping[str, Any]] | None = None
    """Per sample the canvas as `completion_ids`, `step_map`, `num_steps`; None where they are not known."""
    trainer_state: Mapping[str, Any] = field(default_factory=lambda: {"global_step": 0, "max_steps": 0})
    """Attributes of TRL's `trainer_state`."""


class Answer(NamedTuple):
    """What came of one call."""

    values: list[float | None]
    """One per sample; None: the function does not apply to it."""
    metrics: list[tuple[str, float]]
    """What the function logged through `log_metric`."""
    extra: dict[str, list[Any]]
    """By column what it logged through `log_extra`, one value per sample."""
    misfits: list[str] = []
    """What it logged there and did not fit the samples."""


@dataclass(frozen=True)
class LoadedReward:
    """A reward function that can be called, whatever its signature."""

    name: str
    function: Callable[..., Any]
    style: Style
    parameters: tuple[str, ...]
    """Names that it takes by keyword."""
    required: tuple[str, ...]
    """Those without a default."""
    takes_any: bool
    """It has `**columns`."""
    kwargs: Mapping[str, Any]
    """Settings from the recipe, handed to every call."""

    @property
    def needs(self) -> list[str]:
        """What of the record of a rollout it cannot be called without."""
        return [name for name in ("completion_ids", "trajectory") if name in self.required]

    def __call__(self, call: Call) -> Answer:
        """Score the samples of one call.

        Raises:
            WrongLength: the function returned another number of values.
            TypeError: it returned something else than numbers, or needs a column that the rows lack.
        """
        if self.style == "trl":
            return self._call_trl(call)
        rows = [self._verl_row(call, row) for row in range(len(call.completions))]
        if self.style == "verl":
            started = [self._start(self._accepted(dict(self.kwargs) | row), call) for row in rows]
            results = _all_finished(started)
        else:
            columns = {f"{name}s": [row[name] for row in rows] for name in VERL_PARAMETERS}
            (result,) = _all_finished([self._start(self._accepted(dict(self.kwargs) | columns), call)])
            results = _list(result, len(rows))
        return _verl_answer(results)

    def _call_trl(self, call: Call) -> Answer:
        count = len(call.completions)
        metrics: list[tuple[str, float]] = []
        extra: dict[str, list[Any]] = {}
        offered: dict[str, Any] = {key: list(v) for key, v in call.columns.items() if key not in RESERVED}
        offered |= self.kwargs
        offered |= {
            "prompts": call.prompts,
            "completions": [_as_message(*pair) for pair in zip(call.prompts, call.completions, strict=True)],
            "trainer_state": _State(call.trainer_state),
            "log_extra": lambda column, values: extra.setdefault(str(column), []).extend(values),
            "log_metric": lambda name, value: metrics.append((str(name), float(value))),
        }
        if call.completion_ids is not None:
            offered["completion_ids"] = call.completion_ids
        if call.trajectories is not None and "trajectory" in self.parameters:
            offered["trajectory"] = call.trajectories
        (result,) = _all_finished([self._start(self._accepted(offered), call)])
        values = [_number(value) for value in _list(result, count)]
        fitting = {column: logged for column, logged in extra.items() if len(logged) == count}
        misfits = [
            f"log_extra({column!r}) got {_counted(len(logged), 'value')} for {_completions(count)}"
            for column, logged in extra.items()
            if column not in fitting
        ]
        return Answer(values, metrics, fitting, misfits)

    def _start(self, arguments: Mapping[str, Any], call: Call) -> Any:
        """What the function returns: of an async one what can be awaited."""
        missing = [name for name in self.required if name not in arguments]
        if missing:
            known = ", ".join(sorted(call.columns)) or "none"
            raise TypeError(f"needs {', '.join(missing)}, which the rows do not have; their columns: {known}")
        return self.function(**arguments)

    def _verl_row(self, call: Call, row: int) -> dict[str, Any]:
        columns = {key: values[row] for key, values in call.columns.items()}
        return {
            "data_source": columns.get("data_source"),
            "solution_str": call.completions[row],
            "ground_truth": _ground_truth(columns),
            "extra_info": columns.get("extra_info") or {},
        }

    def _accepted(self, offered: dict[str, Any]) -> dict[str, Any]:
        if self.takes_any:
            return offered
        return {name: value for name, value in offered.items() if name in self.parameters}


def understand(
    function: Callable[..., Any], name: str, where: str, kwargs: Mapping[str, Any]
) -> LoadedReward:
    """Find out how a function wants to be called.

    Args:
        function: the plug-in.
        name: its name in metrics.
        where: path of the plug-in as the user wrote it, for messages.
        kwargs: settings from the recipe.

    Raises:
        PluginError: the signature is neither TRL's nor verl's, or does not take a setting.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{where}: its parameters cannot be read ({error}); {EXPECTED}.") from None
    kinds = {p.name: p.kind for p in signature.parameters.values()}
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = tuple(key for key, kind in kinds.items() if kind in keywords)
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds.values()
    style = _style(named, takes_any)
    if style is None or inspect.Parameter.POSITIONAL_ONLY in kinds.values():
        raise PluginError(f"{where}: the function has the parameters {signature}; {EXPECTED}.")
    _check_settings(where, named, takes_any, kwargs)
    required = tuple(key for key in named if signature.parameters[key].default is inspect.Parameter.empty)
    return LoadedReward(name, function, style, named, required, takes_any, dict(kwargs))


def explain(error: BaseException, plugin_file: str | None) -> str:
    """One line about an exception: type, message, and where it came from, in the plug-in if it was there.

    Args:
        error: as it was caught.
        plugin_file: source file of the plug-in, where it is known.
    """
    lines = traceback.format_exception_only(error)
    last = lines[-1 if isinstance(error, SyntaxError) else 0].strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == plugin_file]
    ours = os.path.dirname(__file__)
    outside = [frame for frame in frames if not frame.filename.startswith(("<frozen", ours))]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{last[:300]} ({error.filename}:{error.lineno})"
    for frame in (inside or outside)[-1:]:
        return f"{last[:300]} ({frame.filename}:{frame.lineno})"
    return last[:300]


def _style(named: Sequence[str], takes_any: bool) -> Style | None:
    if {"solution_str", "ground_truth"} <= set(named):
        return "verl"
    if {"solution_strs", "ground_truths"} <= set(named):
        return "verl batch"
    # TRL gives everything by keyword: what a function does not name goes to its **columns.
    if takes_any or {"prompts", "completions", "completion_ids", "trajectory"} & set(named):
        return "trl"
    return None


def _check_settings(where: str, named: Sequence[str], takes_any: bool, kwargs: Mapping[str, Any]) -> None:
    for key in kwargs:
        if key in RESERVED or key in VERL_PARAMETERS:
            raise PluginError(f"{where}: kwargs may not set {key}: every call receives its own.")
        if key not in named and not takes_any:
            raise PluginError(f"{where}: unknown kwargs key {key}; the function takes {', '.join(named)}.")


def _as_message(prompt: Any, completion: str) -> Any:
    """TRL gives completions as chat messages exactly where the prompt is one."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def _ground_truth(columns: Mapping[str, Any]) -> Any:
    """verl keeps it in `reward_model.ground_truth`; other data in `ground_truth` or `answer`."""
    nested = columns.get("reward_model")
    if isinstance(nested, Mapping) and "ground_truth" in nested:
        return nested["ground_truth"]
    return columns["ground_truth"] if "ground_truth" in columns else columns.get("answer")


def _verl_answer(results: Sequence[Any]) -> Answer:
    """Scores, and what else verl's dicts hold: every key is logged per completion, numbers as metrics too."""
    values: list[float | None] = []
    metrics: list[tuple[str, float]] = []
    names = dict.fromkeys(key for result in results if isinstance(result, Mapping) for key in result)
    for result in results:
        values.append(_number(_score_of(result)))
        if isinstance(result, Mapping):
            metrics += [
                (str(key), float(value))
                for key, value in result.items()
                if key != "score" and isinstance(value, Real)
            ]
    extra = {
        str(name): [result.get(name) if isinstance(result, Mapping) else None for result in results]
        for name in names
        if name != "score"
    }
    return Answer(values, metrics, extra)


def _score_of(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return result
    if "score" not in result:
        raise TypeError(f"returned a dict without score: its keys are {', '.join(map(str, result))}")
    return result["score"]


def _list(result: Any, expected: int) -> list[Any]:
    """What a function returned, one value per completion."""
    if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
        raise TypeError(f"returned {type(result).__name__}, expected a list of {expected} numbers or None")
    values = list(itertools.islice(iter(result), expected + 1))
    if len(values) == expected:
        return values
    sized = len(result) if isinstance(result, Sized) else len(values)
    count = _counted(sized, "reward") if isinstance(result, Sized) or sized < expected else "more rewards"
    raise WrongLength(f"returned {count} for {_completions(expected)}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _completions(count: int) -> str:
    return _counted(count, "completion")


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str | bytes):
        raise TypeError(f"returned the text {value[:40]!r} where a number or None is expected")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


class _State:
    """TRL's `trainer_state`: what is known of the run, as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has {' and '.join(self.__dict__)} here, not {name}")


def _all_finished(results: Sequence[Any]) -> list[Any]:
    """What calls of sync and async functions come to; those that can be awaited are, side by side."""
    waiting = [index for index, result in enumerate(results) if inspect.isawaitable(result)]
    if not waiting:
        return list(results)
    # Here and not above: it is half of the time that a reward process takes to start.
    import asyncio

    async def wait() -> list[Any]:
        return await asyncio.gather(*(results[index] for index in waiting))

    finished = list(results)
    for index, value in zip(waiting, _loop().run_until_complete(wait()), strict=True):
        finished[index] = value
    return finished


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all calls of a process, as TRL has one for all calls of a run: clients, locks and
    semaphores that a plug-in keeps belong to the loop of their first use."""
    import asyncio

    return asyncio.new_event_loop()
