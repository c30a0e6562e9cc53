"""One of two processes that load a checkpoint together: run by test_tensors.py.

Arguments: coordinator's address, process index, directory. Prints JSON: the entries that this
process read of each tensor, and whether each shard on its devices equals the part of the file.
"""

import json
import sys

if __name__ == "__main__":
    import jax
    import numpy as np

    address, index, directory = sys.argv[1:]
    jax.distributed.initialize(address, 2, int(index))
    from safetensors.numpy import load_file

    from polaris_jax.config import MeshSection
    from polaris_jax.models import load_config, load_pretrained, param_axes, param_shapes
    from polaris_jax.models.weights import tensors as tensors_lib
    from polaris_jax.models.weights.safetensors import SafetensorsReader
    from polaris_jax.models.weights.tensors import from_hf
    from polaris_jax.sharding import TRAINER_RULES, make_mesh, param_shardings

    tensors_lib.STAGING_BYTES = 0
    entries: dict[str, int] = {}
    read = SafetensorsReader.read

    def counted(reader, name, part=None):
        value = read(reader, name, part)
        entries[name] = entries.get(name, 0) + value.size
        return value

    SafetensorsReader.read = counted
    config = load_config(directory)
    mesh = make_mesh(MeshSection(fsdp=2, tensor=2))
    abstract = {p: jax.ShapeDtypeStruct(s, np.float32) for p, s in param_shapes(config).items()}
    shardings = param_shardings(abstract, mesh, TRAINER_RULES, axes=param_axes(config))
    model, _ = load_pretrained(directory, shardings=shardings)
    tensors = load_file(f"{directory}/model.safetensors")
    equal = True
    for path, value in model.params().items():
        if path.startswith("layers/"):
            layers = range(config.num_layers)
            whole = np.stack(
                [from_hf(path, tensors[config.family.hf_name(path, i)], config) for i in layers]
            )
        else:
            whole = from_hf(path, tensors[config.family.hf_name(path)], config)
        assert value.sharding == shardings[path], path
        assert not value.is_fully_addressable, path
        equal &= all(np.array_equal(s.data, whole[s.index]) for s in value.addressable_shards)
    print(json.dumps({"entries": entries, "equal": equal}), flush=True)
    jax.distributed.shutdown()
