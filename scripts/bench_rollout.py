"""What the rollout engine costs and gains, as a table; `--json` prints one object instead.

    python scripts/bench_rollout.py                          all of it, some minutes on two CPU cores
    python scripts/bench_rollout.py --only plain overhead
    python scripts/bench_rollout.py --device cuda --shape llada8b --json

Sections: `plain` (the engine against the published loop), `overhead` (time outside the model), `block_keys`
(a block-causal model with and without its exact cache), `samplers` (a trained model: tokens per forward,
speed-up and accuracy of samplers and caches), `batching` (refilled slots against fixed batches), `shape` (a
random model of true size on a GPU). On the CPU times are the process's own seconds on `--threads` threads, so
other load disturbs them little; on a GPU they are seconds on the clock, the device synchronised.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rl4dlm.benchmarks.statistics import wilson_interval
from rl4dlm.data import Example, open_task
from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.models import build_char_tokenizer, create, encode
from rl4dlm.models import denoiser as as_denoiser
from rl4dlm.models.llada import LLaDA, initialise_llada
from rl4dlm.models.network_config import made_config
from rl4dlm.recipe.objectives import RandomMaskObjective
from rl4dlm.recipe.sections import ModelInit, SortTask
from rl4dlm.rollout import Engine, Graphs, Request
from rl4dlm.testing.published_loop import generate_plain
from rl4dlm.trainers.sft import SFTPlan, sft_batch, sft_loss
from rl4dlm.types import Denoiser, DenoiserSpec, Rollout

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A network's size."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    attention: str = "full"
    block_length: int | None = None


SHAPES = {
    "head_heavy": Shape(128, 2, 4, 4, 384, 32_000),
    "body_heavy": Shape(512, 8, 8, 8, 1536, 4_096),
    "blocks": Shape(128, 4, 4, 4, 384, 512, "block_causal", 16),
    "llada8b": Shape(4096, 32, 32, 32, 12_288, 126_464),
    "sdar8b": Shape(4096, 36, 32, 8, 12_288, 151_936, "block_causal", 4),
    # The two big shapes in small, to try the GPU section on a CPU.
    "llada_tiny": Shape(64, 2, 4, 4, 128, 512),
    "sdar_tiny": Shape(64, 2, 4, 2, 128, 512, "block_causal", 4),
}
# Random models use four special ids, the last of the vocabulary.
MASK, PAD, EOS = -1, -2, -3


class Blocks(torch.nn.Module):
    """LLaDA's network with block-causal attention."""

    def __init__(self, network: LLaDA, block_length: int) -> None:
        super().__init__()
        self.network, self.block_length = network, block_length

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, layout: Any = None, **kwargs: Any
    ) -> Tensor:
        """See `rl4dlm.types.Denoiser`."""
        if layout is None:
            real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
            layout = sequence_layout(real, self.block_length)
        return self.network(input_ids, None, layout=layout, **kwargs)


class EndsAt(torch.nn.Module):
    """A model whose text ends where the prompt's first token says: at token / 20 of the canvas."""

    def __init__(self, model: torch.nn.Module, eos_id: int, gen_len: int) -> None:
        super().__init__()
        self.model, self.eos_id, self.gen_len = model, eos_id, gen_len

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, select: Tensor, **kwargs: Any
    ) -> Tensor:
        """See `rl4dlm.types.Denoiser`."""
        logits = self.model(input_ids, attention_mask, select=select, **kwargs)
        row, column = select.nonzero(as_tuple=True)
        position = column - (input_ids.shape[1] - self.gen_len)
        ended = position >= (input_ids[row, 0] * self.gen_len) // 20 - 1
        logits[:, self.eos_id] = torch.where(ended, 1e4, float("-inf"))
        return logits


class Timed(torch.nn.Module):
    """A model that counts its own seconds."""

    def __init__(self, model: torch.nn.Module, clock: Clock) -> None:
        super().__init__()
        self.model, self.clock, self.seconds, self.calls = model, clock, 0.0, 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `rl4dlm.types.Denoiser`."""
        start = self.clock.now()
        out = self.model(*args, **kwargs)
        self.seconds += self.clock.now() - start
        self.calls += 1
        return out


class Clock:
    """Seconds: of the process on the CPU, on the wall beside a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> float:
        """A point in time."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def measure(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of a call, and what it returned."""
        start = self.now()
        result = run()
        return self.now() - start, result


def random_model(shape: Shape, *, device: str = "cpu", length: int = 2048) -> Denoiser:
    """A random network of a shape: float32 on the CPU, bfloat16 on a GPU."""
    init = ModelInit(
        d_model=shape.width, n_layers=shape.layers, n_heads=shape.heads, n_kv_heads=shape.kv_heads,
        mlp_hidden_size=shape.mlp, max_sequence_length=length, rope_theta=500_000.0,
    )  # fmt: skip
    mask, eos, pad = shape.vocab + MASK, shape.vocab + EOS, shape.vocab + PAD
    config = made_config("llada", init, vocab_size=shape.vocab, mask_id=mask, eos_id=eos, pad_id=pad)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device("meta"):
        network = LLaDA(config).to(dtype)
    network = network.to_empty(device=device)
    initialise_llada(network, torch.Generator(device).manual_seed(0))
    # A random network's logits hardly differ; wider ones make its greedy choices clear.
    network.model.transformer["ff_out"].weight.data.mul_(4.0)
    network.forbid([shape.vocab + MASK, shape.vocab + PAD])
    model: torch.nn.Module = network.eval()
    if shape.block_length is not None:
        model = Blocks(network, shape.block_length)
    spec = DenoiserSpec(
        mask_id=shape.vocab + MASK, pad_id=shape.vocab + PAD, eos_id=shape.vocab + EOS,
        stop_ids=(shape.vocab + EOS,), vocab_size=shape.vocab,
        forbidden_ids=(shape.vocab + MASK, shape.vocab + PAD), attention=shape.attention,
        block_length=shape.block_length, max_length=length,
    )  # fmt: skip
    return Denoiser(model, spec, device)


def some_requests(count: int, prompt: int, ends: Sequence[int] = (20,)) -> list[Request]:
    """Random prompts; the first token says where the text ends, in twentieths of the canvas."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        ids = rng.integers(30, 400, size=prompt)
        ids[0] = ends[i % len(ends)]
        made.append(Request(i, 0, derive_seed("bench", i), tuple(ids.tolist())))
    return made


def bench_plain(clock: Clock) -> list[Row]:
    """The engine against the published loop, without a cache: greedy samples must be the same."""
    spec = SamplerSpec(64, 8, 32, temperature=0.0)
    skewed = tuple(range(2, 21, 2))
    cases = [
        ("head_heavy", "to the end of the canvas", 8, 0.0, (20,)),
        ("head_heavy", "to the end, sampled (plain: float64 Gumbel)", 4, 1.0, (20,)),
        ("head_heavy", "ends at 10 % to 100 %", 10, 0.0, skewed),
        ("body_heavy", "to the end of the canvas", 4, 0.0, (20,)),
        ("body_heavy", "ends at 10 % to 100 %", 10, 0.0, skewed),
    ]
    rows = []
    for name, what, count, temperature, ends in cases:
        base = random_model(SHAPES[name])
        ended = EndsAt(base.model, base.spec.eos_id, spec.gen_len)
        denoiser, wanted = replace(base, model=ended), some_requests(count, 16, ends)
        sampler = replace(spec, temperature=temperature)
        engine = Engine(denoiser, sampler, slots=4)
        fast, rollouts = clock.measure(lambda e=engine, w=wanted: e.generate(w, policy_version=0))
        slow, plain = clock.measure(lambda d=denoiser, s=sampler, w=wanted: generate_plain(d, s, w, 4))
        rows.append(
            {
                "shape": name,
                "texts": what,
                "plain_s": slow,
                "engine_s": fast,
                "speedup": slow / fast,
                "same_tokens": None if temperature else share_of_same_tokens(rollouts, plain),
            }
        )
    return rows


def share_of_same_tokens(rollouts: Sequence[Rollout], plain: np.ndarray) -> float:
    """Share of completions that are equal up to their end of text."""
    same = [
        np.array_equal(rollout.completion_ids[: rollout.completion_len], tokens[: rollout.completion_len])
        for rollout, tokens in zip(rollouts, plain, strict=True)
    ]
    return float(np.mean(same))


def bench_overhead(clock: Clock) -> list[Row]:
    """Seconds inside the model, divided by seconds of the whole rollout."""
    rows = []
    for name in ("body_heavy", "head_heavy"):
        base = random_model(SHAPES[name])
        for remasking in ("low_confidence", "dynamic", "entropy_bound"):
            timed = Timed(base.model, clock)
            spec = SamplerSpec(64, 16, 32, temperature=1.0, remasking=remasking, eos_policy="none")
            engine = Engine(replace(base, model=timed), spec, slots=4)
            whole, _ = clock.measure(lambda e=engine: e.generate(some_requests(4, 16), policy_version=0))
            rows.append(
                {
                    "shape": name,
                    "sampler": remasking,
                    "forwards": timed.calls,
                    "model_s": timed.seconds,
                    "whole_s": whole,
                    "share_in_model": timed.seconds / whole,
                }
            )
    return rows


def bench_block_keys(clock: Clock) -> list[Row]:
    """A block-causal model with its exact cache and without."""
    denoiser, rows = random_model(SHAPES["blocks"]), []
    for gen_len in (256, 1024):
        spec = SamplerSpec(gen_len, 16, gen_len // 4, temperature=0.0, eos_policy="none")
        wanted = some_requests(2, 64)
        times, tokens = {}, {}
        for cache in ("none", "block"):
            engine = Engine(denoiser, replace(spec, cache=cache), slots=2)
            times[cache], rollouts = clock.measure(lambda e=engine, w=wanted: e.generate(w, policy_version=0))
            tokens[cache] = np.stack([rollout.completion_ids for rollout in rollouts])
        rows.append(
            {
                "tokens": gen_len,
                "without_s": times["none"],
                "with_s": times["block"],
                "speedup": times["none"] / times["block"],
                "same_tokens": float((tokens["none"] == tokens["block"]).mean()),
            }
        )
    return rows


def bench_batching(clock: Clock) -> list[Row]:
    """Refilled slots against batches whose finished rows stay until the longest is done."""
    base = random_model(replace(SHAPES["body_heavy"], layers=4, width=256, mlp=768, vocab=512))
    spec, slots = SamplerSpec(64, 8, 32, temperature=0.0), 4
    ended = EndsAt(base.model, base.spec.eos_id, spec.gen_len)
    wanted = some_requests(24, 16, (2, 20, 4, 3, 2, 5, 3, 2, 12, 2, 4, 3))
    seconds, forwards = {}, {}
    for name in ("fixed", "refilled"):
        timed = Timed(ended, clock)
        denoiser = replace(base, model=timed)
        if name == "fixed":
            run = lambda d=denoiser: generate_plain(d, spec, wanted, slots, until_all_end=True)  # noqa: E731
        else:
            run = lambda d=denoiser: Engine(d, spec, slots).generate(wanted, policy_version=0)  # noqa: E731
        seconds[name], _ = clock.measure(run)
        forwards[name] = timed.calls
    return [
        {
            "texts": "most short, some long",
            "fixed_s": seconds["fixed"],
            "refilled_s": seconds["refilled"],
            "speedup": seconds["fixed"] / seconds["refilled"],
            "fixed_forwards": forwards["fixed"],
            "refilled_forwards": forwards["refilled"],
        }
    ]


# --- A trained model: what samplers and caches keep of its accuracy. ---

NUM_DIGITS, CANVAS = 12, 16


def trained_model(steps: int) -> tuple[Denoiser, Any]:
    """A small model that sorts digits, trained by masked denoising on right answers; and its tokenizer."""
    task = open_task(SortTask(num_digits=NUM_DIGITS), 0)
    tokenizer = build_char_tokenizer(task.characters)
    init = ModelInit(d_model=128, n_layers=3, n_heads=4, mlp_hidden_size=384, max_sequence_length=64)
    model = as_denoiser(create(init, tokenizer, seed=0))
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rows = 64
    for step in range(steps):
        instances = [task.instance("train", step * rows + i) for i in range(rows)]
        examples = [
            Example(
                instance.uid,
                *(np.array(encode(tokenizer, text)) for text in (instance.prompt, instance.answer)),
            )
            for instance in instances
        ]
        plan = SFTPlan(RandomMaskObjective(), fill="canvas", canvas=CANVAS)
        loss, _ = sft_loss(
            model, sft_batch(examples, plan, model.spec, derive_seed("bench", step)), range(rows)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, tokenizer


SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("low_confidence, one token per step", {}),
    ("low_confidence, 4 tokens per step", {"steps": CANVAS // 4}),
    ("low_confidence, 8 tokens per step", {"steps": CANVAS // 8}),
    ("low_confidence with FreeDave drafts", {"draft_steps": 8}),
    ("ar", {"remasking": "ar"}),
    ("margin, 4 tokens per step", {"remasking": "margin", "steps": CANVAS // 4}),
    ("dream_entropy, 4 tokens per step", {"remasking": "dream_entropy", "steps": CANVAS // 4}),
    ("threshold 0.9", {"remasking": "threshold"}),
    ("threshold 0.7", {"remasking": "threshold", "threshold": 0.7}),
    ("threshold 0.9, prefix cache", {"remasking": "threshold", "cache": "prefix"}),
    ("threshold 0.9, dual cache", {"remasking": "threshold", "cache": "dual"}),
    ("threshold 0.9, dkv_decode cache", {"remasking": "threshold", "cache": "dkv_decode"}),
    ("threshold 0.9, free cache", {"remasking": "threshold", "cache": "free"}),
    ("dynamic 0.9", {"remasking": "dynamic"}),
    ("factor 1", {"remasking": "factor"}),
    ("entropy_bound 0.35", {"remasking": "entropy_bound"}),
    ("entropy_threshold 0.35", {"remasking": "entropy_threshold"}),
    ("rcr, 4 tokens per step", {"remasking": "rcr", "steps": CANVAS // 4}),
    ("saber", {"remasking": "saber", "steps": CANVAS // 2}),
    ("ccd, 4 tokens per step", {"remasking": "ccd", "steps": CANVAS // 4}),
    ("ccd_ds", {"remasking": "ccd_ds"}),
    ("low_confidence, sched_cosine", {"early_commit": "sched_cosine"}),
]


def bench_samplers(clock: Clock, train_steps: int, num_prompts: int) -> list[Row]:
    """Accuracy, tokens per forward and speed-up of samplers and caches, against one token per step."""
    model, tokenizer = trained_model(train_steps)
    task = open_task(SortTask(num_digits=NUM_DIGITS), 0)
    instances = [task.instance("eval", i) for i in range(num_prompts)]
    wanted = [Request(i, 0, i, encode(tokenizer, instance.prompt)) for i, instance in enumerate(instances)]

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    rows: list[Row] = []
    for name, changes in SAMPLERS:
        spec = replace(SamplerSpec(CANVAS, CANVAS, CANVAS, temperature=0.0), **changes)
        engine = Engine(model, spec, slots=64)
        seconds, rollouts = clock.measure(
            lambda e=engine: e.generate(wanted, policy_version=0, decode=decode)
        )
        correct = [
            rollout.text == instance.answer for rollout, instance in zip(rollouts, instances, strict=True)
        ]
        low, high = wilson_interval(float(np.mean(correct)), len(correct), z=1.96)
        rows.append(
            {
                "sampler": name,
                "accuracy": float(np.mean(correct)),
                "low": low,
                "high": high,
                "tokens_per_forward": CANVAS / float(np.mean([r.num_forwards for r in rollouts])),
                "query_tokens": float(np.mean([r.token_forwards for r in rollouts])),
                "seconds": seconds,
                "speedup": rows[0]["seconds"] / seconds if rows else 1.0,
            }
        )
    return rows


# --- A random model of true size. ---


def flops_per_token(shape: Shape) -> float:
    """Two per multiply-add in the matrices of one token; head and attention apart (specs: decoding 9.7)."""
    kv_width = shape.width * shape.kv_heads // shape.heads
    layer = 2 * shape.width**2 + 2 * shape.width * kv_width + 3 * shape.width * shape.mlp
    return 2.0 * layer * shape.layers


def matmul_peak(clock: Clock, device: str) -> float:
    """FLOP per second of a large square product in the dtype that the model has on the device."""
    size, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    repeats = 5 if device == "cpu" else 20
    seconds, _ = clock.measure(lambda: [a @ b for _ in range(repeats)])
    return repeats * 2.0 * size**3 / seconds


def bench_shape(clock: Clock, name: str, device: str, slots: int, prompt: int, gen_len: int) -> list[Row]:
    """Tokens per second of a random model of true size, and how much of the device it uses; on a GPU with and
    without CUDA graphs."""
    shape, rows = SHAPES[name], []
    denoiser, peak = random_model(shape, device=device), matmul_peak(clock, device)
    wanted = some_requests(slots, prompt)
    block = shape.block_length or 32
    caches = ("none", "block") if shape.block_length else ("none", "prefix", "dual")
    for cache, replays in itertools.product(caches, (False, True) if device != "cpu" else (False,)):
        spec = SamplerSpec(gen_len, block, gen_len // 2, eos_policy="none", cache=cache)
        graphs = Graphs() if replays else None
        engine = Engine(denoiser, spec, slots, graphs)
        # Kernels are chosen, memory is reserved, graphs are recorded.
        engine.generate(wanted if replays else wanted[:1], policy_version=0)
        before = (0, 0) if graphs is None else (graphs.forwards, graphs.replays)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds, rollouts = clock.measure(lambda e=engine: e.generate(wanted, policy_version=0))
        queries = sum(rollout.token_forwards for rollout in rollouts)
        head = sum(float(_head_rows(rollout, block)) for rollout in rollouts)
        flops = queries * flops_per_token(shape) + head * 2.0 * shape.width * shape.vocab
        rows.append(
            {
                "shape": name,
                "cache": cache,
                "replayed": None if graphs is None else _share_since(graphs, before),
                "rows": slots,
                "tokens_per_s": slots * gen_len / seconds,
                "tokens_per_forward": gen_len / rollouts[0].num_forwards,
                "share_of_peak": flops / seconds / peak,
                "peak_tflops": peak / 1e12,
                "memory_gib": None if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30,
                "seconds": seconds,
            }
        )
    return rows


def _share_since(graphs: Graphs, before: tuple[int, int]) -> float:
    """Share of the forwards that were replayed."""
    return (graphs.replays - before[1]) / (graphs.forwards - before[0])


def _head_rows(rollout: Rollout, block: int) -> int:
    """Positions that went through the head: the masked ones of the active block at each step."""
    later = len(rollout.completion_ids) - block * (1 + rollout.trace.step_block.astype(int))
    return int((rollout.trace.step_masked - later).sum())


TITLES = {
    "plain": "Engine against the published loop, no cache",
    "overhead": "Time in the model / time of the rollout",
    "block_keys": "Block-causal model: exact keys against none",
    "samplers": f"A trained model (sorts {NUM_DIGITS} digits): samplers and caches",
    "batching": "Refilled slots against fixed batches",
    "shape": "A random model of true size",
}


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """A section as a table."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def wide_console() -> Console:
    """The terminal; where the output goes elsewhere, wide enough that no cell is cut."""
    return Console(width=None if sys.stdout.isatty() else 180)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="What the rollout engine costs and gains.")
    parser.add_argument("--only", nargs="+", choices=list(TITLES), help="sections; default: all but shape")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the shape section")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="run the shape section on this shape")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--train-steps", type=int, default=500, help="of the trained model")
    parser.add_argument("--prompts", type=int, default=256, help="that samplers are compared on")
    parser.add_argument("--slots", type=int, default=32, help="rows of the shape section")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of the shape section")
    parser.add_argument("--gen-len", type=int, default=256, help="tokens of the shape section")
    return parser.parse_args()


def main() -> int:
    """Run the sections that were asked for; the exit status."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    clock = Clock(asked.device)
    sections: dict[str, Callable[[], list[Row]]] = {
        "plain": lambda: bench_plain(clock),
        "overhead": lambda: bench_overhead(clock),
        "block_keys": lambda: bench_block_keys(clock),
        "samplers": lambda: bench_samplers(clock, asked.train_steps, asked.prompts),
        "batching": lambda: bench_batching(clock),
        "shape": lambda: bench_shape(
            clock, asked.shape or "llada_tiny", asked.device, asked.slots, asked.prompt_tokens, asked.gen_len
        ),
    }
    chosen = asked.only or (["shape"] if asked.shape else [name for name in sections if name != "shape"])
    console, found = wide_console(), {}
    for name in chosen:
        found[name] = sections[name]()
        if not asked.json:
            show(console, TITLES[name], found[name])
    if asked.json:
        about = {
            "device": asked.device,
            "threads": asked.threads,
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if asked.device == "cuda" else None,
            "shapes": {name: vars(SHAPES[name]) for name in ("head_heavy", "body_heavy", "blocks")},
        }
        print(json.dumps({"about": about, "sections": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
