"""JetStream's own client stub gets the tokens of our scheduler, and its errors."""

import asyncio
import contextlib

import grpc
import pytest

from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.rollout.jetstream import load_protocol
from polaris_jax.serve.jetstream import Orchestrator
from tests.support.serving import SIZES, running, small_model

pytestmark = pytest.mark.xdist_group("serve")
MESSAGES, STUBS = load_protocol()
REQUEST = MESSAGES.DecodeRequest


@contextlib.contextmanager
def orchestrator(server, key=""):
    """A stub of a service beside a running server, in its event loop."""
    made = Orchestrator(server.service, "127.0.0.1", 0, key)
    ready, end = asyncio.Event(), asyncio.Event()

    async def run():
        async with made.running():
            ready.set()
            await end.wait()

    loop = server.service.inboxes.loop
    done = asyncio.run_coroutine_threadsafe(run(), loop)
    asyncio.run_coroutine_threadsafe(ready.wait(), loop).result(60)
    with grpc.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        yield STUBS.OrchestratorStub(channel)
    loop.call_soon_threadsafe(end.set)
    done.result(60)


def code_of(call):
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    return error.value.code().name


def test_a_client_of_jetstream_is_served():
    model, tokenizer = small_model()
    ids = tokenizer.encode("Start with 3.")
    params = SamplingParams(temperature=0.0, max_tokens=20)
    (expected,) = Sampler(model, SIZES).generate([ids], params)[0]
    with running() as server, orchestrator(server) as stub:
        assert stub.HealthCheck(MESSAGES.HealthCheckRequest(), timeout=60).is_live
        by_text = REQUEST(text_content=REQUEST.TextContent(text="Start with 3."), max_tokens=20)
        samples = [m.stream_content.samples[0] for m in stub.Decode(by_text, timeout=120)]
        assert len(samples) > 3
        assert sum((tuple(s.token_ids) for s in samples), ()) == expected.token_ids
        text = tokenizer.decode(expected.token_ids, skip_special_tokens=True)
        assert "".join(s.text for s in samples) == text
        by_ids = REQUEST(token_content=REQUEST.TokenContent(token_ids=ids), max_tokens=20)
        samples = [m.stream_content.samples[0] for m in stub.Decode(by_ids, timeout=120)]
        assert sum((tuple(s.token_ids) for s in samples), ()) == expected.token_ids
        assert {s.text for s in samples} == {""}

        # Refusals, and a client that leaves.
        wrong = REQUEST(text_content=REQUEST.TextContent(text="x"), max_tokens=999)
        assert code_of(stub.Decode(wrong, timeout=60)) == "INVALID_ARGUMENT"
        assert code_of(stub.Decode(REQUEST(max_tokens=3), timeout=60)) == "INVALID_ARGUMENT"
        wrong = REQUEST(token_content=REQUEST.TokenContent(token_ids=[10**6]), max_tokens=3)
        assert code_of(stub.Decode(wrong, timeout=60)) == "INVALID_ARGUMENT"
        long = REQUEST(token_content=REQUEST.TokenContent(token_ids=[1]), max_tokens=250)
        call = stub.Decode(long, timeout=60)
        next(iter(call))
        call.cancel()
        assert server.idle()["pages_used"] == 0
        accepted = server.service.worker._accepted
        accepted["others"] = 12  # 4 slots, and 8 may wait
        assert code_of(stub.Decode(by_ids, timeout=60)) == "RESOURCE_EXHAUSTED"
        del accepted["others"]

    with running(key="k") as server, orchestrator(server, "k") as stub:
        assert code_of(stub.Decode(by_ids, timeout=60)) == "UNAUTHENTICATED"
        keyed = stub.Decode(by_ids, timeout=120, metadata=(("authorization", "Bearer k"),))
        assert len(list(keyed)) > 3
