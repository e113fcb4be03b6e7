"""A configuration's memory, time and cost: the numbers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from overopt.models.activation_memory import FLOAT32, MIB, compute_types
from overopt.models.memory import Phase, StepSetting, evaluation_bytes, peak, step_phases
from overopt.models.model_shape import ModelShape, forward_flops, model_shape
from overopt.models.policy import model_name
from overopt.modules.sft import SFTModule
from overopt.packed_tokens import PassShape, pass_shape
from overopt.planning.architecture import architecture_of, neox_config
from overopt.planning.fit_settings import FitSettings, read_fit_settings
from overopt.planning.grid import Grid, JudgePrices
from overopt.planning.hardware import GIB, Hardware, resident_bytes
from overopt.planning.workload import TLDR_DEMONSTRATIONS, Epoch, Workload, epoch_of, workload_of

# Prompts that overopt samples side by side, and the longest response of TL;DR [tokens].
EVALUATION_BATCH = 256
LONGEST_RESPONSE = 64
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Memory:
    """Of one device, at the largest forward pass.

    Attributes:
        phases: of a step.
        peak: the one that needs most.
        runtime: what a process holds besides its tensors [bytes].
        limit: what the device has [bytes]; ``None`` on CPUs.
        largest_pass: the forward pass.
        ways_out: options that make it fit where it does not, with their peaks [bytes], runtime included.
    """

    phases: list[Phase]
    peak: Phase
    runtime: int
    limit: int | None
    largest_pass: PassShape
    ways_out: dict[str, int]

    @property
    def total(self) -> int:
        """At the peak, runtime included."""
        return self.peak.parts.total + self.runtime

    @property
    def fits(self) -> bool:
        """Whether the device has as much."""
        return self.limit is None or self.total <= self.limit


@dataclass(frozen=True)
class Stage:
    """Work of one kind.

    Attributes:
        name: what is done.
        runs: how often, in the whole grid.
        flops: of one run.
        devices: that share a run.
        hours: of one run, where the devices' rate is known.
    """

    name: str
    runs: int
    flops: float
    devices: int
    hours: float | None


@dataclass(frozen=True)
class Plan:
    """What a configuration takes."""

    model: str
    shape: ModelShape
    settings: FitSettings
    hardware: Hardware
    grid: Grid
    workload: Workload
    epoch: Epoch
    memory: Memory
    evaluation_memory: int
    stages: list[Stage]
    judge_calls: int
    judge_cost: float | None

    @property
    def device_hours(self) -> float | None:
        """Of all stages and runs of this size."""
        if any(stage.hours is None for stage in self.stages):
            return None
        return sum(stage.runs * stage.devices * (stage.hours or 0.0) for stage in self.stages)

    def numbers(self) -> dict[str, Any]:
        """Plain values of everything, for a file."""
        memory, price = self.memory, self.hardware.price_per_gpu_hour
        hours = self.device_hours
        return {
            "model": self.model,
            "shape": asdict(self.shape),
            "data": self.workload.origin,
            "precision": self.settings.precision,
            "device": self.settings.device,
            "hardware": asdict(self.hardware) | {"memory_gib": self.hardware.memory_gib},
            "memory_bytes": {
                "phases": {name: asdict(parts) | {"total": parts.total} for name, parts in memory.phases},
                "peak_phase": memory.peak.name,
                "tensors": memory.peak.parts.total,
                "runtime": memory.runtime,
                "total": memory.total,
                "limit": memory.limit,
                "evaluation": self.evaluation_memory,
            },
            "fits": memory.fits,
            "ways_out_bytes": memory.ways_out,
            "largest_pass": memory.largest_pass._asdict(),
            "epoch": {k: v for k, v in vars(self.epoch).items() if k != "sizes"},
            "stages": [asdict(stage) for stage in self.stages],
            "gpu_hours": hours,
            "gpu_cost": None if hours is None or price is None else hours * price,
            "policies": self.grid.policies,
            "checkpoints": self.settings.checkpoints,
            "judge_calls": self.judge_calls,
            "judge_cost": self.judge_cost,
        }


def make_plan(
    fit_options: Sequence[str],
    *,
    hardware: Hardware,
    grid: Grid,
    prices: JudgePrices,
    architecture: str | None = None,
    sft_examples: int | None = None,
) -> Plan:
    """Plan the training that ``overopt fit`` would do, and the experiment around it.

    Args:
        fit_options: of ``overopt fit``.
        hardware: what it would run on.
        grid: the experiment.
        prices: the judge's.
        architecture: of the policy, where the configuration's is not there yet.
        sft_examples: demonstrations of the SFT stage before an alignment; TL;DR's by default.

    Raises:
        ValueError: options that ``fit`` would refuse, a policy or data that can't be read.
    """
    if sft_examples is not None and sft_examples < 1:
        raise ValueError(f"need --sft-examples >= 1, got {sft_examples}")
    settings = read_fit_settings(fit_options)
    data = dict(settings.data)
    if architecture is not None and data["tokenizer"] == settings.start:
        data["tokenizer"] = architecture
    workload = workload_of(data)
    shape, name = _model(settings, architecture, workload)
    types = compute_types(settings.precision, sharded=settings.sharded, device=settings.device)
    epoch = epoch_of(workload, hardware.gpus)
    setting = StepSetting(
        types=types,
        compute=settings.compute,
        optimizer_states={"rmsprop": 1, "adamw": 2}[settings.module.optimizer_settings.name],
        device=settings.device,
        shards=hardware.gpus if settings.sharded else 1,
        replicas=1 if settings.sharded else hardware.gpus,
        offloaded=settings.offloaded,
        several_passes=epoch.most_passes > 1,
        log_probs=settings.module.stage_name != "reward",
    )
    aligns = settings.module.stage_name == "align"
    calls = grid.judge_calls(settings.checkpoints) if aligns else 0
    prompt, response = workload.mean_lengths
    longest = max(len(group.prompt_ids) for group in workload.groups)
    room = longest + (data["max_response_tokens"] or LONGEST_RESPONSE)
    return Plan(
        model=name,
        shape=shape,
        settings=settings,
        hardware=hardware,
        grid=grid,
        workload=workload,
        epoch=epoch,
        memory=_memory(shape, workload, epoch, setting, hardware, settings.precision),
        evaluation_memory=evaluation_bytes(shape, min(EVALUATION_BATCH, grid.num_prompts), room),
        stages=_stages(shape, settings, workload, epoch, setting, hardware, grid, sft_examples),
        judge_calls=calls,
        judge_cost=prices.cost(calls, prompt, response),
    )


def _model(settings: FitSettings, architecture: str | None, workload: Workload) -> tuple[ModelShape, str]:
    location = architecture or settings.start
    if location is not None:
        config = architecture_of(location)
    else:
        assert isinstance(settings.module, SFTModule)
        fresh = settings.module.architecture
        config = neox_config(fresh.hidden_size, fresh.num_layers, fresh.num_heads, workload.vocabulary)
    shape = model_shape(config)
    return shape, model_name(config, shape.num_parameters)


def _memory(
    shape: ModelShape, workload: Workload, epoch: Epoch, setting: StepSetting, hardware: Hardware, precision: str
) -> Memory:
    # Judged where activations are in memory, in the first three phases: the others are the same for all passes.
    largest = max(epoch.sizes, key=lambda sizes: peak(step_phases(shape, sizes, setting)[:3]).parts.total)
    phases = step_phases(shape, largest, setting)
    highest = peak(phases)
    on_cpu = setting.device == "cpu"
    runtime = resident_bytes() if on_cpu else hardware.runtime_bytes(highest.parts.total)
    memory = Memory(phases, highest, runtime, None if on_cpu else int(hardware.memory_gib * GIB), largest, {})
    if memory.fits:
        return memory
    return replace(memory, ways_out=_ways_out(shape, workload, epoch, setting, hardware, precision))


def _ways_out(
    shape: ModelShape, workload: Workload, epoch: Epoch, setting: StepSetting, hardware: Hardware, precision: str
) -> dict[str, int]:
    """What makes it fit, the least costly first, with what it then takes."""
    gathered = compute_types(precision, sharded=True, device=setting.device)
    sharded = replace(setting, types=gathered, shards=hardware.gpus, replicas=1)
    longest = max(workload.packing.num_tokens(group) for group in workload.groups)
    smaller = max(longest, workload.packing.max_tokens // 4)
    small_passes = epoch_of(workload, hardware.gpus, packing=replace(workload.packing, max_tokens=smaller)).sizes
    fsdp, passes = "--trainer.strategy fsdp", f"--data.micro_batch_tokens {smaller}"
    checkpointing = "--model.compute.activation_checkpointing true"
    offload = "--trainer.strategy overopt.trainers.FullyShardedStrategy --trainer.strategy.cpu_offload true"

    def total(changed: StepSetting, sizes: frozenset[PassShape], gpus: int = hardware.gpus) -> int:
        tensors = max(peak(step_phases(shape, each, changed)).parts.total for each in sizes)
        return tensors + replace(hardware, gpus=gpus).runtime_bytes(tensors)

    totals: dict[str, int] = {}
    if setting.shards < hardware.gpus:
        totals[fsdp] = total(sharded, epoch.sizes)
        totals[f"{fsdp} {checkpointing} {passes}"] = total(_checkpointed(sharded), small_passes)
    totals[passes] = total(setting, small_passes)
    totals[checkpointing] = total(_checkpointed(setting), epoch.sizes)
    totals[f"{checkpointing} {passes}"] = total(_checkpointed(setting), small_passes)
    limit = hardware.memory_gib * GIB
    for gpus in (2 * hardware.gpus, 4 * hardware.gpus, 8 * hardware.gpus):
        totals[f"--gpus {gpus} {fsdp}"] = total(replace(sharded, shards=gpus), epoch.sizes, gpus)
        if totals[f"--gpus {gpus} {fsdp}"] <= limit:
            break  # still more would fit, too
    offloaded = replace(_checkpointed(sharded), offloaded=True)
    totals[f"{offload} {checkpointing} {passes}"] = total(offloaded, small_passes)
    return {option: needed for option, needed in totals.items() if needed <= limit}


def _checkpointed(setting: StepSetting) -> StepSetting:
    return replace(setting, compute=replace(setting.compute, activation_checkpointing=True))


def _stages(
    shape: ModelShape,
    settings: FitSettings,
    workload: Workload,
    epoch: Epoch,
    setting: StepSetting,
    hardware: Hardware,
    grid: Grid,
    sft_examples: int | None,
) -> list[Stage]:
    room = setting.compute.logits_mib * MIB / (FLOAT32 * shape.vocabulary)
    chunked = any(sizes.targets > room for sizes in epoch.sizes)
    known = settings.device == "cuda" or hardware.peak_tflops is not None
    rate = hardware.training_rate(settings.precision)
    evaluation_rate = hardware.evaluation_rate if settings.device == "cuda" else rate

    def stage(name: str, runs: int, flops: float, devices: int, rate: float) -> Stage:
        return Stage(name, runs, flops, devices, flops / rate / devices / SECONDS_PER_HOUR if known else None)

    one_epoch = _training_flops(shape, setting, epoch, chunked=chunked)
    epochs = _epochs(settings, epoch)
    if settings.module.stage_name != "align":
        return [stage(settings.module.stage_name, 1, one_epoch * epochs, hardware.gpus, rate)]
    number = len(workload.groups)
    forward = forward_flops(shape, tokens=epoch.tokens, attended=epoch.attended, targets=epoch.targets)
    sft = pass_shape(workload.demonstrations())
    of_sft = _training_flops(shape, setting, sft, chunked=chunked) / number
    # A sample goes through the policy as it is drawn, then through policy and reference to be rescored.
    sampled = 3 * forward_flops(shape, tokens=sft.tokens, attended=sft.attended, targets=sft.targets) / number
    evaluation = grid.num_prompts * sampled + workload.held_out * forward / number
    return [
        stage("sft", grid.seeds, of_sft * (sft_examples or TLDR_DEMONSTRATIONS), hardware.gpus, rate),
        stage("reference", grid.seeds, forward * (1 + workload.held_out / number), hardware.gpus, rate),
        stage("align", grid.policies, one_epoch * epochs, hardware.gpus, rate),
        stage("evaluate", grid.policies * settings.checkpoints, evaluation, 1, evaluation_rate),
    ]


def _training_flops(shape: ModelShape, setting: StepSetting, sizes: PassShape | Epoch, *, chunked: bool) -> float:
    """Forward and backward, and what is computed anew to save memory."""
    layers = forward_flops(shape, tokens=sizes.tokens, attended=sizes.attended, targets=0)
    head = forward_flops(shape, tokens=0, attended=0, targets=sizes.targets) if setting.log_probs else 0
    times = 3 + setting.compute.activation_checkpointing
    return float(times * layers + (3 + chunked) * head)


def _epochs(settings: FitSettings, epoch: Epoch) -> float:
    """Passes over the data that a run makes, a broken one included."""
    limits = []
    if settings.max_epochs != -1:
        limits.append(float(settings.max_epochs))
    if settings.max_steps != -1:
        limits.append(settings.max_steps / epoch.steps)
    if not limits:
        raise ValueError("a run without trainer.max_epochs and trainer.max_steps never ends: give one of them")
    return min(limits)
