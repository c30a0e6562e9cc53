"""Run in a process of its own: JetStream's Driver over our engine, and our scheduler beside it.

Prints one JSON line. The Driver calls `jax.tree_map`, which jax has removed: patched here alone.
"""

import asyncio
import json
import logging
import sys

import jax
import numpy as np

from polaris_jax.models import Decoder, ModelConfig
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.jetstream import jetstream_engine, load_driver
from polaris_jax.rollout.settings import PromptParams

BOS, STOP, MAX_TOKENS = 1, 2, 12
CONFIG = ModelConfig(61, 32, 48, 2, 4, 2, 16, 1e4, 1e-6, 128, True, False, True)


class IdTokenizer:
    """Ids in, ids out."""

    bos_id, pad_id, eos_id = BOS, 0, STOP
    stop_tokens = frozenset({STOP})

    def decode(self, token_ids, **_):
        return " ".join(map(str, token_ids))


async def drive(driver_module, driver, prompts, samples):
    """The tokens of every prompt's samples, as the Driver delivers them."""
    channel_class = sys.modules["jetstream.core.utils.async_multifuture"].AsyncMultifuture
    channels = [channel_class() for _ in prompts]
    for prompt, channel in zip(prompts, channels, strict=True):
        driver.place_request_on_prefill_queue(
            driver_module.ActiveRequest(
                max_tokens=MAX_TOKENS,
                return_channel=channel,
                prefill_content=prompt,
                is_client_side_tokenization=True,
            )
        )
    outputs = []
    for channel in channels:
        tokens = [[] for _ in range(samples)]
        async for results in channel:
            for total, result in zip(tokens, results, strict=True):
                total += result.token_ids
        while not channel.done():  # set a moment after the last sample: the loop must live so long
            await asyncio.sleep(0.01)
        outputs.append(tokens)
    return outputs


def main(decode_steps: int, interleaved: bool, samples: int) -> None:
    model = Decoder.init(CONFIG, jax.random.key(0))
    model = jax.tree.map(lambda x: 3 * x, model)  # sharper logits: no ties
    config = SamplerConfig(
        slots=4, page_size=4, num_pages=65, max_len=64, decode_steps=decode_steps
    )
    temperature = 0.0 if samples == 1 else 1.0
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 61, size).tolist() for size in (1, 3, 9, 20, 4, 7, 15)]
    ours = Sampler(model, config).generate(
        [[BOS, *p] for p in prompts],
        SamplingParams(
            temperature=temperature, n=samples, max_tokens=MAX_TOKENS, stop_token_ids=(STOP,)
        ),
    )

    level = logging.getLogger().level
    driver_class = load_driver()
    engine_api = sys.modules["jetstream.engine.engine_api"]
    jax.tree_map = jax.tree.map
    params = PromptParams(
        temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, max_tokens=config.max_len, seed=0
    )
    engine = jetstream_engine(
        model,
        config,
        tokenizer=IdTokenizer(),
        params=params,
        stop_token_ids=(STOP,),
        samples_per_slot=samples,
    )
    driver = driver_class(
        prefill_engines=[engine],
        generate_engines=[engine],
        prefill_params=[engine.load_params()],
        generate_params=[engine.load_params()],
        interleaved_mode=interleaved,
    )
    driver_module = sys.modules[driver_class.__module__]
    outputs = asyncio.run(drive(driver_module, driver, prompts, samples))
    driver.stop()
    report = {
        "ours": [[[t for t in one.token_ids if t != STOP] for one in group] for group in ours],
        "driver": outputs,
        "is_engine": isinstance(engine, engine_api.Engine),
        "stand_ins_left": [m for m in ("seqio", "tiktoken", "grpc") if m in sys.modules],
        "root_level_kept": logging.getLogger().level == level,
        "tensorflow": "tensorflow" in sys.modules,
    }
    print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "interleaved", int(sys.argv[3]))
