#!/usr/bin/env python3
"""More cases of the kinds of conformance.py: other fields, values, orders and endpoints, for `bitnet serve` alone (level `ours` all).

    python neighbours.py --url http://127.0.0.1:8080 [--api-key KEY]
"""

import http.client
import json
import math
import sys
import time
import urllib.parse

from conformance import CHAT, CITY, TEXT, TOOL, TOOL2, _check_call, check_city, check_usage
from kit import CASES, in_parallel, json_or_none, main, schema_format
from kit import case as case_of_any

CASES.clear()


def case(name, needs=()):
    return case_of_any(name, "ours", needs)


def whole(c, **kw):
    return c.chat(**kw)["choices"][0]


# Paths and methods


@case("paths.head")
def _(c):
    """HEAD wherever GET, without a body"""
    for path in ("/health", "/v1/health", "/readyz", "/livez", "/ping", "/v1/models", "/metrics", "/version", "/props", "/slots", "/", "/openapi.json", "/v1/models/" + c.model):
        r = c.http.head(c.url + path)
        assert r.status_code == 200 and not r.content, (path, r.status_code)


@case("paths.methods")
def _(c):
    """a wrong method is 405 with Allow, on every path"""
    for path, allowed in ((CHAT, "POST"), (TEXT, "POST"), ("/v1/models", "GET"), ("/health", "GET"), ("/tokenize", "POST"), ("/detokenize", "POST"), ("/apply-template", "POST"), ("/metrics", "GET"), ("/v1/embeddings", "POST"), ("/slots", "GET"), ("/", "GET"), ("/v1/models/" + c.model, "GET")):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            if method != allowed:
                r = c.http.request(method, c.url + path)
                c.error(r, 405)
                assert allowed in r.headers.get("allow", "") and r.json()["error"]["code"] == "method_not_allowed", (method, path, r.headers.get("allow"))


@case("paths.unknown")
def _(c):
    """paths that are not built are 404 with an error object, with and without a body"""
    for path in ("/chat/completions", "/completions", "/models", "/v1", "/v1/", "/v1/responses", "/v1/messages", "/v1/rerank", "/v1/chat", "/v1/chat/completions/x", "/v2/models", "/health/x", "/v1/tokenize", "/index.html", "/favicon.ico2", "/v1/audio/speech"):
        for send in (lambda u: c.http.get(u), lambda u: c.http.post(u, json=c.body())):
            e = c.error(send(c.url + path), 404)
            assert e["code"] == "not_found", (path, e)


@case("paths.model_names")
def _(c):
    """ids that need escapes are the same model, and queries are ignored"""
    for name in (urllib.parse.quote(c.model, safe=""), c.model, "".join(f"%{b:02x}" for b in c.model.encode())):
        assert c.ok(c.http.get(c.v1 + "/models/" + name))["id"] == c.model
    assert c.ok(c.http.get(c.v1 + "/models?limit=1"))["data"]
    for name in ("x/y", "x%2Fy", c.model + "x", "%ff", "..%2f"):
        assert c.error(c.http.get(c.v1 + "/models/" + name), 404)["code"] in ("model_not_found", "not_found")


@case("paths.embeddings")
def _(c):
    """embeddings are 501 with an error object"""
    assert c.error(c.post("/v1/embeddings", {"model": c.model, "input": "x"}), 501)["code"] == "not_supported"


@case("cors.others")
def _(c):
    """other origins get no header, local ones of every form do, and caches are told"""
    for origin, granted in (("http://127.0.0.1:5173", True), ("http://[::1]:80", True), ("https://localhost", True), ("https://evil.example", False), ("http://localhost.evil.example", False), ("null", False)):
        for r in (c.plain.options(c.url + TEXT, headers={"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-lang,x-request-id"}), c.http.get(c.v1 + "/models", headers={"Origin": origin}), c.http.get(c.url + "/nothing", headers={"Origin": origin})):
            got = r.headers.get("access-control-allow-origin")
            assert got == (origin if granted else None), (origin, got, r.status_code)
            assert not granted or "origin" in r.headers.get("vary", "").lower(), r.headers
            assert "access-control-allow-credentials" not in r.headers


@case("auth.forms", ["key"])
def _(c):
    """both headers carry a key; every path that needs one says so; the others need none"""
    for headers in ({"api-key": c.key}, {"Authorization": "Bearer " + c.key}, {"Authorization": "bearer " + c.key}):
        assert c.plain.get(c.v1 + "/models", headers=headers).status_code == 200, headers
    for headers in ({"api-key": "x"}, {"Authorization": c.key}, {"Authorization": "Basic " + c.key}, {"Authorization": "Bearer " + c.key + "x"}, {"Authorization": "Bearer " + c.key.upper()}, {"x-api-key-": c.key}):
        r = c.plain.get(c.v1 + "/models", headers=headers)
        assert c.error(r, 401)["code"] == "invalid_api_key" and r.headers["www-authenticate"].startswith("Bearer"), headers
    for path in ("/tokenize", "/detokenize", "/apply-template", "/v1/embeddings", CHAT, TEXT):
        c.error(c.plain.post(c.url + path, json={}), 401)
    for path in ("/props", "/slots", "/v1/models/x"):
        c.error(c.plain.get(c.url + path), 401)
    for path in ("/health", "/v1/health", "/livez", "/readyz", "/ping", "/version", "/metrics", "/", "/openapi.json"):
        assert c.plain.get(c.url + path).status_code == 200, path


@case("headers.request_id")
def _(c):
    """every answer has an id, errors and streams too"""
    for r in (c.post(CHAT, c.body(messages=5)), c.http.get(c.url + "/nothing"), c.http.get(c.url + CHAT), c.http.post(c.url + CHAT, content="x"), c.stream(body=c.body(max_tokens=2)).response, c.http.get(c.url + "/metrics")):
        assert r.headers.get("x-request-id"), (r.status_code, r.headers)
    r = c.stream(client=None, body=c.body(max_tokens=2)).response
    assert r.headers["content-type"] == "text/event-stream; charset=utf-8" and r.headers["cache-control"] == "no-cache", r.headers


@case("headers.keep_alive")
def _(c):
    """one connection outlives answers of every status"""
    url = urllib.parse.urlsplit(c.url)
    conn = http.client.HTTPConnection(url.hostname, url.port, timeout=c.timeout)
    conn.connect()
    port = conn.sock.getsockname()[1]
    key = {"Authorization": f"Bearer {c.key}"} if c.key else {}
    json_type = {"Content-Type": "application/json"}
    for method, path, body, headers, status in (
        ("POST", CHAT, json.dumps(c.body(max_tokens=2)), json_type, 200), ("GET", CHAT, None, {}, 405), ("POST", CHAT, "x", {}, 415), ("POST", CHAT, "x", json_type, 400), ("GET", "/no", None, {}, 404), ("POST", "/no", "{}" * 1000, json_type, 404),
        ("POST", CHAT, json.dumps(c.body(user="x" * 5_000_000)), json_type, 413), ("POST", TEXT, json.dumps(c.text_body(max_tokens=2, stream=True)), json_type, 200), ("HEAD", "/health", None, {}, 200), ("POST", CHAT, json.dumps(c.body(model="no")), json_type, 404), ("POST", "/v1/embeddings", "{}", json_type, 501), ("GET", "/health", None, {}, 200)):
        conn.request(method, path, body, headers | key)
        r = conn.getresponse()
        r.read()
        assert r.status == status and r.getheader("connection") != "close", (method, path, r.status, r.getheader("connection"))
        assert conn.sock is not None and conn.sock.getsockname()[1] == port, "another connection"
    conn.close()


# Errors


@case("error.text")
def _(c):
    """the errors of chats are those of completions too, and name the field"""
    for field, bad in (("prompt", ...), ("prompt", 5), ("prompt", []), ("max_tokens", "ten"), ("max_tokens", -1), ("max_tokens", 2.5), ("temperature", 101), ("temperature", "x"), ("top_p", 0), ("top_p", 2), ("top_k", -2), ("min_p", -1), ("n", 0), ("n", 17), ("stop", ""), ("stop", [""]), ("stop", ["x"] * 17), ("stop", [None]),
                       ("seed", 1.5), ("seed", "x"), ("logprobs", 21), ("logprobs", -1), ("presence_penalty", 3), ("frequency_penalty", -3), ("repetition_penalty", 0), ("logit_bias", {"x": 1}), ("logit_bias", 5), ("echo", "yes"), ("stream", 1), ("suffix", "x"), ("best_of", 3), ("stop_token_ids", ["x"]), ("stop_token_ids", [10**9]),
                       ("min_tokens", -1), ("ignore_eos", "x"), ("user", ...)):
        r = c.post(TEXT, c.text_body(**{field: bad}))
        if field == "user":
            assert r.status_code == 200
        else:
            assert r.status_code == 400, f"{field}={bad!r}: {r.status_code}"
            got = c.error(r, 400)["param"]
            assert got and got.split("[")[0].split(".")[0] == field, f"{field}={bad!r}: param {got!r}"


@case("error.chat_params")
def _(c):
    """every field of a chat is named where it is wrong"""
    for field, bad in (("max_tokens", True), ("max_completion_tokens", 0), ("temperature", -0.1), ("temperature", [1]), ("top_p", 1.01), ("top_k", "x"), ("top_k", 1.5), ("min_p", 2), ("n", 1.5), ("n", [1]), ("seed", 2**70), ("stop", {"a": 1}), ("stop", "x" * 257), ("logprobs", 1), ("logprobs", "true"), ("top_logprobs", 3), ("stream", "true"),
                       ("response_format", "json"), ("response_format", {"type": 5}), ("tools", "x"), ("tools", [{"type": "function"}]), ("tool_choice", "sometimes"), ("parallel_tool_calls", "x"), ("logit_bias", {"5": 101}), ("messages", {}), ("chat_template", "{{x}}"), ("chat_template_kwargs", []), ("add_generation_prompt", "x"), ("priority", "x"), ("model", 5), ("echo", True)):
        r = c.post(CHAT, c.body(**({"logprobs": ...} if field == "top_logprobs" else {}) | {field: bad}))
        e = c.error(r, 400)
        assert e["param"] and e["param"].split("[")[0].split(".")[0] == field, f"{field}={bad!r}: {e}"
        assert e["type"] == "invalid_request_error", e


@case("error.parts")
def _(c):
    """errors inside of messages name the place"""
    m = c.messages()[0]
    for i, bad in ((0, m | {"content": 5}), (1, m | {"role": "x"}), (2, m | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}), (1, m | {"content": None}), (0, {"role": "user"}), (2, 5)):
        messages = [m] * 3
        messages[i] = bad
        assert c.error(c.post(CHAT, c.body(messages=messages)), 400)["param"].startswith(f"messages[{i}]"), bad


@case("error.model_first")
def _(c):
    """an unknown model is 404 on every endpoint that takes one, an absent or null one is the served one"""
    for path, body in ((CHAT, c.body()), (TEXT, c.text_body()), ("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        assert c.error(c.post(path, body | {"model": "nosuch"}), 404)["code"] == "model_not_found", path
        for model in ({"model": None}, {}):
            assert c.post(path, {k: v for k, v in body.items() if k != "model"} | model).status_code == 200, path


@case("error.streams")
def _(c):
    """what is wrong with a streamed request is a plain error, whatever it is"""
    for kw in ({"temperature": "x"}, {"n": 99}, {"response_format": schema_format({"type": "nosuch"})}, {"structured_outputs": {"regex": "(("}}, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, {"messages": c.messages("a b c " * 3000)}, {"logit_bias": {"x": 1}}, {"stop": ""}):
        c.error(c.post(CHAT, c.body(stream=True, **kw)), 400)
    c.error(c.post(CHAT, c.body(stream=True, model="no")), 404)


@case("error.context_both")
def _(c):
    """a prompt of one token too many is refused with both numbers; one that just fits is answered; more tokens than fit are cut"""
    ctx = c.ctx()
    for path, ask in ((TEXT, lambda n, **kw: c.text_body(prompt=[66] * n, **kw)),):
        e = c.error(c.post(path, ask(ctx + 1)), 400, code="context_length_exceeded")
        assert e["n_prompt_tokens"] == ctx + 1 and e["n_ctx"] == ctx and str(ctx) in e["message"], e
        r = c.ok(c.post(path, ask(ctx - 5, max_tokens=10**9, ignore_eos=True)))
        assert r["choices"][0]["finish_reason"] == "length" and r["usage"]["total_tokens"] == ctx, r["usage"]


# Fields


@case("chat.nulls_everywhere")
def _(c):
    """null is as if absent for every field of the description, on both endpoints"""
    api = c.http.get(c.url + "/openapi.json").json()
    for path, body in ((CHAT, c.body(max_tokens=24)), (TEXT, c.text_body())):
        schema = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = api["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        nulls = {name: None for name in schema["properties"] if name not in body}
        assert len(nulls) > 20
        assert c.ok(c.post(path, body | nulls))["choices"][0] == c.ok(c.post(path, body))["choices"][0], path


@case("chat.order")
def _(c):
    """the order of fields does not matter, and neither do numbers written otherwise"""
    body = c.body(max_tokens=24)
    want = c.ok(c.post(CHAT, body))["choices"][0]
    assert c.ok(c.post(CHAT, dict(reversed(body.items()))))["choices"][0] == want
    for text in ('"max_tokens": 24.0', '"max_tokens": 2.4e1', '"max_tokens": 99, "max_completion_tokens": 24'):
        raw = json.dumps(body).replace('"max_tokens": 24', text)
        assert c.ok(c.http.post(c.url + CHAT, content=raw, headers={"Content-Type": "application/json"}))["choices"][0] == want, text


@case("chat.small_temperatures")
def _(c):
    """temperatures below 1e-5 are greedy, and so is top_k 1"""
    want = c.greedy()[0]
    for kw in ({"temperature": 1e-6}, {"temperature": -0.0}, {"temperature": 100, "top_k": 1}, {"temperature": 0, "top_p": 0.1, "top_k": 5, "min_p": 0.5, "seed": 3}):
        assert whole(c, max_tokens=24, **kw)["message"]["content"] == want, kw


@case("chat.seeds")
def _(c):
    """choices of n have streams of their own; a seed repeats them one by one and in a stream; other seeds differ"""
    bias = {str(i): 100 for i in range(40, 90)}
    ask = lambda **kw: [x["message"]["content"] for x in c.chat(temperature=2, logit_bias=bias, max_tokens=16, **kw)["choices"]]  # noqa: E731
    three = ask(seed=5, n=3)
    assert len(set(three)) == 3 and ask(seed=5, n=3) == three and ask(seed=5)[0] == three[0]
    s = c.stream(body=c.body(temperature=2, logit_bias=bias, max_tokens=16, seed=5, n=3))
    assert [s.text(i) for i in range(3)] == three
    assert len({ask(seed=x)[0] for x in (-(2**63), -1, 0, 1, 2**62, 2**64 - 2)}) == 6
    assert len({ask()[0] for _ in range(3)}) > 1, "without a seed three samples are one"


@case("chat.stop_reason")
def _(c):
    """stop_reason says which string or id ended it, and null where the model did"""
    text = c.greedy()[0]
    stop = next(x for x in text[1:] if x not in ("\ufffd", text[0]))
    r = whole(c, max_tokens=24, stop=["never", stop])
    assert r["stop_reason"] == stop and r["finish_reason"] == "stop", r
    r = whole(c, max_tokens=24, stop=[stop], include_stop_str_in_output=True)
    assert r["message"]["content"].endswith(stop), r
    ids = c.chat(max_tokens=5, return_token_ids=True)["choices"][0]["token_ids"]
    r = whole(c, max_tokens=24, stop_token_ids=[ids[2]])
    assert r["stop_reason"] == ids[2] and r["finish_reason"] == "stop", r
    r = c.chat(max_tokens=24, stop=stop, n=2)
    assert all(x["stop_reason"] == stop for x in r["choices"])


@case("chat.min_tokens")
def _(c):
    """min_tokens holds back stop ids too, and not more than max_tokens can be asked for"""
    ids = c.chat(max_tokens=5, return_token_ids=True)["choices"][0]["token_ids"]
    r = c.chat(max_tokens=10, min_tokens=8, stop_token_ids=ids[:2])
    assert r["usage"]["completion_tokens"] >= 8, r["usage"]


@case("chat.bias")
def _(c):
    """-100 forbids exactly, also for constrained answers; keys may be of any order"""
    best = whole(c, max_tokens=1, logprobs=True, top_logprobs=3)["logprobs"]["content"][0]["top_logprobs"]
    ids = [c.tokenize(t["token"], False) for t in best]
    if all(i and len(i) == 1 for i in ids):
        r = whole(c, max_tokens=1, logprobs=True, logit_bias={str(ids[0][0]): -100})["logprobs"]["content"][0]
        assert r["token"] == best[1]["token"], (r, best)


@case("chat.prefill")
def _(c):
    """continue_final_message goes on with the assistant's text"""
    text = c.greedy()[0]
    m = [*c.messages(), {"role": "assistant", "content": text[:5]}]
    r = c.chat(messages=m, max_tokens=24, continue_final_message=True, add_generation_prompt=False)["choices"][0]
    assert text.startswith(text[:5] + r["message"]["content"][:1]) or r["message"]["content"] == "", (text, r)
    c.refused(messages=m, continue_final_message=True, add_generation_prompt=True)


# Streams


@case("stream.text_usage")
def _(c):
    """usage in streams of completions, of several prompts and choices, is that of the whole answer"""
    body = c.text_body(prompt=[c.prompt, "abc"], n=2, max_tokens=5)
    s = c.stream(TEXT, body | {"stream_options": {"include_usage": True}})
    want = c.ok(c.post(TEXT, body))
    assert s.chunks[-1]["choices"] == [] and s.usage() | {"prompt_tokens_details": 0} == want["usage"] | {"prompt_tokens_details": 0}, (s.usage(), want["usage"])
    assert [s.text(i) for i in range(4)] == [x["text"] for x in want["choices"]]
    assert [s.finish(i) for i in range(4)] == [x["finish_reason"] for x in want["choices"]]


@case("stream.echo")
def _(c):
    """echo and its log-probabilities in a stream are those of the whole answer"""
    body = c.text_body(echo=True, logprobs=2, max_tokens=5)
    want, s = c.ok(c.post(TEXT, body))["choices"][0], c.stream(TEXT, body)
    assert s.text() == want["text"]
    for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        got = [v for x in s.chunks for ch in x["choices"] for v in (ch.get("logprobs") or {}).get(key) or []]
        assert got == want["logprobs"][key], key


@case("stream.n_logprobs")
def _(c):
    """with n and logprobs each choice has its own entries, and their tokens are its text"""
    s = c.stream(body=c.body(n=2, max_tokens=8, logprobs=True, top_logprobs=1))
    for i in range(2):
        entries = [e for x in s.chunks for ch in x["choices"] if ch["index"] == i for e in (ch.get("logprobs") or {}).get("content") or []]
        raw = b"".join(bytes(e["bytes"] or []) for e in entries).decode("utf-8", "replace")
        assert raw.startswith(s.text(i)) and len(entries) <= 8, (raw, s.text(i))


@case("stream.options")
def _(c):
    """unknown stream options are ignored, null ones absent, wrong ones refused"""
    for options in ({}, {"include_usage": None}, {"include_usage": False, "x": 1}, {"include_obfuscation": False}, {"continuous_usage_stats": False}):
        assert not c.stream(body=c.body(stream_options=options)).usage(), options
    for options in ({"include_usage": "yes"}, {"include_usage": 1}, [], "x"):
        c.error(c.post(CHAT, c.body(stream=True, stream_options=options)), 400)


@case("stream.one_token")
def _(c):
    """streams of one token, and of none that is shown, have a role, a reason and an end"""
    for kw in ({"max_tokens": 1}, {"stop": [c.greedy()[0][0]]} if c.greedy()[0][:1] not in ("", "\ufffd") else {}):
        s = c.stream(body=c.body(**kw))
        assert s.chunks[0]["choices"][0]["delta"]["role"] == "assistant" and s.finish() in ("stop", "length")
    s = c.stream(TEXT, c.text_body(max_tokens=1))
    assert all("delta" not in ch and isinstance(ch["text"], str) for x in s.chunks for ch in x["choices"])


@case("stream.token_ids")
def _(c):
    """token ids of a stream are those of the whole answer, in both endpoints"""
    for path, body in ((CHAT, c.body(max_tokens=6, return_token_ids=True)), (TEXT, c.text_body(max_tokens=6, return_token_ids=True))):
        want = c.ok(c.post(path, body))["choices"][0]["token_ids"]
        got = [t for x in c.stream(path, body).chunks for ch in x["choices"] for t in ch.get("token_ids") or []]
        assert got == want, (path, got, want)


@case("cancel.kinds", ["metrics", "ignore_eos"])
def _(c):
    """completions, several choices, constrained and logged answers stop with their clients as well"""
    c.wait_idle(10)
    long = c.long_body()["max_tokens"]
    for path, body in ((TEXT, c.text_body(max_tokens=long, ignore_eos=True)), (CHAT, c.long_body(logprobs=True, top_logprobs=5)), (TEXT, c.text_body(prompt=[c.prompt, "abc"], n=2, max_tokens=long, ignore_eos=True)), (CHAT, c.body(max_tokens=long, structured_outputs={"regex": "(a|b){900}"}))):
        before = c.gauge("bitnet_requests_aborted_total")
        with c.open_stream(body, path):
            pass
        c.wait_idle()
        end = time.monotonic() + 3
        while c.gauge("bitnet_requests_aborted_total") == before and time.monotonic() < end:
            time.sleep(0.05)
        assert c.gauge("bitnet_requests_aborted_total") == before + 1, path


# Log-probabilities


@case("logprobs.twenty")
def _(c):
    """twenty alternatives of every token, each text with its bytes, the end token too"""
    r = c.chat(logprobs=True, top_logprobs=20, max_tokens=40)
    entries = r["choices"][0]["logprobs"]["content"]
    assert len(entries) == r["usage"]["completion_tokens"]
    for e in entries:
        assert len(e["top_logprobs"]) == 20 and all(math.isfinite(t["logprob"]) and t["bytes"] is not None for t in e["top_logprobs"]), e
        assert len({tuple(t["bytes"]) for t in e["top_logprobs"]} | {t["token"] for t in e["top_logprobs"]}) > 1


@case("logprobs.same")
def _(c):
    """the same number of alternatives or none, a stream, a batch, a sample: the same log-probabilities"""
    of = lambda r: [e["logprob"] for e in r["choices"][0]["logprobs"]["content"]]  # noqa: E731
    want = of(c.chat(logprobs=True, max_tokens=10))
    assert of(c.chat(logprobs=True, top_logprobs=7, max_tokens=10)) == want
    got = in_parallel([lambda: of(c.chat(logprobs=True, top_logprobs=1, max_tokens=10))] * 6)
    assert got == [want] * 6
    one = c.chat(logprobs=True, max_tokens=3, temperature=5, seed=1)["choices"][0]["logprobs"]["content"][0]
    top = c.chat(logprobs=True, top_logprobs=20, max_tokens=1)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    same = [t["logprob"] for t in top if t["bytes"] == one["bytes"]]
    assert not same or abs(same[0] - one["logprob"]) < 1e-6, "temperature changes log-probabilities"


@case("logprobs.score")
def _(c):
    """scores of a text are the same alone, beside others, by ids, and those that its tokens had when they were made"""
    ids = c.tokenize(c.prompt + " 7, 8, 9")
    score = lambda p: c.text(prompt=p, echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]["token_logprobs"]  # noqa: E731
    want = score(ids)
    both = c.text(prompt=[[ids[0]], ids], echo=True, logprobs=0, max_tokens=0)["choices"]
    assert both[1]["logprobs"]["token_logprobs"] == want and len(both[0]["logprobs"]["tokens"]) == 1
    made = c.text(prompt=ids[:5], max_tokens=4, logprobs=0, return_token_ids=True)["choices"][0]
    again = score(ids[:5] + made["token_ids"])
    assert all(abs(a - b) < 1e-4 for a, b in zip(again[5:], made["logprobs"]["token_logprobs"])), (again, made)


# Structure


@case("schema.text_endpoint")
def _(c):
    """completions obey schemas and patterns too"""
    for kw in ({"response_format": schema_format(CITY)}, {"guided_json": CITY}, {"json_schema": CITY}, {"structured_outputs": {"json": CITY}}, {"guided_json": json.dumps(CITY)}):
        r = c.text(max_tokens=100, **kw)["choices"][0]
        check_city(r["text"])
        assert r["finish_reason"] == "stop", kw


@case("structured.aliases")
def _(c):
    """every name of a pattern, a choice and a grammar, in streams and with n"""
    for kw, fits in (({"guided_regex": "[0-9]{4}"}, lambda t: len(t) == 4 and t.isdigit()), ({"guided_choice": ["red", "green"]}, lambda t: t in ("red", "green")), ({"structured_outputs": {"choice": ["a", "ab", "abc"]}}, lambda t: t in ("a", "ab", "abc")),
                     ({"grammar": 'root ::= "x" [0-9] [0-9]?'}, lambda t: t[0] == "x" and t[1:].isdigit()), ({"guided_grammar": 'start: "y" /[ab]{2}/'}, lambda t: t in ("yaa", "yab", "yba", "ybb")), ({"structured_outputs": {"grammar": 'root ::= "é" | "漢字"'}}, lambda t: t in ("é", "漢字")), ({"structured_outputs": {"json_object": True}, "max_tokens": 9}, lambda t: t.lstrip()[:1] == "{")):
        body = c.body(max_tokens=40, n=2, temperature=1, seed=4) | kw
        r = c.ok(c.post(CHAT, body))["choices"]
        s = c.stream(body=body)
        for i in range(2):
            assert fits(r[i]["message"]["content"]) and s.text(i) == r[i]["message"]["content"], (kw, r[i], s.text(i))


@case("schema.more")
def _(c):
    """bounds, lengths, enums of every kind, empty objects and lists, integers as numbers, patterns of names"""
    for schema, fits in (
        ({"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 3}, "minItems": 3, "maxItems": 3}, lambda v: len(v) == 3 and all(-3 <= x <= 3 for x in v)), ({"type": "string", "minLength": 3, "maxLength": 5}, lambda v: 3 <= len(v) <= 5), ({"enum": [1, "a", None, True, [2]]}, lambda v: v in (1, "a", None, True, [2])),
        ({"type": "object", "properties": {}, "additionalProperties": False}, lambda v: v == {}), ({"type": "array", "items": False}, lambda v: v == []), ({"type": ["null", "boolean"]}, lambda v: v in (None, True, False)), ({"const": {"a": [1, {"b": "c"}]}}, lambda v: v == {"a": [1, {"b": "c"}]}),
        ({"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 20}, lambda v: v in (10, 15, 20)), ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25}, lambda v: v in (0.25, 0.5, 0.75)), ({"type": "array", "prefixItems": [{"const": "a"}, {"type": "boolean"}], "items": False, "minItems": 2}, lambda v: v[0] == "a" and len(v) == 2),
        ({"oneOf": [{"const": "p"}, {"const": "q"}]}, lambda v: v in ("p", "q")), ({"allOf": [{"type": "integer", "minimum": 4}, {"maximum": 5}]}, lambda v: v in (4, 5)), ({"type": "string", "format": "date"}, lambda v: len(v) == 10 and v[4] == v[7] == "-"), ({"type": "object", "patternProperties": {"^k[0-9]$": {"type": "integer", "minimum": 1, "maximum": 2}}, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}, lambda v: len(v) == 1),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"enum": ["only"]}}}, lambda v: v == "only"),
    ):
        for seed in range(2):
            r = whole(c, max_tokens=300, temperature=1, seed=seed, response_format=schema_format(schema))
            if r["finish_reason"] == "length":
                continue
            assert fits(json.loads(r["message"]["content"])), (schema, r["message"]["content"])


# Tools


@case("tools.more")
def _(c):
    """several choices, several calls, log-probabilities, both forms of a named choice, allowed tools"""
    r = c.chat(tools=[TOOL, TOOL2], tool_choice="required", n=3, temperature=1, seed=2, max_tokens=200)["choices"]
    ids = [x["message"]["tool_calls"][0]["id"] for x in r]
    assert len(set(ids)) == 3 and all(x["finish_reason"] == "tool_calls" for x in r), r
    for x in r:
        call = x["message"]["tool_calls"][0]
        _check_call(call, call["function"]["name"])
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}}
    for choice in ({"type": "function", "function": {"name": "get_time"}}, allowed):
        _check_call(whole(c, tools=[TOOL, TOOL2], tool_choice=choice, max_tokens=200)["message"]["tool_calls"][0], "get_time")
    s = c.stream(body=c.body(tools=[TOOL, TOOL2], tool_choice={"type": "function", "function": {"name": "get_time"}}, max_tokens=200, stream_options={"include_usage": True}))
    assert s.finish() == "tool_calls" and s.usage()["completion_tokens"] > 0
    first = next(t for x in s.chunks for ch in x["choices"] for t in ch["delta"].get("tool_calls") or [])
    assert first["index"] == 0 and first["id"].startswith("call_") and len(first["id"]) == 29 and first["function"] == {"name": "get_time", "arguments": ""}, first
    r = whole(c, tools=[TOOL], tool_choice="required", max_tokens=200, parallel_tool_calls=True)
    assert r["message"]["content"] is None and all(json_or_none(t["function"]["arguments"]) for t in r["message"]["tool_calls"]) or r["finish_reason"] == "length", r


@case("tools.cut")
def _(c):
    """arguments that are cut end with length; a choice of none streams text"""
    r = whole(c, tools=[TOOL], tool_choice="required", max_tokens=12)
    assert r["finish_reason"] == "length", r
    s = c.stream(body=c.body(tools=[TOOL], tool_choice="none", max_tokens=12))
    assert s.finish() in ("stop", "length") and not any(ch["delta"].get("tool_calls") for x in s.chunks for ch in x["choices"])


@case("tools.histories")
def _(c):
    """histories of several calls, of results as parts, of text beside calls, without tools in the request"""
    call = lambda i: {"id": f"call_{i}", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome", "days": 1}'}}  # noqa: E731
    result = lambda i: {"role": "tool", "tool_call_id": f"call_{i}", "content": [{"type": "text", "text": "sunny"}]}  # noqa: E731
    user = c.messages()[0]
    for extra in ({"tools": [TOOL]}, {}):
        for messages in ([user, {"role": "assistant", "content": None, "tool_calls": [call(1), call(2)]}, result(1), result(2)], [user, {"role": "assistant", "content": "I look.", "tool_calls": [call(1)]}, result(1), user], [user, {"role": "assistant", "tool_calls": [call(1)]}, result(1)], [user, {"role": "assistant", "content": "", "tool_calls": [call(1)], "refusal": None, "audio": None, "function_call": None, "annotations": []}, result(1)]):
            check_usage(c.chat(messages=messages, **extra)["usage"])


@case("tools.bad_more")
def _(c):
    """duplicate names, broken schemas, a named tool without tools: 400"""
    c.refused(tools=[TOOL, TOOL])
    c.refused(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "nosuch"}}}], tool_choice="required")
    c.refused(tool_choice={"type": "function", "function": {"name": "get_weather"}})
    c.refused(tools=[], tool_choice="required")
    c.refused(tools=[{"type": "function", "function": {"parameters": {}}}])


# Tokens


@case("tokenize.more")
def _(c):
    """pieces, special tokens, chats with tools, ids out of range, and what is missing"""
    r = c.ok(c.post("/tokenize", {"content": "a é 😀", "with_pieces": True}))["tokens"]
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in r)
    assert raw.decode() == "a é 😀" and all(isinstance(p["id"], int) for p in r), r
    with_bos, without = (c.ok(c.post("/tokenize", {"prompt": "abc", "add_special_tokens": x}))["tokens"] for x in (True, False))
    assert with_bos[-len(without):] == without
    one = c.ok(c.post("/tokenize", {"messages": c.messages()}))["count"]
    assert c.ok(c.post("/tokenize", {"messages": c.messages(), "tools": [TOOL]}))["count"] > one > c.ok(c.post("/tokenize", {"messages": c.messages(), "add_generation_prompt": False}))["count"]
    for path, bad in (("/tokenize", {}), ("/tokenize", {"prompt": 5}), ("/tokenize", {"messages": []}), ("/detokenize", {}), ("/detokenize", {"tokens": "x"}), ("/detokenize", {"tokens": [10**9]}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [1.5]}), ("/apply-template", {}), ("/apply-template", {"messages": [{"role": "x", "content": "y"}]})):
        c.error(c.post(path, bad), 400)
    assert c.ok(c.post("/detokenize", {"tokens": []})) ["prompt"] == ""
    assert c.ok(c.post("/tokenize", {"prompt": ""}))["count"] <= 1


# Metrics


@case("metrics.classes", ["metrics"])
def _(c):
    """refused requests are no successes, and every success has its reason"""
    name = "vllm:request_success_total"
    total = lambda **kw: sum(v for (n, l), v in c.metrics().items() if n == name and set(kw.items()) <= set(l))  # noqa: E731
    before = total(), total(finished_reason="length"), c.gauge("bitnet_requests_rejected_total") if any(n == "bitnet_requests_rejected_total" for n, _ in c.metrics()) else 0
    c.refused(temperature=-1)
    c.chat(max_tokens=2, ignore_eos=True)
    c.stream(body=c.body(max_tokens=2, ignore_eos=True, n=2))
    assert (total(), total(finished_reason="length")) == (before[0] + 2, before[1] + 2), (before, total())
    assert c.gauge("bitnet_requests_rejected_total") == before[2] + 1
    text = c.http.get(c.url + "/metrics").text
    names = {n for n, _ in c.metrics()}
    for n in names:
        base = n.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert f"# TYPE {base} " in text or f"# TYPE {n} " in text, n
    assert not any("http" in l or c.prompt in l for line in text.splitlines() for l in [line] if not line.startswith("#"))


# Many at once


@case("batch.mixed")
def _(c):
    """chats, completions, schemas, tools, samples, scores and streams beside each other are each as alone"""
    asks = [lambda: whole(c, max_tokens=20), lambda: c.text(max_tokens=20)["choices"][0], lambda: whole(c, max_tokens=80, response_format=schema_format(CITY)), lambda: whole(c, temperature=1, seed=9, n=2, max_tokens=20),
            lambda: c.text(prompt="1 + 1 = 2", echo=True, logprobs=1, max_tokens=0)["choices"][0], lambda: c.stream(body=c.body(max_tokens=20, stop=[","])).text(), lambda: whole(c, max_tokens=12, logprobs=True, top_logprobs=3), lambda: json_or_none(whole(c, tools=[TOOL], tool_choice="required", max_tokens=200)["message"]["tool_calls"][0]["function"]["arguments"]),
            lambda: whole(c, max_tokens=20, repetition_penalty=1.3, frequency_penalty=1), lambda: whole(c, max_tokens=20, logit_bias={"66": 5}), lambda: whole(c, messages=c.messages("Once upon a time " * 20), max_tokens=20)]
    alone = [ask() for ask in asks]
    for _ in range(3):
        got = in_parallel(asks + asks[::-1])
        assert got == alone + alone[::-1], [(a, g) for a, g in zip(alone + alone[::-1], got) if a != g][0]


if __name__ == "__main__":
    sys.exit(main(doc=__doc__))
