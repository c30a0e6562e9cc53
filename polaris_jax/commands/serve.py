"""An HTTP server with the API that clients of language models speak.

POST /v1/completions and /v1/chat/completions (stream, n, stop, seed, logprobs, top_k, min_p), GET
/v1/models, /health, /metrics. It listens at this machine alone unless --host names another
address; give it a key then. SIGTERM lets running requests end.

Example:
  polaris serve --model runs/4b/export --port 8000
  curl localhost:8000/v1/completions -H 'content-type: application/json' -d '{"prompt": "1 + 1 ="}'
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from polaris_jax.commands.flags import define_dtype, parse
from polaris_jax.commands.run import compute_dtype, start_jax
from polaris_jax.config import ConfigError
from polaris_jax.system.progress import Progress

if TYPE_CHECKING:
    from polaris_jax.rollout import SamplerConfig

MOST_DEFAULT_LEN = 4096
KEY = "POLARIS_API_KEY"


def _define(values: flags.FlagValues) -> None:
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    whole = functools.partial(flags.DEFINE_integer, flag_values=values)
    real = functools.partial(flags.DEFINE_float, flag_values=values)
    text("model", "", "HF directory, Hub id, GGUF file, or a run's workdir or checkpoints")
    text("name", "", "the model's name for clients; empty: --model as given")
    text("host", "127.0.0.1", "address to listen at")
    whole("port", 8000, "TCP port; 0: any free one", lower_bound=0, upper_bound=65535)
    text("api_key", "", "key that clients send; others on this machine see it in the process list")
    text("api_key_env", KEY, "environment variable with the key, if --api_key is empty")
    text("follow", "", "workdir of a run: its newest complete checkpoint is served")
    real("follow_s", 10.0, "seconds between two looks at --follow", lower_bound=0.1)
    flags.DEFINE_bool(
        "allow_update", False, "clients may POST /v1/weights with a directory", flag_values=values
    )
    whole("slots", 16, "sequences decoded at once", lower_bound=1)
    whole(
        "max_len",
        0,
        f"most tokens of prompt and response; 0: the model's, at most {MOST_DEFAULT_LEN}",
        lower_bound=0,
    )
    whole("num_pages", 0, "pages of the pool; 0: what fits", lower_bound=0)
    whole("page_size", 16, "tokens of a page", lower_bound=1)
    whole("decode_steps", 8, "tokens of a row between two looks at requests", lower_bound=1)
    whole("tensor", 1, "devices that share one copy of the weights", lower_bound=1)
    define_dtype(values)
    whole("max_waiting", 1024, "responses that may wait for a slot; then 429", lower_bound=0)
    whole("max_body_mib", 8, "largest body of a request", lower_bound=1)
    real("body_s", 30.0, "seconds in which a body must come", lower_bound=0.1)
    real("grace_s", 25.0, "seconds that requests have to end after SIGTERM", lower_bound=0.0)
    whole(
        "jetstream_port",
        0,
        "port of JetStream's gRPC service; 0: none",
        lower_bound=0,
        upper_bound=65535,
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("serve", argv, doc=__doc__ or "", define=_define, takes_config=False)
    own = command.flags
    if not own["model"].strip():
        raise ConfigError("--model: needed; name a Hugging Face directory, Hub id or GGUF file")
    for package, extra in (("starlette", "serve"), ("uvicorn", "serve")):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"serve: {package} is not installed; pip install 'polaris_jax[{extra}]'"
            )
    key = _key(own["api_key"], own["api_key_env"])
    start_jax(command)
    return serve(own, key, progress=Progress())


def _key(key: str, variable: str) -> str:
    """The key that clients send; "": none.

    Raises:
        ConfigError: the variable that was named instead of the usual one holds no key, or the key
            cannot be sent in a header.
    """
    found = (key or os.environ.get(variable or KEY, "")).strip()  # a file ends in a new line
    if not (found.isascii() and found.isprintable()):
        where = "--api_key" if key else f"--api_key_env={variable or KEY}"
        raise ConfigError(f"{where}: a key has printable characters of ASCII alone; choose another")
    if not found and variable not in ("", KEY):
        raise ConfigError(
            f"--api_key_env={variable}: this variable is empty, and whoever reaches the server "
            "could sample; set it, or leave the flag out"
        )
    return found


def sampler_sizes(own: dict[str, Any], *, positions: int, shards: int) -> SamplerConfig:
    """The sizes of the sampler.

    Args:
        own: the command's flags.
        positions: positions that the model has.
        shards: data shards, each of which has an equal part of the pages.

    Raises:
        ConfigError: a sequence of --max_len tokens does not fit the model, or a shard's pages.
    """
    from polaris_jax.rollout import SamplerConfig

    max_len = own["max_len"] or min(MOST_DEFAULT_LEN, positions)
    if max_len > positions:
        raise ConfigError(f"--max_len={max_len}: the model has {positions} positions; lower it")
    sizes = SamplerConfig(
        slots=own["slots"],
        page_size=own["page_size"],
        num_pages=own["num_pages"],
        max_len=max_len,
        decode_steps=own["decode_steps"],
        prefill_chunk=min(128, max_len),
    )
    least = (sizes.pages_of_a_row + 1) * shards
    if 0 < sizes.num_pages < least:
        room = max(0, sizes.num_pages // shards - 1) * sizes.page_size
        raise ConfigError(
            f"--num_pages={sizes.num_pages}: a request may have --max_len={max_len} tokens, and "
            f"each of {shards} data shards has room for {room} (pages of {sizes.page_size} tokens, "
            f"the first not usable); set it to at least {least}, or to 0, or lower --max_len"
        )
    return sizes


def serve(own: dict[str, Any], key: str, *, progress: Progress) -> int:
    """Loads the model and serves it.

    Args:
        own: the command's flags.
        key: key that clients send; "": none.
        progress: gets lines for a person.

    Returns:
        The exit code: 130 after Ctrl-C, 0 after SIGTERM.
    """
    import jax

    from polaris_jax import sharding
    from polaris_jax.models.positions import positions_of
    from polaris_jax.models.tokenizer import sampled_stop_ids
    from polaris_jax.rollout import Sampler, SamplingParams
    from polaris_jax.serve import server
    from polaris_jax.serve.gauges import Gauges
    from polaris_jax.serve.http import LOOPBACK, Door, Limits
    from polaris_jax.serve.service import Inboxes, Service
    from polaris_jax.serve.weights import Updates, load_followed, load_served, newest_step
    from polaris_jax.serve.worker import Worker
    from polaris_jax.system.foreign import ForeignFileError
    from polaris_jax.system.signals import INTERRUPTED_STATUS

    if jax.process_count() > 1:
        raise ConfigError("serve: runs in one process; start it without a launcher")
    place = server.Place(own["host"], own["port"], own["grace_s"])
    # The directory is there: said before anything is loaded.
    newest = newest_step(own["follow"])[1] if own["follow"] else -1
    listening = server.bind(place)
    name = own["name"] or own["model"]
    mesh = sharding.make_sampler_mesh(jax.local_devices(), tensor=own["tensor"])
    dtype = compute_dtype(own["dtype"])
    source, loads = own["model"], {"dtype": dtype, "mesh": mesh}
    if newest >= 0 and own["model"] != own["follow"]:
        model, tokenizer, folder, newest = load_followed(source, own["follow"], **loads)
        source = str(folder)
        progress.line(f"weights 0: {source}")
    else:
        model, tokenizer = load_served(source, **loads)
    config = model.config
    sizes = sampler_sizes(own, positions=positions_of(config), shards=sharding.slot_shards(mesh))
    sampler = Sampler(model, sizes, mesh=mesh)
    del model  # the sampler has a copy
    progress.line("compiling")
    sampler.generate([[0]], SamplingParams(max_tokens=1, stop_token_ids=()))
    sampler.reset_stats()
    inboxes, gauges = Inboxes(), Gauges()
    worker = Worker(sampler, inboxes.post, max_waiting=own["max_waiting"])
    end_ids = sampled_stop_ids(tokenizer, config)
    service = Service(
        name=name,
        tokenizer=tokenizer,
        end_ids=end_ids,
        max_len=sizes.max_len,
        slots=sizes.slots,
        worker=worker,
        inboxes=inboxes,
        updates=Updates(
            worker,
            config,
            source=source,
            dtype=dtype,
            gauges=gauges,
            log=progress.line,
            follow=own["follow"],
            every_s=own["follow_s"],
            following=newest,
            mesh=mesh,
        ),
        allow_update=own["allow_update"],
        door=Door(key, place.host),
        limits=Limits(body_bytes=own["max_body_mib"] << 20, body_s=own["body_s"]),
        log=progress.line,
        gauges=gauges,
    )
    extra = None
    if own["jetstream_port"]:
        from polaris_jax.serve.jetstream import Orchestrator

        extra = Orchestrator(service, place.host, own["jetstream_port"], key).running
    if place.host not in LOOPBACK and not key:
        progress.line(f"warning: --host={place.host} without a key: whoever reaches it may sample")
    try:
        service.prompts.start()
    except ForeignFileError as error:
        progress.line(f"warning: {error}")
    worker.start()
    host, port = listening.getsockname()[:2]
    progress.line(
        f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1 "
        f"({dtype}, {sampler.kernels}; {sizes.slots} slots of {sizes.max_len} tokens)"
    )
    try:
        interrupted = server.serve(service, place, listening, extra=extra)
    finally:
        worker.stop()
    progress.line("stopped")
    return INTERRUPTED_STATUS if interrupted else 0
