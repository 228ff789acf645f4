"""Load for `engine serve`, by hand, without a package: clients at once, and then nonsense.

    python tests/serve/load.py http://127.0.0.1:8080 --clients 1000 --requests 10
    python tests/serve/load.py http://127.0.0.1:8080 --malformed 10000 --process PID

The first prints how many requests got which answer: the sum has to be clients x requests. Requests that are told to wait do so
and try again. The second prints the server's memory before and after.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from urllib.parse import urlsplit


async def ask(address, path, body, kind):
    """The status, the seconds that the server says to wait, and the body."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        writer.write((head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
        answer = await reader.read()
    except ConnectionError:
        return 0, 0, b""
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    wait = next((int(line.split(":")[1]) for line in lines if line.startswith("retry-after")), 0)
    return int(lines[0].split()[1]) if len(lines[0].split()) > 1 else 0, wait, body


async def clients(address, options):
    statuses, latencies, pictures = Counter(), [], 0
    body = {"prompt": "a lion", "response_format": "b64_json", "n": 1}
    for name in ("steps", "prior_steps", "super_res_steps"):
        if getattr(options, name):
            body[name] = getattr(options, name)

    async def client(number):
        nonlocal pictures
        for turn in range(options.requests):
            began = time.time()
            data = json.dumps({**body, "seed": 1000 * number + turn}).encode()
            while True:
                status, wait, answer = await ask(address, "/v1/images/generations", data, "application/json")
                if status != 429 or not options.again:
                    break
                statuses["429, tried again"] += 1
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            statuses[status] += 1
            latencies.append(time.time() - began)
            if status == 200:
                pictures += len(json.loads(answer)["data"])

    began = time.time()
    await asyncio.gather(*(client(number) for number in range(options.clients)))
    seconds = time.time() - began
    latencies.sort()
    print(f"answers: {dict(statuses)} for {options.clients} x {options.requests}")
    print(f"{pictures} pictures in {seconds:.1f} s: {pictures / seconds:.2f} a second")
    print(f"latency: median {latencies[len(latencies) // 2]:.3f} s, longest {latencies[-1]:.3f} s")


def memory(process):
    with open(f"/proc/{process}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


async def malformed(address, options):
    dice = random.Random(7)
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n\x89PNG\r\n\x1a\n'
    form += bytes(dice.randrange(256) for _ in range(400)) + b"\r\n--b--\r\n"
    texts = [b"{", b"[]", b'{"prompt":3}', b'{"prompt":"a","n":99}', b'{"prompt":"a","size":"x"}', b"\xff" * 50, b"[" * 5000]

    def nonsense():
        if dice.random() < 0.5:
            return dice.choice(texts), "application/json", "/v1/images/generations"
        broken = bytearray(form)
        for _ in range(dice.randrange(1, 9)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        return bytes(broken[: dice.randrange(1, len(broken))]), "multipart/form-data; boundary=b", "/v1/images/variations"

    async def some(count):
        statuses = Counter()
        for _ in range(count):
            body, kind, path = nonsense()
            status, _, _ = await ask(address, path, body, kind)
            statuses[status] += 1
        return statuses

    async def all_of(count):
        return sum(await asyncio.gather(*(some(count // 16) for _ in range(16))), Counter())

    await all_of(options.malformed // 10)
    before = memory(options.process) if options.process else 0
    statuses = await all_of(options.malformed)
    after = memory(options.process) if options.process else 0
    print(f"answers: {dict(statuses)}; memory {before:.1f} MiB before, {after:.1f} MiB after")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--again", action="store_true", help="wait and try again where the server says so")
    parser.add_argument("--malformed", type=int, default=0)
    parser.add_argument("--process", type=int, default=0)
    for name in ("--steps", "--prior-steps", "--super-res-steps"):
        parser.add_argument(name, type=int, default=0)
    options = parser.parse_args()
    parts = urlsplit(options.address)
    address = (parts.hostname, parts.port)
    asyncio.run(malformed(address, options) if options.malformed else clients(address, options))


main()
