"""Sharding over devices with PyTorch's FSDP2: one transformer layer a unit, then the root."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a policy or reward model in place.

    Args:
        model: its forward is the only way in; layers are found as the items of its module lists.
        mesh: data-parallel mesh.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
