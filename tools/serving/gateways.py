#!/usr/bin/env python3
"""Two replicas of `bitnet serve` behind haproxy, nginx, vllm-router or LiteLLM, each started as deploy/gateways says.

    python gateways.py haproxy nginx vllm-router=PROGRAM litellm=PROGRAM [--program PATH]

Conformance (without what a gateway answers itself), load with every answer compared and one client in five going away, and one
replica killed in mid-stream, after which only its own streams may fail. Exit 0 when all passed.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from check import run
from routers import free_port, kill_under_load, process, wait
from server import ROOT, Server, program

FOLDER = ROOT / "deploy/gateways"
KEY = "sk-of-the-gateway-1234"
# By turns, requests of a case may come to either replica: those that look at one cannot tell.
BY_TURNS = ("cancel.*", "metrics.counters", "metrics.running", "chat.cached_tokens", "models.list")
# vllm-router reads requests itself: it answers 422 in plain text where a type is wrong, refuses `"stream": null` and drops what it
# does not know of `stream_options`.
VLLM = ("error.bad_json", "error.messages", "error.param", "error.ranges", "error.max_tokens", "error.types", "error.top_logprobs", "error.logit_bias",
        "error.method", "error.content_type", "error.in_stream_request", "chat.nulls", "stream.continuous_usage", "stream.keep_alive", "text.bad_ids",
        "schema.bad", "client.openai")
# LiteLLM has paths, errors and chunks of its own, and knows neither /health without a key nor /tokenize.
LITELLM = ("models.*", "health.*", "error.*", "auth.*", "chat.unknown_fields", "stream.finish_last", "stream.usage", "stream.continuous_usage", "stream.n",
           "stream.request_id", "stream.keep_alive", "text.bad_ids", "text.empty", "text.best_of", "text.suffix", "schema.bad", "tools.bad", "tokenize.*",
           "cors.*", "embeddings.*")


def documented(name):
    """The line that deploy/gateways/README.md starts a gateway by."""
    row = next(line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith(f"| {name}"))
    return re.search(r"`([^`]+)`", row.split("|")[2])[1]


def started(url, key):
    def ask():
        asked = urllib.request.Request(url + "/v1/models", headers={"Authorization": "Bearer " + key})
        try:
            return urllib.request.urlopen(asked, timeout=5).status == 200
        except urllib.error.HTTPError:
            return False
    return ask


def behind(name, binary, path):
    print(f"== {name}", flush=True)
    with Server(binary, "--alias", "bitnet-2b") as one, Server(binary, "--alias", "bitnet-2b") as two, tempfile.TemporaryDirectory() as folder:
        port = free_port()
        ports = {"8000": str(port), "8081": one.url.rsplit(":", 1)[1], "8082": two.url.rsplit(":", 1)[1]}
        moved = lambda text: re.sub(r"\b(8000|8081|8082)\b", lambda m: ports[m[1]], text)  # noqa: E731
        line = documented(name)
        for file in re.findall(r"\S*deploy/gateways/(\S+)", line):
            (Path(folder) / file).write_text(moved((FOLDER / file).read_text()))
            line = re.sub(rf"\S*deploy/gateways/{file}", f"{folder}/{file}", line)
        line = moved(line).replace("nginx ", 'nginx -g "daemon off;" ')
        key, environment = "none", {k: v for k, v in os.environ.items() if not k.startswith("BITNET_")}
        environment["PATH"] = f"{Path(path).parent}:{environment['PATH']}"
        if name == "LiteLLM":
            key = KEY
            environment |= {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "BITNET_API_KEY": "none"}
        keyed = [] if key == "none" else ["--api-key", key]
        url = f"http://127.0.0.1:{port}"
        print(f"   {line}", flush=True)
        with process("sh", "-c", f"exec {line}", env=environment):
            wait(started(url, key), "an answer of the gateway", 120)
            time.sleep(3)  # For its checks of both replicas.
            skip = [x for p in BY_TURNS + {"vllm-router": VLLM, "LiteLLM": LITELLM}.get(name, ()) for x in ("--skip", p)]
            run(f"conformance through {name}", sys.executable, "conformance.py", "--url", url, "--model", "bitnet-2b", "--ctx", "1024", *keyed, *skip)
            run(f"load through {name}", sys.executable, "load.py", "--url", url, "--model", "bitnet-2b", *keyed, "--verify", "--cancel", "0.2", "--concurrency", "8",
                "--requests", "64", "--output-tokens", "32")
            for server in (one, two):
                wait(lambda server=server: server.gauge("vllm:num_requests_running") == 0 and server.gauge("vllm:kv_cache_usage_perc") == 0, "nothing runs", 5)
            print(f"-- kill -9 of one replica behind {name}", flush=True)
            # The others pass bytes on, and can tell the end of an answer only by ending the connection.
            told = "error event" if name == "LiteLLM" else "cut"
            # LiteLLM asks the other replica for chats only.
            asyncio.run(kill_under_load(url, one.process.pid, two.process.pid, model="bitnet-2b", key=key, told=told, chat=name == "LiteLLM"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gateways", nargs="+", metavar="GATEWAY[=PROGRAM]", help="haproxy, nginx, vllm-router, litellm")
    p.add_argument("--program", help="the program `bitnet`; what was built last unless given")
    args = p.parse_args()
    names = {"haproxy": "haproxy", "nginx": "nginx", "vllm-router": "vllm-router", "litellm": "LiteLLM"}
    for gateway in args.gateways:
        name, _, path = gateway.partition("=")
        path = path or shutil.which(name, path="/usr/sbin:/sbin:" + os.environ["PATH"])
        if name not in names or not path:
            p.error(f"{name}: there is no such gateway here")
        behind(names[name], args.program or program(), path)


if __name__ == "__main__":
    main()
