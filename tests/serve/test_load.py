"""Many clients at once, a third of which leave: no request is lost, no page, and no memory."""

import asyncio
import json
import os
import random
import time
from pathlib import Path

import pytest

from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from tests.support.serving import running, small_model

CLIENTS = 200
SECONDS = float(os.environ.get("POLARIS_LOAD_S", "120"))
SIZES = SamplerConfig(
    slots=32, page_size=8, num_pages=400, max_len=64, decode_steps=8, prefill_chunk=32, min_rows=32
)
PROMPTS = [f"Start with {i}." for i in range(10)]
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 24, "stream": True}
MOST_GROWTH_BYTES = 48 << 20  # between the first and the last fifth: allocators keep some


async def ask(port, prompt, leave_after):
    """(text, whether it was complete) of a stream; None as text if the server refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(GREEDY | {"prompt": prompt}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write((head + kind).encode() + body)
        text, events, status = "", 0, await reader.readline()
        if b" 200 " not in status:
            return None, False
        while line := await reader.readline():
            if line == b"data: [DONE]\n":
                return text, True
            if line.startswith(b"data: "):
                events += 1
                text += json.loads(line[6:])["choices"][0]["text"]
                if events == leave_after:
                    return text, False
        return text, False
    finally:
        writer.close()


async def client(port, number, end_s, expected, counts):
    pick = random.Random(number)
    while time.monotonic() < end_s:
        prompt, leaves = pick.choice(PROMPTS), number % 3 == 0
        text, complete = await ask(port, prompt, 1 if leaves else 0)
        if text is None:
            counts["refused"] += 1
        elif leaves and not complete:
            counts["left"] += 1
            assert expected[prompt].startswith(text)
        else:
            counts["complete"] += 1
            assert complete and text == expected[prompt], (prompt, text)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def load(port, expected, memory):
    counts = dict.fromkeys(("complete", "left", "refused"), 0)
    end_s = time.monotonic() + SECONDS

    async def watch():
        while time.monotonic() < end_s:
            memory.append(resident_bytes())
            await asyncio.sleep(SECONDS / 60)

    work = [client(port, n, end_s, expected, counts) for n in range(CLIENTS)]
    await asyncio.gather(watch(), *work)
    return counts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_clients_of_which_a_third_leave():
    model, tokenizer = small_model()
    params = SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=())
    sampler = Sampler(model, SIZES)
    groups = sampler.generate([tokenizer.encode(prompt) for prompt in PROMPTS], params)
    texts = [tokenizer.decode(g[0].token_ids, skip_special_tokens=True) for g in groups]
    expected, memory = dict(zip(PROMPTS, texts, strict=True)), []
    with running(sizes=SIZES, max_waiting=1000) as server:
        counts = asyncio.run(load(server.port, expected, memory))
        stats = server.idle()
        service = server.service
        print(counts, stats)
        assert counts["refused"] == 0
        assert counts["complete"] > CLIENTS and counts["left"] > CLIENTS // 4
        assert stats["pages_used"] == 0
        assert service.worker._jobs == {} and service.worker._accepted == {}
        # Every request has had an answer to its end, or its client has left.
        asked = counts["complete"] + counts["left"]
        server.until(lambda: sum(service.gauges.requests.values()) == asked)
    fifth = len(memory) // 5
    early, late = max(memory[fifth : 2 * fifth]), max(memory[-fifth:])
    print(f"resident: {early >> 20} MiB early, {late >> 20} MiB late")
    assert late - early < MOST_GROWTH_BYTES, memory
