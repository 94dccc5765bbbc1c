"""The player: one self-contained page that shows recorded trajectories step by step, a group side by side.

Like the report it loads nothing; what models wrote travels as JSON and is put on the page as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np

from rl4dlm.tracking.charts import text
from rl4dlm.tracking.report import csp_hash
from rl4dlm.tracking.samples import visible
from rl4dlm.types import EOS_FILLER, FILL, REMASK, Rollout, RolloutGroup, Scores

TokenText = Callable[[int], str]
"""One token id -> what the page shows of it."""

# What a change does to a position, in the page's data.
_WRITE, _HIDE, _FILL = 0, 1, 2


def player_page(
    groups: Sequence[RolloutGroup],
    scores: Scores | None,
    token_text: TokenText,
    *,
    title: str,
    step_rewards: Sequence[Sequence[float] | None] | None = None,
) -> str:
    """The page as HTML.

    Args:
        groups: what is played, with traces.
        scores: rewards in the order of the flattened groups; None: none are shown.
        token_text: how a token id is shown.
        title: of the page.
        step_rewards: per rollout a reward per step, where they were recorded.
    """
    data, row = [], 0
    for group in groups:
        samples = []
        for rollout in group.rollouts:
            steps = None if step_rewards is None else step_rewards[row]
            samples.append(_sample(rollout, token_text, _rewards(scores, row), steps))
            row += 1
        prompt = visible(group.prompt.text, limit=4000, lines=True)
        data.append({"uid": group.prompt.uid, "prompt": prompt, "samples": samples})
    assets = resources.files("rl4dlm.tracking") / "assets"
    style = "".join((assets / name).read_text(encoding="utf-8") for name in ("report.css", "player.css"))
    script = (assets / "player.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src {csp_hash(style)}; script-src {csp_hash(script)}"
    # Inside a script element only "</" and "<!" could end or change the data.
    payload = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)} - rl4dlm</title><style>{style}</style></head>\n"
        f"<body><main><h1>{text(title)}</h1>{_CONTROLS}"
        '<pre id="prompt" class="prompt"></pre><div id="samples" class="players"></div></main>'
        f'<script id="data" type="application/json">{payload}</script>'
        f"<script>{script}</script></body></html>\n"
    )


_CONTROLS = (
    '<div class="controls"><button id="play">play</button>'
    '<button id="back">&#8592;</button><button id="forth">&#8594;</button>'
    '<input id="step" type="range" min="0" value="0"><output id="where"></output>'
    '<label>prompt <select id="group"></select></label>'
    '<label>speed <select id="speed"><option value="800">slow</option>'
    '<option value="300" selected>middle</option><option value="80">fast</option></select></label>'
    '<span class="legend"><i class="mask"></i>masked <i class="p0"></i>unsure <i class="p4"></i>sure '
    '<i class="gone"></i>remasked</span></div>'
)


def _sample(
    rollout: Rollout, token_text: TokenText, rewards: dict[str, float], steps: Sequence[float] | None
) -> dict[str, Any]:
    """What the page needs of one rollout."""
    per_step = None if steps is None else [_number(value) for value in steps]
    return {
        "sample": rollout.sample,
        "length": len(rollout.completion_ids),
        "end": rollout.completion_len,
        "forwards": rollout.num_forwards,
        "rewards": {name: _number(value) for name, value in rewards.items()},
        "stepRewards": per_step,
        "blocks": rollout.trace.step_block.tolist(),
        "frames": [[_change(*change, token_text) for change in frame] for frame in frames(rollout)],
    }


def frames(rollout: Rollout) -> list[list[tuple[int, int, int, float]]]:
    """What each step changes: (position, write, hide or fill, token, log-probability); fillers come last."""
    trace, events = rollout.trace, rollout.trace.events
    made: list[list[tuple[int, int, int, float]]] = [[] for _ in range(rollout.num_steps + 1)]
    if events is not None:
        for step in range(rollout.num_steps + 1):
            for i in range(int(events.ptr[step]), int(events.ptr[step + 1])):
                kind = {REMASK: _HIDE, FILL: _FILL}.get(int(events.op[i]), _WRITE)
                made[step].append((int(events.pos[i]), kind, int(events.token[i]), float(events.logp[i])))
        return made
    order = np.lexsort((trace.rank, trace.step_map))
    for position in order.tolist():
        kind = _FILL if trace.kind[position] == EOS_FILLER else _WRITE
        token, logp = int(rollout.completion_ids[position]), float(trace.rollout_logp[position])
        made[int(trace.step_map[position])].append((position, kind, token, logp))
    return made


def _change(position: int, kind: int, token: int, logp: float, token_text: TokenText) -> list[Any]:
    if kind == _HIDE:
        return [position, kind]
    shown = visible(token_text(token), limit=200)
    return [position, kind, shown, round(math.exp(logp), 4) if kind == _WRITE else None]


def _rewards(scores: Scores | None, row: int) -> dict[str, float]:
    if scores is None:
        return {}
    return {"reward": float(scores.reward[row])} | {
        name: float(values[row]) for name, values in scores.components.items()
    }


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
