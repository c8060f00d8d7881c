#!/usr/bin/env python3
"""Two replicas of `bitnet serve` behind smg and behind Ray Serve: conformance, load with comparison, and one replica killed under load.

    python routers.py [--program PATH] [--smg PROGRAM] [--ray PYTHON]

What has no program given is left out. Exit 0 when all passed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx

from check import run
from server import ROOT, Server, program

HERE = Path(__file__).resolve().parent
# What a gateway answers itself, or does not pass on.
OF_SMG = ("models.max_model_len", "health.probes", "health.version", "error.content_type", "tokenize.chat", "tokenize.template")
# A repeated prompt, and a question for metrics, may come to the other replica; ids of requests are Serve's own.
OF_RAY = ("chat.cached_tokens", "cancel.*", "metrics.counters", "metrics.running", "stream.request_id")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(true, what, seconds=90):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError, json.JSONDecodeError):
            if value := true():
                return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def models(url):
    return json.load(urllib.request.urlopen(url + "/v1/models", timeout=5))["data"]


@contextlib.contextmanager
def process(*command, **kw):
    """A gateway in a process group of its own, ended with everything that it started."""
    with tempfile.TemporaryFile("w+") as log:
        started = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, start_new_session=True, **kw)
        try:
            yield started
        except BaseException:
            log.seek(0)
            print(log.read()[-1500:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)


async def stream(client, url, i, texts, model, chat):
    """One streamed answer, whose text grows in `texts[i]`; how it ended: done, an error event, refused, or cut (nothing told)."""
    prompt = f"{i} Count from {i % 50} to {i % 50 + 9}."
    body = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body |= {"max_tokens": 900, "temperature": 0, "ignore_eos": True, "stream": True, "model": model}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    texts[i] = ""
    try:
        async with client.stream("POST", url + path, json=body) as r:
            if r.status_code != 200:
                return f"refused ({r.status_code})"
            async for line in r.aiter_lines():
                if not line.startswith("data:"):
                    continue
                if line.strip() == "data: [DONE]":
                    return "done"
                event = json.loads(line[5:])
                if "error" in event:
                    return "error event"
                texts[i] += "".join((c["delta"].get("content") if chat else c["text"]) or "" for c in event["choices"])
    except httpx.HTTPError as e:
        return f"cut ({type(e).__name__})"
    return "cut"


async def kill_under_load(url, victim, other, count=32, parallel=8, model="demo", key="none", told="error event", chat=False):
    """Streams through the gateway, of which `parallel` run when one replica (a process id) is killed: only its own may fail, as `told`.

    Both replicas are stopped as soon as text comes, and the other one goes on alone: what is not done then is the victim's.
    """
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=parallel + 8), headers={"Authorization": "Bearer " + key}) as client:
        alone, texts, ends = {}, {}, {}
        for i in range(4):
            assert await stream(client, url, i, alone, model, chat) == "done"

        async def one(i):
            ends[i] = await stream(client, url, i, texts, model, chat)

        for attempt in range(10):
            texts.clear(), ends.clear()
            tasks = [asyncio.create_task(one(i)) for i in range(parallel)]
            while len([i for i in texts if texts[i]]) < 3:
                await asyncio.sleep(0.001)
            for pid in (victim, other):
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.5)  # What the gateway still held has come.
            os.kill(other, signal.SIGCONT)
            seen, since = -1, time.monotonic()
            while time.monotonic() - since < 2:
                if sum(map(len, texts.values())) != seen:
                    seen, since = sum(map(len, texts.values())), time.monotonic()
                await asyncio.sleep(0.05)
            mine = [i for i in texts if i not in ends]
            begun = [i for i in mine if texts[i]]
            if begun and len(mine) < parallel:
                break
            os.kill(victim, signal.SIGCONT)
            await asyncio.gather(*tasks)
        else:
            raise AssertionError("the gateway never used both replicas at once")
        os.kill(victim, signal.SIGKILL)
        places = asyncio.Semaphore(parallel)

        async def later(i):
            async with places:
                await one(i)

        await asyncio.gather(*tasks, *(later(i) for i in range(parallel, count)))
        seen = {end: sum(e == end for e in ends.values()) for end in set(ends.values())}
        print(f"   {len(mine)} of {parallel} streams were the killed one's, {len(begun)} had text; all ended so: {seen}", flush=True)
        for i in range(4):
            assert alone[i].startswith(texts[i]) and (ends[i] != "done" or texts[i] == alone[i]), f"stream {i} differs"
        assert all(ends[i].startswith(told) for i in begun), {i: ends[i] for i in begun}
        assert all(ends[i] == "done" for i in ends if i not in mine), {i: e for i, e in ends.items() if i not in mine and e != "done"}
        assert told == "cut" or not any(end.startswith("cut") for end in ends.values()), ends


@contextlib.contextmanager
def smg(program, workers, policy):
    """The address of a gateway before some replicas."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(program, "launch", "--worker-urls", *workers, "--policy", policy, "--host", "127.0.0.1", "--port", port,
                 "--worker-overload-token-usage", 1, "--prometheus-port", free_port(), "--cors-allowed-origins", "http://localhost:3000"):
        wait(lambda: models(url), "smg's list of models")
        time.sleep(1)  # For the second replica.
        yield url


def behind_smg(args, binary):
    print("== smg", flush=True)
    with Server(binary) as one, Server(binary) as two:
        workers = one.url, two.url
        with smg(args.smg, workers, "cache_aware") as url:
            run("conformance through smg", sys.executable, "conformance.py", "--url", url, "--ctx", 1024, *[x for p in OF_SMG for x in ("--skip", p)])
            run("load through smg", sys.executable, "load.py", "--url", url, "--verify", "--cancel", "0.2", "--concurrency", "8", "--requests", "96", "--output-tokens", "32")
        # By turns: where prompts that begin alike are sent to one replica, it can be that one has them all.
        with smg(args.smg, workers, "round_robin") as url:
            print("-- kill -9 of one replica behind smg", flush=True)
            asyncio.run(kill_under_load(url, one.process.pid, two.process.pid))


def behind_ray(args, binary):
    print("== Ray Serve", flush=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BITNET_")} | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT / "deploy/ray")}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serve.yaml"
        config.write_text(json.dumps({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [{"name": "bitnet", "route_prefix": "/",
            "import_path": "bitnet_serve:app", "args": {"program": os.path.abspath(binary), "replicas": "2"}}]}))
        scripts = Path(args.ray).parent
        try:
            with process(scripts / "serve", "run", config, cwd=folder, env=environment):
                wait(lambda: models(url), "an answer through Ray Serve", 120)
                wait(lambda: len(replicas()) == 2, "two replicas", 120)
                time.sleep(2)
                run("conformance through Ray Serve", sys.executable, "conformance.py", "--url", url, *[x for p in OF_RAY for x in ("--skip", p)])
                run("load through Ray Serve", sys.executable, "load.py", "--url", url, "--verify", "--cancel", "0.2", "--concurrency", "8", "--requests", "64", "--output-tokens", "32")

                print("-- kill -9 of one replica behind Ray Serve", flush=True)
                asyncio.run(kill_under_load(url, *replicas()))
                wait(lambda: len(replicas()) == 2, "a new server in the place of the killed one", 90)
                print("   the killed one was started again")
        finally:
            subprocess.run([scripts / "ray", "stop", "--force"], capture_output=True, env=environment)


def replicas():
    """Process ids of the servers that Ray's replicas started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if len(words) > 3 and words[1] == b"serve" and words[2] == b"--host" and words[3].endswith(b"/serve.sock") and Path(words[3].decode()).exists():
                found.append(int(entry.parent.name))
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", help="the program `bitnet`; what was built last unless given")
    p.add_argument("--smg", help="the program smg")
    p.add_argument("--ray", help="a Python that has ray[serve]")
    args = p.parse_args()
    binary = args.program or program()
    if args.smg:
        behind_smg(args, binary)
    if args.ray:
        behind_ray(args, binary)


if __name__ == "__main__":
    main()
