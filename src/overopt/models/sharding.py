"""Sharding over devices with PyTorch's FSDP2: one transformer layer a unit, then the root."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard


def shard_layers(
    model: nn.Module, mesh: DeviceMesh, *, compute_dtype: torch.dtype | None = None, cpu_offload: bool = False
) -> None:
    """Shard a policy or reward model in place, and move it to the mesh's devices.

    Master weights, gradients and optimiser states stay in the model's precision, which is float32.

    Args:
        model: its forward is the only way in; layers are found as the items of its module lists.
        mesh: data-parallel mesh.
        compute_dtype: weights are gathered and used in it; the model's own precision by default.
        cpu_offload: keep the shards of weights, gradients and optimiser states in the host's memory.
    """
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if cpu_offload else OffloadPolicy()
    # Gradients are summed over devices in float32: bfloat16 has eight bits for a sum of many.
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    units = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    for unit in [*units, model]:
        fully_shard(unit, mesh=mesh, mp_policy=precision, offload_policy=offload)


def reshard(model: nn.Module) -> None:
    """Let go of the whole weights that a forward pass without a backward pass has left gathered, if it is sharded."""
    if isinstance(model, FSDPModule):
        model.reshard()
