"""How a reward function is called: which signature it has, what it is given, what its answer means.

Two signatures are understood, told apart by parameter names:

    TRL   f(prompts, completions, **columns) -> list[float | None], sync or async. It may also name
          completion_ids, trainer_state, log_extra, log_metric (as in TRL) and trajectory (ours).
    verl  compute_score(data_source, solution_str, ground_truth, extra_info) -> float or {"score": float, ...}
"""

from __future__ import annotations

import inspect
import itertools
import os
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rl4dlm.errors import PluginError

TRL_PARAMETERS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
VERL_PARAMETERS = ("data_source", "solution_str", "ground_truth", "extra_info")
# Columns of these names are not handed on: they would collide with what a function is given anyway.
RESERVED = frozenset((*TRL_PARAMETERS, "trajectory", "prompt", "completion", "environments"))

EXPECTED = (
    "expected f(prompts, completions, **columns) as in TRL, "
    "or compute_score(data_source, solution_str, ground_truth, extra_info) as in verl"
)


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
    trajectories: list[Mapping[str, Any]] | None = None
    """Per sample at least `completion_ids` and `step_map`; None where there are none."""
    trainer_state: Mapping[str, Any] = field(default_factory=lambda: {"global_step": 0})
    """Attributes of TRL's `trainer_state`."""


@dataclass(frozen=True)
class LoadedReward:
    """A reward function that can be called, whatever its signature."""

    name: str
    function: Callable[..., Any]
    style: Literal["trl", "verl"]
    parameters: tuple[str, ...]
    """Names that it takes by keyword."""
    required: tuple[str, ...]
    """Those without a default."""
    takes_any: bool
    """It has `**columns`."""
    kwargs: Mapping[str, Any]
    """Settings from the recipe, handed to every call."""

    @property
    def needs_trajectory(self) -> bool:
        """It cannot be called without the record of a rollout."""
        return bool({"trajectory", "completion_ids"} & set(self.required))

    def __call__(self, call: Call) -> tuple[list[float | None], list[tuple[str, float]]]:
        """Score the samples of one call.

        Returns:
            One number or None per sample, and what the function logged through `log_metric`.

        Raises:
            WrongLength: the function returned a list of another length.
            TypeError: it returned something else than numbers, or needs a column that the rows lack.
        """
        metrics: list[tuple[str, float]] = []
        if self.style == "verl":
            rows = range(len(call.completions))
            results = [self._run(self._verl_arguments(call, row), call) for row in rows]
            return [_number(_score_of(result)) for result in results], metrics
        result = self._run(self._trl_arguments(call, metrics), call)
        return _numbers(result, len(call.completions)), metrics

    def _run(self, arguments: Mapping[str, Any], call: Call) -> Any:
        missing = [name for name in self.required if name not in arguments]
        if missing:
            known = ", ".join(sorted(call.columns)) or "none"
            raise TypeError(f"needs {', '.join(missing)}, which the rows do not have; their columns: {known}")
        result = self.function(**arguments)
        return _finished(result) if inspect.isawaitable(result) else result

    def _trl_arguments(self, call: Call, metrics: list[tuple[str, float]]) -> dict[str, Any]:
        offered: dict[str, Any] = {key: list(v) for key, v in call.columns.items() if key not in RESERVED}
        offered |= self.kwargs
        offered |= {
            "prompts": call.prompts,
            "completions": [_as_message(*pair) for pair in zip(call.prompts, call.completions, strict=True)],
            "trainer_state": _State(call.trainer_state),
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: metrics.append((str(name), float(value))),
        }
        if call.trajectories is not None:
            offered["completion_ids"] = [list(record["completion_ids"]) for record in call.trajectories]
            if "trajectory" in self.parameters:
                offered["trajectory"] = call.trajectories
        return self._accepted(offered)

    def _verl_arguments(self, call: Call, row: int) -> dict[str, Any]:
        columns = {key: values[row] for key, values in call.columns.items()}
        offered = {
            "data_source": columns.get("data_source"),
            "solution_str": call.completions[row],
            "ground_truth": _ground_truth(columns),
            "extra_info": columns.get("extra_info") or {},
        }
        return self._accepted(dict(self.kwargs) | offered)

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


def _style(named: Sequence[str], takes_any: bool) -> Literal["trl", "verl"] | None:
    if {"solution_str", "ground_truth"} <= set(named):
        return "verl"
    if "completions" in named or (takes_any and not named):
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


def _score_of(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return result
    if "score" not in result:
        raise TypeError(f"returned a dict without score: its keys are {', '.join(map(str, result))}")
    return result["score"]


def _numbers(result: Any, expected: int) -> list[float | None]:
    if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
        raise TypeError(f"returned {type(result).__name__}, expected a list of {expected} numbers or None")
    values = list(itertools.islice(iter(result), expected + 1))
    if len(values) != expected:
        count = "more" if len(values) > expected else str(len(values))
        raise WrongLength(f"returned {count} rewards for {expected} completions")
    return [_number(value) for value in values]


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


def _finished(result: Awaitable[Any]) -> Any:
    """What an async function comes to."""
    # Here and not above: it is half of the time that a reward process takes to start.
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())
