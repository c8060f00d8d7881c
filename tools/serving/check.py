#!/usr/bin/env python3
"""`bitnet serve` with the demo model, from outside: the README's examples; conformance and clients, without and with a key; load; drain.

    python check.py [--program PATH] [--seconds 60] [--node FOLDER]

Exit 0 when all of it passed; the first part that fails ends it with 1.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from server import ROOT, Server, program

HERE = Path(__file__).resolve().parent
KEY = "a-key-of-more-than-16-characters"


def run(name, *command, timeout=300, cwd=HERE):
    """Runs a part to its end; what it printed, shown only where it failed."""
    print(f"-- {name}", flush=True)
    began = time.monotonic()
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        told = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("pass "))
        print(told[-12000:], done.stderr[-4000:], sep="\n")
        raise SystemExit(f"error: {name} failed")
    last = done.stdout.strip().splitlines()[-1:]
    print(f"   {last[0] if last and not done.stdout.startswith('{') else 'passed'} ({time.monotonic() - began:.0f} s)", flush=True)
    return done.stdout


def load(server, name, *flags, timeout=300):
    report = json.loads(run(name, sys.executable, "load.py", "--url", server.url, *flags, timeout=timeout))
    short = {k: report[k] for k in ("completed", "cancelled", "verified", "differing", "failed", "rejected", "output_throughput", "median_ttft_ms", "p99_ttft_ms", "after") if k in report}
    print(f"   {json.dumps(short)}")
    return report


def examples(server):
    """The README's examples, as they are written but for the port."""
    text = (ROOT / "README.md").read_text().split("\n## A server\n")[1].split("\n## ")[0]
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.M | re.S)
    wanted = ["7, 8, 9, 10, 11, 12", "123 + 456 = 579", "nedrag"]
    assert [language for language, _ in found] == ["sh", "python", "python"], "the README has other examples than expected"
    for (language, code), answer in zip(found, wanted, strict=True):
        assert "http://127.0.0.1:8080" in code
        command = ["sh", "-c"] if language == "sh" else [sys.executable, "-c"]
        said = run(f"README, {code.split()[0] if language == 'sh' else code.split()[1]}", *command, code.replace("http://127.0.0.1:8080", server.url))
        if language == "sh":
            events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
            said = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
        assert said.strip() == answer, said


def conformance(server, *key):
    for script in ("conformance", "neighbours"):
        run(script + (" with a key" if key else ""), sys.executable, script + ".py", "--url", server.url, *key)


def clients(server, args, *key):
    if args.node:
        run("Node clients" + (" with a key" if key else ""), "node", "clients.mjs", "--url", server.url, *key, cwd=args.node)


def verified(server, seconds):
    """Load for about so long, with every answer compared; then nothing runs, no page is held, memory is where it was."""
    flags = ("--verify", "--cancel", "0.2", "--concurrency", "32", "--output-tokens", "32", "--prompt-words", "16", "64", "128", "--distinct", "24")
    first = load(server, "load: 32 clients, one in five goes away", *flags, "--requests", "96", "--shared-prefix", "40", "--prefix-groups", "4")
    before = server.memory()
    requests = max(96, int((seconds - first["duration"]) / 2 * 96 / first["duration"]))
    for name, more in (("greedy", ()), ("sampled with a seed", ("--temperature", "1", "--endpoint", "chat"))):
        report = load(server, f"load, {name}, {requests} requests", *flags, *more, "--requests", requests, "--slow", "0.02")
        assert report["completed"] + report["cancelled"] == requests and not report["rejected"], report
    assert server.gauge("vllm:kv_cache_usage_perc") == 0, "pages are still held"
    grew = (server.memory() - before) / 2**20
    print(f"   memory: {server.memory() / 2**20:.0f} MiB, {grew:+.0f} MiB since the first round")
    assert grew < 64, "memory grows with the number of requests"


def drain(binary):
    """SIGTERM under load: no answer is cut, and the program ends with 0."""
    with Server(binary) as server:
        print("-- drain: SIGTERM under load", flush=True)
        command = [sys.executable, "load.py", "--url", server.url, "--drain", "--requests", "2000", "--concurrency", "16", "--output-tokens", "48"]
        clients = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
        time.sleep(3)
        assert server.gauge("vllm:num_requests_running") > 0
        status = server.stop()
        report = json.loads(clients.communicate(timeout=120)[0])
        print(f"   completed {report['completed']}, failed {report['failed']}, refused afterwards {report['rejected']}; exit status {status}")
        assert report["failed"] == 0 and report["completed"] > 0 and status == 0, report


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", help="the program `bitnet`; what was built last unless given")
    p.add_argument("--node", help="folder of clients.mjs with its modules; without it those clients are left out")
    p.add_argument("--seconds", type=float, default=60, help="how long the load lasts, about")
    args = p.parse_args()
    binary = args.program or program()
    print(binary)
    with Server(binary) as server:
        examples(server)
        conformance(server)
        clients(server, args)
        verified(server, args.seconds)
    with Server(binary, "--api-key", KEY) as server:
        conformance(server, "--api-key", KEY)
        clients(server, args, "--api-key", KEY)
    drain(binary)


if __name__ == "__main__":
    main()
