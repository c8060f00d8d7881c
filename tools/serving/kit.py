"""Runner and helpers of the conformance kit: named cases against any OpenAI-compatible server.

A case is a function of a Context, registered with @case. It returns (pass), raises Skip (not applicable here, with the reason) or
anything else (fail). A case never depends on what the model knows, only on the protocol: expected texts are taken from a first,
greedy answer of the same server.
"""

import argparse
import contextlib
import fnmatch
import json
import re
import sys
import threading
import time
import traceback

import httpx

CASES = []
# core: every client needs it.  openai: in OpenAI's reference.  vllm: extension of vLLM or of the Gateway API.  ours: what this project decided.
LEVELS = ("core", "openai", "vllm", "ours")


class Skip(Exception):
    """The case does not apply to this server or this run."""


def case(name, level="core", needs=()):
    """Registers a case. `needs`: what the server must offer, checked by Context.need."""
    assert level in LEVELS, level

    def register(function):
        CASES.append((name, level, tuple(needs), function))
        return function

    return register


class Stream:
    """A finished event stream: strictly parsed, with the time of every event."""

    def __init__(self, response, raw, sent, chunks, times, comments):
        self.response, self.raw, self.sent, self.chunks, self.times, self.comments = response, raw, sent, chunks, times, comments

    def text(self, index=0):
        out = []
        for chunk in self.chunks:
            for choice in chunk["choices"]:
                if choice.get("index", 0) == index:
                    out.append(choice.get("text") if "text" in choice else (choice.get("delta") or {}).get("content"))
        return "".join(t for t in out if t)

    def finish(self, index=0):
        reasons = [c["finish_reason"] for chunk in self.chunks for c in chunk["choices"]
                   if c.get("index", 0) == index and c.get("finish_reason")]
        assert len(reasons) == 1, f"choice {index} has finish reasons {reasons}, wanted exactly one"
        return reasons[0]

    def usage(self):
        found = [c["usage"] for c in self.chunks if c.get("usage")]
        return found[-1] if found else None


def parse_sse(lines_with_times):
    """Parses event-stream lines strictly: comments, `data: ` events each closed by an empty line, `[DONE]` last."""
    chunks, times, comments, data, done = [], [], 0, None, False
    for line, at in lines_with_times:
        if line == "":
            if data is None:
                continue
            if data == "[DONE]":
                done = True
            else:
                assert not done, "an event after [DONE]"
                chunks.append(json.loads(data))
                times.append(at)
            data = None
        elif line.startswith(":"):
            comments += 1
        elif line.startswith("data:"):
            assert data is None, "two data lines in one event: clients that split on lines break"
            data = line[5:].lstrip(" ")
        else:
            raise AssertionError(f"a line that is neither data nor comment: {line[:80]!r}")
    assert data is None, "the last event is not closed by an empty line"
    assert done, "the stream ended without [DONE]"
    return chunks, times, comments


class Context:
    """What a case gets: raw HTTP, real clients, and facts about the server."""

    def __init__(self, args):
        self.url = args.url.rstrip("/").removesuffix("/v1")
        self.v1 = self.url + "/v1"
        self.model, self.key, self.timeout, self.prompt = args.model, args.api_key, args.timeout, args.prompt
        self.other = args.other_prompts
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.http = httpx.Client(timeout=self.timeout, headers=headers, limits=httpx.Limits(max_connections=200))
        self.plain = httpx.Client(timeout=self.timeout)
        self._ctx, self._features, self._greedy = args.ctx, {}, {}
        self.dropped = 0

    # Clients

    def openai(self, **kw):
        from openai import OpenAI

        return OpenAI(base_url=self.v1, api_key=self.key or "none", timeout=self.timeout, max_retries=0, **kw)

    def async_openai(self, **kw):
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.v1, api_key=self.key or "none", timeout=self.timeout, max_retries=0, **kw)

    # Requests

    def messages(self, text=None):
        return [{"role": "user", "content": self.prompt if text is None else text}]

    def body(self, **kw):
        """A chat request; a key given as `...` is left out."""
        body = {"model": self.model, "messages": self.messages(), "max_tokens": 16, "temperature": 0} | kw
        return {k: v for k, v in body.items() if v is not ...}

    def text_body(self, **kw):
        body = {"model": self.model, "prompt": self.prompt, "max_tokens": 16, "temperature": 0} | kw
        return {k: v for k, v in body.items() if v is not ...}

    def post(self, path, body, client=None, **kw):
        return self.again(lambda: (client or self.http).post(self.url + path, json=body, **kw))

    def again(self, send):
        """Sends once more where the server closed a kept connection without saying so; counted, and told at the end."""
        try:
            return send()
        except httpx.RemoteProtocolError as e:
            if "without sending a response" not in str(e):
                raise
            self.dropped += 1
            return send()

    def chat(self, **kw):
        return self.ok(self.post("/v1/chat/completions", self.body(**kw)))

    def text(self, **kw):
        return self.ok(self.post("/v1/completions", self.text_body(**kw)))

    def ok(self, response):
        assert response.status_code == 200, f"status {response.status_code}: {response.text[:300]}"
        return response.json()

    def greedy(self, n=24, text=None, ignore_eos=False):
        """The greedy answer of n tokens at most, remembered: (text, completion tokens, finish reason)."""
        key = (n, text, ignore_eos)
        if key not in self._greedy:
            extra = {"ignore_eos": True} if ignore_eos else {}
            r = self.chat(messages=self.messages(text), max_tokens=n, **extra)
            self._greedy[key] = (r["choices"][0]["message"]["content"] or "", r["usage"]["completion_tokens"],
                                 r["choices"][0]["finish_reason"])
        return self._greedy[key]

    def stream(self, path="/v1/chat/completions", body=None, client=None):
        """Sends a streamed request, reads it to the end, and parses it strictly."""
        return self.again(lambda: self._stream(path, body, client))

    def _stream(self, path, body, client):
        body = dict(body if body is not None else self.body())
        body["stream"] = True
        sent = time.monotonic()
        with (client or self.http).stream("POST", self.url + path, json=body) as r:
            if r.status_code != 200:
                r.read()
                raise AssertionError(f"status {r.status_code}: {r.text[:300]}")
            assert r.headers.get("content-type", "").startswith("text/event-stream"), r.headers.get("content-type")
            raw, lines, rest = b"", [], b""
            for part in r.iter_raw():
                at, raw, rest = time.monotonic(), raw + part, rest + part
                *whole, rest = rest.replace(b"\r\n", b"\n").split(b"\n")
                lines += [(w.decode("utf-8", "strict"), at) for w in whole]
            assert rest == b"", f"bytes after the last line end: {rest[:60]!r}"
        return Stream(r, raw, sent, *parse_sse(lines))

    @contextlib.contextmanager
    def open_stream(self, body=None, path="/v1/chat/completions", reads=2):
        """A stream of which `reads` events were read; leaving the block closes the connection."""
        body = dict(body or self.long_body())
        body["stream"] = True
        client = httpx.Client(timeout=self.timeout, headers=self.http.headers)
        with client, client.stream("POST", self.url + path, json=body) as r:
            if r.status_code != 200:
                r.read()
                raise AssertionError(f"status {r.status_code}: {r.text[:300]}")
            lines = r.iter_lines()
            got = 0
            for line in lines:
                got += line.startswith("data:")
                if got >= reads:
                    break
            yield lines

    def long_body(self, n=None, **kw):
        """A request that runs long enough to be looked at: most of the context, end-of-sequence ignored."""
        n = n or max(64, min(3000, self.ctx() - 400))
        return self.body(max_tokens=n, ignore_eos=True, **kw)

    # Checks

    def error(self, response, *status, param=None, code=None):
        """The response is an error of one of these statuses with OpenAI's error object."""
        assert response.status_code in status, f"status {response.status_code}, wanted {status}: {response.text[:300]}"
        assert response.headers.get("content-type", "").startswith("application/json"), "the error is not JSON"
        body = response.json()
        error = body.get("error")
        assert isinstance(error, dict), f"no error object: {str(body)[:200]}"
        assert isinstance(error.get("message"), str) and error["message"], "error.message is missing"
        assert isinstance(error.get("type"), str), "error.type is missing"
        if param is not None:
            assert error.get("param") == param, f"error.param is {error.get('param')!r}, wanted {param!r}"
        if code is not None:
            assert error.get("code") == code, f"error.code is {error.get('code')!r}, wanted {code!r}"
        assert "Traceback" not in error["message"], "a traceback reached the client"
        return error

    def refused(self, status=400, **kw):
        """This chat request is refused."""
        return self.error(self.post("/v1/chat/completions", self.body(**kw)), status)

    def alive(self):
        """The server still answers."""
        assert self.plain.get(self.url + "/health").status_code == 200, "/health is not 200"
        assert self.chat(max_tokens=2)["choices"], "no answer after the case"

    # Facts about the server

    def ctx(self):
        """Tokens of context of a request: --ctx, vLLM's max_model_len, llama.cpp's n_ctx."""
        if not self._ctx:
            data = self.http.get(self.v1 + "/models").json()["data"]
            mine = next((m for m in data if m["id"] == self.model), data[0])
            self._ctx = mine.get("max_model_len") or (mine.get("meta") or {}).get("n_ctx") or 0
            if not self._ctx:
                raise Skip("the context length is unknown; give --ctx")
        return self._ctx

    def metrics(self):
        """/metrics as {(name, labels): value}, labels sorted."""
        r = self.again(lambda: self.http.get(self.url + "/metrics"))
        if r.status_code != 200:
            raise Skip(f"/metrics answers {r.status_code}")
        return parse_metrics(r.text)

    def gauge(self, *names):
        """The sum over labels of the first of these metrics that exists."""
        found = self.metrics()
        for name in names:
            values = [v for (n, _), v in found.items() if n == name]
            if values:
                return sum(values)
        raise Skip(f"no metric of {names}")

    def running(self):
        return self.gauge("vllm:num_requests_running", "llamacpp:requests_processing", "bitnet_requests_running")

    def wait_idle(self, seconds=3.0):
        """Nothing runs any more, within so many seconds."""
        end = time.monotonic() + seconds
        while True:
            n = self.running()
            if n == 0:
                return
            assert time.monotonic() < end, f"{n} requests still run after {seconds} s"
            time.sleep(0.05)

    def need(self, feature):
        """Skips unless the server has a feature; found out once."""
        if feature not in self._features:
            self._features[feature] = self._probe(feature)
        why = self._features[feature]
        if why:
            raise Skip(why)

    def _probe(self, feature):
        schema = {"type": "object", "properties": {"ok": {"enum": [True]}}, "required": ["ok"], "additionalProperties": False}
        if feature == "metrics":
            return "" if self.http.get(self.url + "/metrics").status_code == 200 else "no /metrics"
        if feature == "schema":
            r = self.post("/v1/chat/completions", self.body(max_tokens=64, response_format=schema_format(schema)))
            good = r.status_code == 200 and json_or_none(r.json()["choices"][0]["message"]["content"]) == {"ok": True}
            return "" if good else "no structured output"
        if feature == "tokenize":
            return "" if self.tokenize("a b") else "no /tokenize"
        if feature == "key":
            return "" if self.key else "no --api-key given"
        if feature == "ignore_eos":
            r = self.post("/v1/chat/completions", self.body(max_tokens=40, ignore_eos=True))
            return "" if r.status_code == 200 and r.json()["usage"]["completion_tokens"] == 40 else "no ignore_eos"
        raise ValueError(feature)

    def tokenize(self, text, special=True):
        """Token ids, by vLLM's form (prompt) or llama.cpp's (content); None where there is neither."""
        for body in ({"model": self.model, "prompt": text, "add_special_tokens": special},
                     {"content": text, "add_special": special}):
            r = self.post("/tokenize", body)
            if r.status_code == 200 and r.json().get("tokens"):
                return r.json()["tokens"]
        return None


def schema_format(schema, name="answer"):
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def json_or_none(text):
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


_SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+([^\s]+)(?:\s+\d+)?$')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def parse_metrics(text):
    out = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        m = _SAMPLE.match(line)
        assert m, f"not a Prometheus sample: {line[:100]!r}"
        out[(m[1], tuple(sorted(_LABEL.findall(m[2] or ""))))] = float(m[3])
    return out


def in_parallel(functions):
    """Runs them at once; their results in order, or the first error."""
    results, errors = [None] * len(functions), []

    def run(i):
        try:
            results[i] = functions[i]()
        except BaseException as e:  # noqa: BLE001
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return results


def main(argv=None, doc=""):
    p = argparse.ArgumentParser(description=doc)
    p.add_argument("--url", required=True, help="base URL, with or without /v1")
    p.add_argument("--model", help="model name; the first of /v1/models unless given")
    p.add_argument("--api-key", help="key to send; needed for the cases auth.*")
    p.add_argument("--only", action="append", default=[], help="run only cases that match this pattern (repeatable)")
    p.add_argument("--skip", action="append", default=[], help="leave out cases that match this pattern (repeatable)")
    p.add_argument("--level", action="append", choices=LEVELS, help="run only cases of this level (repeatable)")
    p.add_argument("--known", help="file with the names of cases that are expected to fail, one a line, # comments")
    p.add_argument("--ctx", type=int, default=0, help="context length, where the server does not tell it")
    p.add_argument("--timeout", type=float, default=60, help="seconds for a request")
    p.add_argument("--prompt", default="Count from 7 to 12.", help="user message; any text the model answers with several tokens")
    p.add_argument("--other-prompts", nargs="*", default=["What is 123 + 456?", 'Spell "garden" backwards.', "Which is larger, 47 or 85?",
                   "Count from 3 to 9.", "What is 900 - 1?", "Who are you?", "hello hello hello", "Naïve café: 漢字 😀"])
    p.add_argument("--json", help="write the results to this file")
    p.add_argument("--list", action="store_true", help="only list the cases")
    p.add_argument("-v", "--verbose", action="store_true", help="print tracebacks")
    args = p.parse_args(argv)
    if args.list:
        for name, level, needs, f in CASES:
            print(f"{name:34} {level:7} {(f.__doc__ or '').strip().splitlines()[0]}")
        return 0
    known = set()
    if args.known:
        known = {line.split("#")[0].strip() for line in open(args.known)} - {""}
    context = Context(args)
    try:
        data = context.http.get(context.v1 + "/models").json()["data"]
        context.model = args.model or data[0]["id"]
    except Exception as e:  # noqa: BLE001
        print(f"error: no models at {context.v1}/models: {e!r}", file=sys.stderr)
        return 2
    results = []
    for name, level, needs, function in CASES:
        if args.only and not any(fnmatch.fnmatch(name, x) for x in args.only):
            continue
        if any(fnmatch.fnmatch(name, x) for x in args.skip) or (args.level and level not in args.level):
            continue
        start, why, state = time.monotonic(), "", "pass"
        try:
            for feature in needs:
                context.need(feature)
            function(context)
        except Skip as e:
            state, why = "skip", str(e)
        except Exception as e:  # noqa: BLE001
            state = "known" if name in known else "fail"
            why = (str(e) or repr(e)).strip().replace("\n", " ")[:400]
            if not isinstance(e, AssertionError):
                why = f"{type(e).__name__}: {why}"
            if args.verbose:
                traceback.print_exc()
        took = time.monotonic() - start
        if state == "pass" and name in known:
            why = "listed as known to fail, and passes"
        print(f"{state:5} {name:34} {took:6.2f} s  {why}", flush=True)
        results.append({"name": name, "level": level, "state": state, "seconds": round(took, 3), "reason": why})
    count = {s: sum(r["state"] == s for r in results) for s in ("pass", "fail", "known", "skip")}
    if context.dropped:
        print(f"note: {context.dropped} times the server closed a kept connection without announcing it")
    print(f"{count['pass']} passed, {count['fail']} failed, {count['known']} known to fail, {count['skip']} skipped")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"url": args.url, "model": context.model, "counts": count, "cases": results}, f, indent=1)
    return 1 if count["fail"] else 0
