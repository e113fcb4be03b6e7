"""A plan as text."""

import math
from dataclasses import fields

from overopt.models.memory import Parts
from overopt.planning.hardware import GIB, GPUS
from overopt.planning.plan import EVALUATION_BATCH, Memory, Plan

PART_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "activations": "activations",
    "logits": "logits",
    "passing": "coming and going",
}
assert PART_NAMES.keys() == {field.name for field in fields(Parts)}


def plan_text(plan: Plan) -> str:
    """What the plan says, for people."""
    lines = [*_about(plan), "", *_memory(plan), "", *_time(plan)]
    if plan.judge_calls:
        lines += ["", *_judge(plan)]
    return "\n".join(lines)


def _about(plan: Plan) -> list[str]:
    settings, hardware, epoch, largest = plan.settings, plan.hardware, plan.epoch, plan.memory.largest_pass
    devices = f"{hardware.gpus} x {hardware.gpu}" if settings.device == "cuda" else f"{hardware.gpus} CPU process(es)"
    shared = "" if hardware.gpus == 1 else ", sharded (FSDP2)" if settings.sharded else ", replicated (DDP)"
    return [
        f"{settings.module.stage_name} of {plan.model} ({plan.shape.num_parameters:,} parameters), "
        f"{settings.precision}, on {devices}{shared}",
        plan.workload.origin,
        f"{epoch.steps:,} steps an epoch, up to {epoch.most_passes} forward passes a step and device; the largest has "
        f"{largest.tokens:,} tokens of {largest.groups} prompts, {largest.targets} of them predicted",
    ]


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    columns = [str(number) for number in range(1, len(memory.phases) + 1)]
    lines = [_row("memory of a device [GiB]", columns)]
    for part, name in PART_NAMES.items():
        lines.append(_row("  " + name, [_gib(getattr(phase.parts, part)) for phase in memory.phases]))
    lines.append(_row("  tensors", [_gib(phase.parts.total) for phase in memory.phases]))
    kind = "this process's libraries and data" if memory.limit is None else "context, libraries, allocator's holes"
    lines.append(f"  besides tensors ({kind}): {_gib(memory.runtime)}")
    lines.append("  " + "; ".join(f"{i} {phase.name}" for i, phase in zip(columns, memory.phases, strict=True)))
    lines.append(f"peak {_gib(memory.total)} GiB, at {memory.peak.name}{_verdict(memory)}")
    for option, needed in memory.ways_out.items():
        lines.append(f"  {_gib(needed)} GiB with {option}")
    if plan.judge_calls:
        prompts = min(EVALUATION_BATCH, plan.grid.num_prompts)
        too_much = ": MORE THAN a device has" if plan.evaluation_memory > (memory.limit or math.inf) else ""
        lines.append(
            f"evaluation holds {_gib(plan.evaluation_memory)} GiB: policy, reference and the keys and values of "
            f"{prompts} prompts, in float32{too_much}"
        )
    return lines


def _verdict(memory: Memory) -> str:
    if memory.limit is None:
        return ""
    if memory.fits:
        return f": FITS into {_gib(memory.limit)} GiB"
    ways = "what would:" if memory.ways_out else "and no option of this project would: larger or many more GPUs"
    return f": DOES NOT FIT into {_gib(memory.limit)} GiB; {ways}"


def _time(plan: Plan) -> list[str]:
    hardware = plan.hardware
    if plan.device_hours is None:
        rate = "hours need --peak-tflops on CPUs"
    else:
        of = hardware.training_rate(plan.settings.precision) / hardware.utilisation / 1e12
        rate = f"at {hardware.utilisation:.0%} of {of:g} TFLOP/s"
        if plan.judge_calls and plan.settings.device == "cuda":
            rate += f", evaluation in float32 ({GPUS[hardware.gpu].float32:g}) on one device"
    heads = ["runs", "FLOPs each", "hours each", "device hours"]
    lines = [f"time {rate}", _row("  stage", heads, widths=(6, 12, 12, 14))]
    for stage in plan.stages:
        hours = ["-", "-"]
        if stage.hours is not None:
            hours = [f"{stage.hours:.2f}", f"{stage.runs * stage.devices * stage.hours:.1f}"]
        lines.append(_row("  " + stage.name, [f"{stage.runs}", f"{stage.flops:.2e}", *hours], widths=(6, 12, 12, 14)))
    if plan.device_hours is not None:
        price = hardware.price_per_gpu_hour
        cost = "" if price is None else f", {plan.device_hours * price:,.2f} at {price:g} an hour"
        lines.append(f"all: {plan.device_hours:,.1f} device hours{cost}")
    return lines


def _judge(plan: Plan) -> list[str]:
    grid = plan.grid
    policies = f"{grid.objectives} objectives x {grid.betas} betas x {grid.seeds} seed(s)"
    sizes = "" if grid.sizes == 1 else f" x {grid.sizes} sizes"
    orders = "" if grid.judge_calls_per_prompt == 1 else f" x {grid.judge_calls_per_prompt} calls"
    cost = "" if plan.judge_cost is None else f", {plan.judge_cost:,.2f}"
    return [
        f"judge: {policies}{sizes} = {grid.policies * grid.sizes} policies x {plan.settings.checkpoints} checkpoints x "
        f"{grid.num_prompts} prompts{orders} = {plan.judge_calls:,} calls{cost}"
    ]


def _row(name: str, cells: list[str], widths: tuple[int, ...] | None = None) -> str:
    widths = widths or (9,) * len(cells)
    return f"{name:<40}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _gib(number: int) -> str:
    return f"{number / GIB:.2f}"
