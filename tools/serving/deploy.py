#!/usr/bin/env python3
"""deploy/ as far as it can be checked without a cluster, a container runtime and a running systemd.

Everything parses; labels, ports and names of the Kubernetes files fit each other; the dashboard asks for metrics that the server has,
with panels that do not overlap; every flag and variable of the files is one of the program's. Where systemd-analyze, haproxy and nginx
are installed, they judge their files.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from server import ROOT, program

DEPLOY = ROOT / "deploy"


def kubernetes():
    found = {}
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for one in yaml.safe_load_all(file.read_text()):
            assert one["apiVersion"] and one["metadata"]["name"], file
            found[one["kind"]] = one
    assert set(found) == {"Deployment", "Service", "InferencePool", "HTTPRoute", "PodMonitor"}, set(found)
    pods = found["Deployment"]["spec"]["template"]
    (container,) = pods["spec"]["containers"]
    labels, ports = pods["metadata"]["labels"], {p["name"]: p["containerPort"] for p in container["ports"]}
    for kind, selector in (("Deployment", found["Deployment"]["spec"]["selector"]["matchLabels"]), ("Service", found["Service"]["spec"]["selector"]),
                           ("InferencePool", found["InferencePool"]["spec"]["selector"]["matchLabels"]), ("PodMonitor", found["PodMonitor"]["spec"]["selector"]["matchLabels"])):
        assert selector.items() <= labels.items(), f"{kind} selects {selector}, pods have {labels}"
    assert found["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert found["InferencePool"]["spec"]["targetPorts"][0]["number"] == ports["http"]
    assert found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in ports
    backend = found["HTTPRoute"]["spec"]["rules"][0]["backendRefs"][0]
    assert (backend["kind"], backend["name"]) == ("InferencePool", found["InferencePool"]["metadata"]["name"])
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"} and container[probe]["timeoutSeconds"] >= 5
    args = container["args"]
    grace = pods["spec"]["terminationGracePeriodSeconds"]
    assert grace > container["lifecycle"]["preStop"]["sleep"]["seconds"] + int(args[args.index("--shutdown-timeout") + 1])
    return args


def dashboard():
    board = json.loads((DEPLOY / "grafana/bitnet.json").read_text())
    sources = "".join(file.read_text() for file in (ROOT / "crates/bitnet-server/src").glob("**/*.rs"))
    cells, ids = set(), set()
    for panel in board["panels"]:
        assert panel["id"] not in ids and panel["title"], panel
        ids.add(panel["id"])
        g = panel["gridPos"]
        mine = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert g["x"] + g["w"] <= 24 and not mine & cells, f"{panel['title']} overlaps"
        cells |= mine
        assert panel["type"] == "row" or panel["targets"], panel["title"]
        for target in panel.get("targets", []):
            names = re.findall(r"(?:vllm:|bitnet_|process_)\w+", target["expr"])
            assert names, target["expr"]
            for name in names:
                name = re.sub(r"_(bucket|sum|count)$", "", name)
                assert f'"{name}"' in sources, f"{name} of the panel {panel['title']} is no metric of the server"


def flags(binary, *lists):
    known = set(re.findall(r"--[\w-]+", subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, check=True).stdout))
    variables = set(re.findall(r"BITNET_\w+", subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, check=True).stdout))
    for words in lists:
        for word in words:
            assert not word.startswith("--") or word.split("=")[0] in known, f"bitnet serve has no {word}"
    for file in DEPLOY.rglob("*"):
        if file.is_file() and file.suffix != ".json":
            strange = set(re.findall(r"BITNET_\w+", file.read_text())) - variables
            assert not strange, f"{file.name}: {strange}"


def unit(binary):
    text = (DEPLOY / "systemd/bitnet.service").read_text()
    sections, command = re.findall(r"^\[(\w+)\]$", text, re.M), re.search(r"^ExecStart=(.*)$", text, re.M)[1].split()
    assert sections == ["Unit", "Service", "Install"] and command[:2] == ["/usr/local/bin/bitnet", "serve"]
    values = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    assert values["Type"] == "notify" and int(values["TimeoutStopSec"]) > 30 and values["KillSignal"] == "SIGTERM"
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as folder:  # It looks whether the program is there.
            file = Path(folder) / "bitnet.service"
            file.write_text(text.replace("/usr/local/bin/bitnet", str(Path(binary).resolve())))
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True)
            told = [line for line in done.stderr.splitlines() if "bitnet.service" in line]
            assert done.returncode == 0 and not told, done.stderr
    return command[2:]


def gateways():
    for file in ("gateways/litellm.yaml", "ray/serve.yaml"):
        assert isinstance(yaml.safe_load((DEPLOY / file).read_text()), dict), file
    ray = DEPLOY / "ray/bitnet_serve.py"
    compile(ray.read_text(), str(ray), "exec")
    application = yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text())["applications"][0]
    assert application["import_path"] == "bitnet_serve:app" and "\ndef app(" in ray.read_text()
    for name, command in (("haproxy", ["haproxy", "-c", "-f", DEPLOY / "gateways/haproxy.cfg"]), ("nginx", ["nginx", "-t", "-c", DEPLOY / "gateways/nginx.conf"])):
        if shutil.which(name):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return application["args"]["flags"].split()


def image():
    lines = re.sub(r"\\\n", "", (DEPLOY / "container/Containerfile").read_text()).splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert words[0] == "FROM" and set(words) <= {"FROM", "RUN", "COPY", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}, words
    json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", help="the program `bitnet`; what was built last unless given")
    binary = p.parse_args().program or program()
    flags(binary, kubernetes(), unit(binary), gateways())
    dashboard()
    image()
    asked = [name for name in ("systemd-analyze", "haproxy", "nginx") if shutil.which(name)]
    print(f"deploy/ is sound; judged also by {', '.join(asked) or 'no program of its own'}")


if __name__ == "__main__":
    main()
