"""The one place that knows mesh axes.

mesh        the trainer's mesh and the shardings of its batches
parameters  the tables from logical axes to mesh axes, and where parameters lie
sampler     the sampler's mesh, and how its programs are split over it
"""

from polaris_jax.sharding.mesh import (
    CONTEXT,
    MESH_AXES,
    ROW_AXES,
    TENSOR,
    TOKEN_AXES,
    batch_sharding,
    make_mesh,
    replicated,
    row_shards,
    split_devices,
    wide_axes,
)
from polaris_jax.sharding.parameters import (
    SAMPLER_RULES,
    TRAINER_RULES,
    Rules,
    global_array,
    in_host_memory,
    leaf_spec,
    moved,
    on_device,
    param_shardings,
    private_copies,
)
from polaris_jax.sharding.sampler import (
    SAMPLER_AXES,
    head_shards,
    make_sampler_mesh,
    over_heads,
    over_slots,
    pool_sharding,
    process_meshes,
    rows_of_logits,
    slot_sharding,
    slot_shards,
    whole,
)

__all__ = [
    "CONTEXT",
    "MESH_AXES",
    "ROW_AXES",
    "Rules",
    "SAMPLER_AXES",
    "SAMPLER_RULES",
    "TENSOR",
    "TOKEN_AXES",
    "TRAINER_RULES",
    "batch_sharding",
    "global_array",
    "head_shards",
    "in_host_memory",
    "leaf_spec",
    "make_mesh",
    "make_sampler_mesh",
    "moved",
    "on_device",
    "over_heads",
    "over_slots",
    "param_shardings",
    "pool_sharding",
    "private_copies",
    "process_meshes",
    "replicated",
    "row_shards",
    "rows_of_logits",
    "slot_sharding",
    "slot_shards",
    "split_devices",
    "whole",
    "wide_axes",
]
