#!/usr/bin/env python3
"""Conformance of an OpenAI-compatible server, case by case.

    python conformance.py --url http://127.0.0.1:8080 --model NAME [--api-key KEY]

Exit code: 0 nothing failed, 1 something failed, 2 no server. README.md tells what the levels mean.
"""

import asyncio
import base64
import json
import math
import os
import socket
import sys
import time
import urllib.parse

import httpx

from kit import Skip, case, in_parallel, json_or_none, main, schema_format

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def clean(text):
    """Without U+FFFD at the end: whether a broken character before a cut is shown is left open."""
    return text.rstrip("\ufffd")


# A small model that knows its answer gives the same one to a thousand seeds. Among these tokens it has no favourite.
UNSURE = {str(id): 100 for id in range(40, 90)}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": CITY}}
TOOL2 = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {
    "zone": {"enum": ["utc", "cet"]}}, "required": ["zone"], "additionalProperties": False}}}


def check_usage(u, choices_tokens=None):
    for k in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert isinstance(u.get(k), int), f"usage.{k} is {u.get(k)!r}"
    assert u["prompt_tokens"] > 0 and u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"], f"usage does not add up: {u}"
    if choices_tokens is not None:
        assert u["completion_tokens"] == choices_tokens, f"usage counts {u['completion_tokens']} tokens, {choices_tokens} were made"


def check_city(text):
    v = json_or_none(text)
    assert isinstance(v, dict) and set(v) == {"city", "days"}, f"not the schema: {text!r}"
    assert v["city"] in ("Rome", "Oslo") and isinstance(v["days"], int) and 1 <= v["days"] <= 7, f"not the schema: {text!r}"


# Models, health, version


@case("models.list")
def _(c):
    """/v1/models lists the served model"""
    r = c.ok(c.http.get(c.v1 + "/models"))
    assert r["object"] == "list" and r["data"], "object is not list, or data is empty"
    for m in r["data"]:
        assert m["object"] == "model" and isinstance(m["created"], int) and m["owned_by"] and m["id"], m
    assert c.model in [m["id"] for m in r["data"]], f"{c.model} is not in the list"


@case("models.retrieve", "openai")
def _(c):
    """/v1/models/{id} gives one model, with an id that needs escaping too"""
    r = c.ok(c.http.get(c.v1 + "/models/" + urllib.parse.quote(c.model, safe="/")))
    assert r["id"] == c.model and r["object"] == "model"


@case("models.retrieve_unknown", "openai")
def _(c):
    """/v1/models/{id} of an unknown model is 404"""
    c.error(c.http.get(c.v1 + "/models/no-such-model"), 404)


@case("models.max_model_len", "vllm")
def _(c):
    """/v1/models tells the context length as max_model_len"""
    m = c.http.get(c.v1 + "/models").json()["data"][0]
    assert isinstance(m.get("max_model_len"), int) and m["max_model_len"] > 0, f"max_model_len is {m.get('max_model_len')!r}"


@case("health.ok")
def _(c):
    """/health is 200 and needs no key"""
    assert c.plain.get(c.url + "/health").status_code == 200


@case("health.probes", "ours")
def _(c):
    """/livez and /readyz are 200 and need no key"""
    for path in ("/livez", "/readyz"):
        assert c.plain.get(c.url + path).status_code == 200, path


@case("health.version", "vllm")
def _(c):
    """/version gives a version"""
    assert isinstance(c.ok(c.http.get(c.url + "/version")).get("version"), str)


# Bad requests


@case("error.bad_json")
def _(c):
    """a body that is not JSON is 400"""
    for body in ('{"messages": [', "", "[]", '"text"', "\xff"):
        r = c.http.post(c.url + CHAT, content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
        c.error(r, 400)


@case("error.messages", "openai")
def _(c):
    """messages missing, empty, or of a wrong type are 400"""
    for bad in (..., [], "hello", None, [1], [{"role": "user"}], [{"content": "hello"}], [{"role": "user", "content": 5}]):
        r = c.post(CHAT, c.body(messages=bad))
        assert r.status_code == 400, f"messages {bad!r}: status {r.status_code}"
        c.error(r, 400)


@case("error.role", "ours")
def _(c):
    """an unknown role is 400 and not passed to the template"""
    c.refused(messages=[{"role": "wizard", "content": "hello"}])


@case("error.param", "openai")
def _(c):
    """the error names the field"""
    c.error(c.post(CHAT, c.body(temperature=-1)), 400, param="temperature")
    c.error(c.post(CHAT, c.body(messages=...)), 400, param="messages")


@case("error.ranges", "openai")
def _(c):
    """sampling values out of range are 400"""
    for bad in ({"temperature": -0.5}, {"top_p": -0.1}, {"top_p": 1.5}, {"n": 0}, {"n": -1},
                {"frequency_penalty": 5}, {"presence_penalty": -5}):
        r = c.post(CHAT, c.body(**bad))
        assert r.status_code == 400, f"{bad}: status {r.status_code}"


@case("error.max_tokens", "openai")
def _(c):
    """max_tokens of 0 (chat) or below is 400"""
    for bad in ({"max_tokens": 0}, {"max_tokens": -5}, {"max_tokens": ..., "max_completion_tokens": 0}):
        r = c.post(CHAT, c.body(**bad))
        assert r.status_code == 400, f"{bad}: status {r.status_code}"


@case("error.huge_n", "ours")
def _(c):
    """a huge n is refused at once"""
    start = time.monotonic()
    c.refused(n=1_000_000)
    assert time.monotonic() - start < 2


@case("error.types", "openai")
def _(c):
    """fields of a wrong type are 400, never 500"""
    for bad in ({"max_tokens": "ten"}, {"temperature": "hot"}, {"stream": "yes"}, {"stop": 5}, {"stop": [5]}, {"n": "two"},
                {"logit_bias": [1]}, {"tools": "none"}, {"response_format": "json"}, {"seed": "x"}, {"stream_options": 3, "stream": True}):
        r = c.post(CHAT, c.body(**bad))
        assert r.status_code in (400, 422), f"{bad}: status {r.status_code}"
        c.error(r, 400, 422)


@case("error.top_logprobs", "openai")
def _(c):
    """top_logprobs without logprobs, above 20 or below 0 is 400"""
    for bad in ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -2}):
        r = c.post(CHAT, c.body(**bad))
        assert r.status_code == 400, f"{bad}: status {r.status_code}"


@case("error.stop_empty", "ours")
def _(c):
    """an empty stop string is 400: it would end every answer at once"""
    c.refused(stop="")
    c.refused(stop=["x", ""])


@case("error.logit_bias", "openai")
def _(c):
    """logit_bias with keys that are no token ids or values beyond 100 is 400"""
    for bad in ({"abc": 1}, {"5": 200}, {"-1": 1}, {"999999999": 1}, {"5": "x"}):
        r = c.post(CHAT, c.body(logit_bias=bad))
        assert r.status_code == 400, f"{bad}: status {r.status_code}"


@case("error.unknown_model", "openai")
def _(c):
    """an unknown model is 404 model_not_found"""
    c.error(c.post(CHAT, c.body(model="no-such-model")), 404, code="model_not_found")


@case("error.unknown_path")
def _(c):
    """an unknown path is 404 with an error object"""
    c.error(c.http.get(c.url + "/v1/nothing/here"), 404)


@case("error.method", "ours")
def _(c):
    """a wrong method is 405 with Allow"""
    r = c.http.get(c.url + CHAT)
    c.error(r, 405)
    assert "POST" in r.headers.get("allow", ""), "no Allow header"


@case("error.content_type", "ours")
def _(c):
    """a body that is not declared as JSON is 415: web pages can send such bodies without a preflight"""
    r = c.http.post(c.url + CHAT, content=json.dumps(c.body()), headers={"Content-Type": "text/plain"})
    c.error(r, 415)


@case("error.body_limit", "ours")
def _(c):
    """a body of 33 MB is 413, and the server lives"""
    try:
        r = c.http.post(c.url + CHAT, content=json.dumps(c.body(user="x" * 33_000_000)), headers={"Content-Type": "application/json"})
        c.error(r, 413)
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # closed while we were still sending, which HTTP allows
    c.alive()


@case("error.context")
def _(c):
    """a prompt longer than the context is 400, never truncated in silence"""
    n = c.ctx()
    r = c.post(CHAT, c.body(messages=c.messages("a b c d e f g h " * (n // 4 + 50))))
    e = c.error(r, 400)
    assert any(ch.isdigit() for ch in e["message"]), "the message does not say how many tokens"


@case("error.context_code", "openai")
def _(c):
    """that error has the code context_length_exceeded, by which agents know to shorten"""
    r = c.post(CHAT, c.body(messages=c.messages("a b c d e f g h " * (c.ctx() // 4 + 50))))
    c.error(r, 400, code="context_length_exceeded")


@case("error.in_stream_request")
def _(c):
    """a bad streamed request is a plain 400, not an event stream"""
    c.error(c.post(CHAT, c.body(stream=True, messages=...)), 400)


@case("error.stream_options", "openai")
def _(c):
    """stream_options without stream is 400"""
    c.refused(stream_options={"include_usage": True})


@case("error.image", "ours")
def _(c):
    """an image for a text model is 400 with a message that says so"""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    c.refused(messages=[{"role": "user", "content": [part]}])


# Keys and CORS


@case("auth.key", "core", ["key"])
def _(c):
    """without a key, or with a wrong one, every /v1 path is 401"""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer " + c.key[:-1]}):
        c.error(c.plain.post(c.url + CHAT, json=c.body(), headers=headers), 401)
    c.error(c.plain.post(c.url + TEXT, json=c.text_body()), 401)
    c.alive()


@case("auth.models", "openai", ["key"])
def _(c):
    """/v1/models needs the key too"""
    c.error(c.plain.get(c.v1 + "/models"), 401)


@case("auth.code", "openai", ["key"])
def _(c):
    """the error has the code invalid_api_key"""
    c.error(c.plain.post(c.url + CHAT, json=c.body(), headers={"Authorization": "Bearer wrong"}), 401, code="invalid_api_key")


@case("cors.preflight")
def _(c):
    """a preflight from a page on localhost is granted, without a key"""
    r = c.plain.options(c.url + CHAT, headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST",
                                               "Access-Control-Request-Headers": "authorization,content-type"})
    assert r.status_code in (200, 204), f"status {r.status_code}"
    h = {k.lower(): v.lower() for k, v in r.headers.items()}
    assert h.get("access-control-allow-origin") in ("*", "http://localhost:3000"), h.get("access-control-allow-origin")
    assert "post" in h.get("access-control-allow-methods", "") or h.get("access-control-allow-methods") == "*", "methods"
    allowed = h.get("access-control-allow-headers", "")
    assert "authorization" in allowed or (allowed == "*" and "access-control-allow-credentials" not in h), f"headers: {allowed!r}"


@case("cors.response")
def _(c):
    """an answer and an error to a page on localhost carry allow-origin"""
    for body in (c.body(max_tokens=1), c.body(messages=5)):
        r = c.post(CHAT, body, headers={"Origin": "http://localhost:3000"})
        assert r.headers.get("access-control-allow-origin") in ("*", "http://localhost:3000"), f"status {r.status_code}: no allow-origin"


# Chat


@case("chat.shape")
def _(c):
    """the answer has every field of OpenAI's"""
    r = c.chat()
    assert r["object"] == "chat.completion" and r["id"].startswith("chatcmpl-"), (r["object"], r["id"])
    assert abs(r["created"] - time.time()) < 3600 and r["model"] == c.model, (r["created"], r["model"])
    (choice,) = r["choices"]
    assert choice["index"] == 0 and choice["message"]["role"] == "assistant", choice
    assert isinstance(choice["message"]["content"], str) and choice["finish_reason"] in ("stop", "length"), choice
    check_usage(r["usage"])


@case("chat.ids")
def _(c):
    """every answer has its own id"""
    assert len({c.chat(max_tokens=1)["id"] for _ in range(4)}) == 4


@case("chat.max_tokens")
def _(c):
    """max_tokens and max_completion_tokens limit the answer; the reason is length"""
    for kw in ({"max_tokens": 3}, {"max_tokens": ..., "max_completion_tokens": 3}):
        r = c.chat(**kw)
        assert r["usage"]["completion_tokens"] <= 3, f"{kw}: {r['usage']}"
        if r["usage"]["completion_tokens"] == 3:
            assert r["choices"][0]["finish_reason"] in ("length", "stop")
    r = c.chat(max_tokens=1)
    assert r["usage"]["completion_tokens"] == 1, r["usage"]


@case("chat.huge_max_tokens", "ours", ["ignore_eos"])
def _(c):
    """max_tokens beyond the context is cut to what fits, allocates nothing, and ends with length"""
    text, _, _ = c.greedy(24)
    if len(text) < 4:
        raise Skip("the answer is too short")
    r = c.chat(max_tokens=1_000_000_000, stop=[_piece(text, 2, 2)])
    assert r["choices"][0]["finish_reason"] == "stop", r["choices"][0]


@case("chat.greedy")
def _(c):
    """temperature 0 twice gives the same text"""
    one = c.chat(max_tokens=24)["choices"][0]["message"]["content"]
    assert one == c.chat(max_tokens=24)["choices"][0]["message"]["content"]


@case("chat.parts")
def _(c):
    """content as text parts is the same as a string"""
    text, _, _ = c.greedy()
    parts = [{"type": "text", "text": c.prompt}]
    assert c.chat(messages=[{"role": "user", "content": parts}], max_tokens=24)["choices"][0]["message"]["content"] == text


@case("chat.nulls")
def _(c):
    """null for every optional field is as if it were absent: Go and Java clients send them"""
    text, _, _ = c.greedy()
    names = ("stop", "n", "top_p", "seed", "tools", "tool_choice", "response_format", "logit_bias", "user", "stream", "stream_options",
             "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "max_completion_tokens")
    assert c.chat(max_tokens=24, **dict.fromkeys(names))["choices"][0]["message"]["content"] == text


@case("chat.unknown_fields")
def _(c):
    """unknown fields are ignored: SDKs add new ones every month"""
    text, _, _ = c.greedy()
    r = c.chat(max_tokens=24, user="u", metadata={"a": "b"}, store=False, service_tier="auto", verbosity="low", safety_identifier="x")
    assert r["choices"][0]["message"]["content"] == text


@case("chat.roles")
def _(c):
    """system and developer messages, and a history with an assistant turn, are taken"""
    for first in ("system", "developer"):
        c.chat(messages=[{"role": first, "content": "Be brief."}, {"role": "user", "content": "1 + 1"},
                         {"role": "assistant", "content": "1 + 1 = 2"}, {"role": "user", "content": "plus 3?"}])


@case("chat.n")
def _(c):
    """n=2 gives two choices with their indices, and usage counts both"""
    r = c.chat(n=2, max_tokens=6)
    assert [x["index"] for x in r["choices"]] == [0, 1], [x["index"] for x in r["choices"]]
    assert r["choices"][0]["message"] == r["choices"][1]["message"], "two greedy choices differ"


@case("chat.n_usage", "openai")
def _(c):
    """usage of n=2 counts the tokens of both and the prompt once"""
    one, two = c.chat(max_tokens=6)["usage"], c.chat(n=2, max_tokens=6)["usage"]
    assert two["completion_tokens"] == 2 * one["completion_tokens"], (one, two)
    assert two["prompt_tokens"] == one["prompt_tokens"], (one, two)


@case("chat.seed")
def _(c):
    """a seed makes sampling repeatable, and seeds differ"""
    ask = lambda s: c.chat(temperature=2, logit_bias=UNSURE, seed=s, max_tokens=24)["choices"][0]["message"]["content"]  # noqa: E731
    assert ask(42) == ask(42), "the same seed gave two texts"
    assert len({ask(s) for s in range(6)}) > 1, "six seeds gave one text"


@case("chat.n_sampled", "openai")
def _(c):
    """n samples of one request differ, and a seed repeats all of them"""
    ask = lambda: [x["message"]["content"] for x in c.chat(temperature=2, logit_bias=UNSURE, seed=5, n=4, max_tokens=24)["choices"]]  # noqa: E731
    one = ask()
    assert len(set(one)) > 1, "four samples are all equal"
    assert one == ask(), "the same seed gave other samples"


@case("chat.logit_bias")
def _(c):
    """logit_bias +100 forces a token, -100 forbids it"""
    r = c.chat(logit_bias={"66": 100}, logprobs=True, max_tokens=5)
    tokens = [t["token"] for t in r["choices"][0]["logprobs"]["content"]]
    assert len(tokens) == 5 and len(set(tokens)) == 1, f"tokens {tokens}"
    # Of two tokens with the same bias, forbidding the one that wins gives the other.
    two = c.chat(logit_bias={"66": 100, "67": 100}, logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"][0]["token"]
    other = c.chat(logit_bias={"67" if two == tokens[0] else "66": 100, "66" if two == tokens[0] else "67": -100}, logprobs=True, max_tokens=1)
    assert other["choices"][0]["logprobs"]["content"][0]["token"] != two


@case("chat.penalties")
def _(c):
    """penalties in range are taken and change a forced repetition"""
    r = c.chat(logit_bias={"66": 5}, frequency_penalty=2, presence_penalty=2, max_tokens=12)
    check_usage(r["usage"])


@case("chat.ignore_eos", "vllm", ["ignore_eos"])
def _(c):
    """ignore_eos gives exactly max_tokens tokens"""
    r = c.chat(max_tokens=50, ignore_eos=True)
    assert r["usage"]["completion_tokens"] == 50 and r["choices"][0]["finish_reason"] == "length"


@case("chat.min_tokens", "vllm")
def _(c):
    """min_tokens holds back the end of the sequence"""
    r = c.chat(max_tokens=40, min_tokens=40)
    assert r["usage"]["completion_tokens"] == 40, r["usage"]


@case("chat.extensions", "vllm")
def _(c):
    """top_k, min_p, repetition_penalty, stop_token_ids, skip_special_tokens, chat_template_kwargs are taken"""
    c.chat(temperature=0.8, top_k=20, min_p=0.05, repetition_penalty=1.1, stop_token_ids=[1], skip_special_tokens=True,
           chat_template_kwargs={"enable_thinking": False}, seed=1)


@case("chat.top_k_one", "vllm")
def _(c):
    """top_k=1 at a high temperature is greedy"""
    text, _, _ = c.greedy()
    assert c.chat(temperature=1.5, top_k=1, top_p=1, min_p=0, max_tokens=24)["choices"][0]["message"]["content"] == text


@case("chat.cached_tokens", "openai")
def _(c):
    """a repeated long prompt reports cached_tokens, and its answer does not change"""
    text = "Once upon a time there was a list of numbers: " + " ".join(str(i) for i in range(90)) + ". " + c.prompt
    one, two = (c.chat(messages=c.messages(text), max_tokens=12) for _ in range(2))
    assert one["choices"][0]["message"] == two["choices"][0]["message"], "a cached prompt gave another answer"
    details = two["usage"].get("prompt_tokens_details") or {}
    assert isinstance(details.get("cached_tokens"), int) and details["cached_tokens"] > 0, f"usage is {two['usage']}"
    assert details["cached_tokens"] < two["usage"]["prompt_tokens"], "more cached tokens than the last token allows"


@case("chat.return_token_ids", "vllm", ["tokenize"])
def _(c):
    """return_token_ids gives the ids of prompt and answer"""
    r = c.chat(max_tokens=5, return_token_ids=True)
    ids = r["choices"][0].get("token_ids")
    assert isinstance(ids, list) and len(ids) == r["usage"]["completion_tokens"], f"token_ids {ids}"
    assert len(r.get("prompt_token_ids") or []) == r["usage"]["prompt_tokens"], "prompt_token_ids"


# Stop strings


def _stop_of(c):
    text, _, _ = c.greedy(24)
    if len(text) < 8:
        raise Skip("the answer is too short to cut")
    return text


def _piece(text, at, n):
    """n characters of the text from about there, none of them U+FFFD, which no request can ask for."""
    for i in [*range(at, len(text) - n), *range(at)]:
        if "\ufffd" not in text[i:i + n]:
            return text[i:i + n]
    raise Skip("the answer has no such piece of whole characters")


@case("stop.cuts")
def _(c):
    """a stop string, wherever it lies over the tokens, ends the text before it"""
    text = _stop_of(c)
    for at, n in ((1, 1), (2, 3), (3, 4), (len(text) // 2, 3)):
        stop = _piece(text, at, n)
        r = c.chat(max_tokens=24, stop=stop)["choices"][0]
        assert clean(r["message"]["content"]) == clean(text[:text.index(stop)]), f"stop {stop!r}: {r['message']['content']!r} of {text!r}"
        assert r["finish_reason"] == "stop", r["finish_reason"]


@case("stop.stream")
def _(c):
    """the same in a stream: nothing of the stop string leaks"""
    text = _stop_of(c)
    for at, n in ((1, 1), (2, 3), (len(text) // 2, 4)):
        stop = _piece(text, at, n)
        s = c.stream(body=c.body(max_tokens=24, stop=[stop, "never-to-be-seen"]))
        assert clean(s.text()) == clean(text[:text.index(stop)]), f"stop {stop!r}: {s.text()!r} of {text!r}"
        assert s.finish() == "stop"


@case("stop.held_back_is_flushed")
def _(c):
    """text that might have begun a stop string and did not is not lost at the end"""
    text = _stop_of(c)
    if "\ufffd" in text[-2:]:
        raise Skip("the answer ends in the middle of a character")
    stop = text[-2:] + "\x01never"
    assert c.stream(body=c.body(max_tokens=24, stop=[stop])).text() == text
    assert c.chat(max_tokens=24, stop=[stop])["choices"][0]["message"]["content"] == text


@case("stop.earliest_wins")
def _(c):
    """of several stop strings the one that appears first ends the text"""
    text = _stop_of(c)
    early, late = _piece(text, 2, 2), _piece(text, 6, 3)
    r = c.chat(max_tokens=24, stop=[late, early])["choices"][0]["message"]["content"]
    assert clean(r) == clean(text[:min(text.index(early), text.index(late))]), r


@case("stop.not_in_prompt")
def _(c):
    """a stop string in the prompt does not end the answer"""
    text = _stop_of(c)
    word = next((w for w in c.prompt.split() if w not in text), None)
    if not word:
        raise Skip("every word of the prompt is in the answer")
    assert c.chat(max_tokens=24, stop=[word])["choices"][0]["message"]["content"] == text


# Streams


@case("stream.frames")
def _(c):
    """events are data lines with one JSON object each, an empty line after each, [DONE] last"""
    s = c.stream()
    assert len(s.chunks) >= 2, f"{len(s.chunks)} chunks"
    assert s.raw.endswith(b"data: [DONE]\n\n"), s.raw[-40:]
    assert {x["object"] for x in s.chunks} == {"chat.completion.chunk"}
    for key in ("id", "created", "model"):
        assert len({x[key] for x in s.chunks}) == 1, f"{key} changes within the stream"
    assert all(isinstance(x.get("choices"), list) for x in s.chunks), "a chunk without choices"


@case("stream.role", "openai")
def _(c):
    """the first delta has the role"""
    s = c.stream()
    assert s.chunks[0]["choices"][0]["delta"].get("role") == "assistant", s.chunks[0]


@case("stream.same")
def _(c):
    """a stream says the same as an answer in one piece"""
    text, _, reason = c.greedy()
    s = c.stream(body=c.body(max_tokens=24))
    assert s.text() == text, (s.text(), text)
    assert s.finish() == reason


@case("stream.finish_last")
def _(c):
    """finish_reason comes once, after all text, and null before"""
    s = c.stream()
    s.finish()
    with_choices = [x for x in s.chunks if x["choices"]]
    assert with_choices[-1]["choices"][0]["finish_reason"], "the last chunk with a choice has no finish_reason"
    assert all("finish_reason" in x["choices"][0] for x in with_choices), "finish_reason is missing instead of null"


@case("stream.no_usage_unasked")
def _(c):
    """without include_usage no chunk has usage or lacks a choice"""
    for kw in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False}}):
        s = c.stream(body=c.body(**kw))
        assert all(x["choices"] for x in s.chunks), "a chunk without choices: clients index choices[0]"
        assert not any(x.get("usage") for x in s.chunks), "usage without being asked"


@case("stream.usage")
def _(c):
    """with include_usage the last chunk has usage and no choices, the same numbers as without a stream"""
    s = c.stream(body=c.body(stream_options={"include_usage": True}))
    last = s.chunks[-1]
    assert last["choices"] == [], "the usage chunk has choices"
    check_usage(last["usage"])
    assert not any(x.get("usage") for x in s.chunks[:-1]), "usage before the end"
    one = c.chat()["usage"]
    for k in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert one[k] == last["usage"][k], (one, last["usage"])


@case("stream.continuous_usage", "vllm")
def _(c):
    """continuous_usage_stats gives usage in every chunk, growing"""
    s = c.stream(body=c.body(stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [x["usage"]["completion_tokens"] for x in s.chunks if x.get("usage")]
    assert len(counts) >= len(s.chunks) - 1 and counts == sorted(counts), counts


@case("stream.incremental", "core", ["ignore_eos"])
def _(c):
    """text comes while it is made, not at the end"""
    halves = []
    # A busy machine or a gateway may be late with the first text of a short answer; what is kept back comes late every time.
    while not halves or min(halves) >= 0.85:
        assert len(halves) < 5, f"half of the text came after {100 * min(halves):.0f} % of the time at best, of {len(halves)} answers"
        s = c.stream(body=c.long_body(min(256, c.ctx() - 300)))
        assert len(s.chunks) > 20, f"{len(s.chunks)} chunks for 256 tokens"
        halves.append((s.times[len(s.times) // 2] - s.sent) / (s.times[-1] - s.sent))


@case("stream.n")
def _(c):
    """n=2 in a stream: both indices, one finish each"""
    s = c.stream(body=c.body(n=2, max_tokens=8))
    assert s.text(0) == s.text(1) == c.greedy(8)[0]
    s.finish(0), s.finish(1)


@case("stream.utf8", "core", ["schema"])
def _(c):
    """characters of several tokens come whole"""
    want = "naïve 漢字 😀👩‍👩‍👧 é"
    s = c.stream(body=c.body(max_tokens=120, response_format=schema_format({"type": "object", "properties": {"s": {"enum": [want]}},
                 "required": ["s"], "additionalProperties": False})))
    assert "\ufffd" not in s.text(), s.text()
    assert json_or_none(s.text()) == {"s": want}, s.text()


@case("stream.headers", "ours")
def _(c):
    """no proxy may buffer or cache a stream"""
    h = c.stream().response.headers
    assert "no-cache" in h.get("cache-control", "") or "no-store" in h.get("cache-control", ""), "cache-control"
    assert h.get("x-accel-buffering") == "no", "x-accel-buffering"


@case("stream.request_id", "ours")
def _(c):
    """X-Request-Id is answered with, the client's own if it sent one"""
    r = c.post(CHAT, c.body(max_tokens=1), headers={"X-Request-Id": "kit-12345"})
    assert r.headers.get("x-request-id") == "kit-12345"
    assert c.post(CHAT, c.body(max_tokens=1)).headers.get("x-request-id")


@case("stream.keep_alive")
def _(c):
    """a connection is reused after an answer, a stream and an error"""
    host, port = urllib.parse.urlsplit(c.url).hostname, urllib.parse.urlsplit(c.url).port or 80
    key = f"Authorization: Bearer {c.key}\r\n" if c.key else ""
    with socket.create_connection((host, port), timeout=c.timeout) as s:
        f = s.makefile("rb")
        for kw, status in (({}, 200), ({"messages": 5}, 400), ({"stream": True}, 200), ({}, 200)):
            body = json.dumps(c.body(max_tokens=4, **kw)).encode()
            s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                      .encode() + body)
            line = f.readline()
            assert line.startswith(b"HTTP/1.1 ") and int(line.split()[1]) == status, (kw, line)
            headers = {}
            while (h := f.readline().strip()):
                k, _, v = h.partition(b":")
                headers[k.lower()] = v.strip().lower()
            if headers.get(b"transfer-encoding") == b"chunked":
                while (n := int(f.readline(), 16)):
                    f.read(n + 2)
                f.readline()
            else:
                f.read(int(headers[b"content-length"]))
            if status >= 400 and headers.get(b"connection") == b"close":
                raise AssertionError("the connection is closed after a 400")


@case("cancel.stream", "core", ["metrics", "ignore_eos"])
def _(c):
    """closing a stream stops the work within a second or so"""
    c.wait_idle(10)
    with c.open_stream():
        assert c.running() >= 1, "nothing runs while a stream is open"
    c.wait_idle()


@case("cancel.plain", "core", ["metrics", "ignore_eos"])
def _(c):
    """so does closing the connection of a request that is not streamed"""
    c.wait_idle(10)
    client = httpx.Client(headers=c.http.headers)
    try:
        client.post(c.url + CHAT, json=c.long_body(), timeout=0.15)
        raise Skip("the model is too fast to be interrupted")
    except httpx.TimeoutException:
        pass
    finally:
        client.close()
    c.wait_idle()


@case("cancel.many", "core", ["metrics", "ignore_eos"])
def _(c):
    """thirty streams opened and dropped leave nothing behind, and the answer stays the same"""
    text, _, _ = c.greedy()
    for _ in range(30):
        with c.open_stream(reads=1):
            pass
    c.wait_idle(10)
    assert c.chat(max_tokens=24)["choices"][0]["message"]["content"] == text


# Log probabilities


def _check_logprobs(content, tokens, k):
    assert len(content) == tokens, f"{len(content)} entries for {tokens} tokens"
    for e in content:
        assert isinstance(e["token"], str) and e["logprob"] <= 1e-6 and math.isfinite(e["logprob"]), e
        assert e["bytes"] is None or all(0 <= b <= 255 for b in e["bytes"]), e
        top = [t["logprob"] for t in e["top_logprobs"]]
        assert len(top) == k and top == sorted(top, reverse=True), e
        if k:
            assert abs(top[0] - e["logprob"]) < 1e-4, f"the greedy token is not the most likely: {e}"
            assert sum(math.exp(x) for x in top) <= 1.001


@case("logprobs.chat")
def _(c):
    """an entry a token, k alternatives in order, the chosen one first at temperature 0"""
    for k in (0, 1, 5):
        r = c.chat(logprobs=True, top_logprobs=k, max_tokens=10)
        _check_logprobs(r["choices"][0]["logprobs"]["content"], r["usage"]["completion_tokens"], k)


@case("logprobs.bytes", "openai")
def _(c):
    """the bytes of all tokens are the text"""
    r = c.chat(logprobs=True, max_tokens=24)["choices"][0]
    raw = b"".join(bytes(e["bytes"] or e["token"].encode()) for e in r["logprobs"]["content"])
    got, want = raw.decode("utf-8", "replace"), r["message"]["content"]
    assert got == want or (r["finish_reason"] == "stop" and got.startswith(want)) or got.rstrip("\ufffd") == want.rstrip("\ufffd"), (got, want)


@case("logprobs.stream")
def _(c):
    """a stream has the same entries"""
    one = c.chat(logprobs=True, top_logprobs=2, max_tokens=10)
    s = c.stream(body=c.body(logprobs=True, top_logprobs=2, max_tokens=10))
    entries = [e for x in s.chunks for ch in x["choices"] for e in (ch.get("logprobs") or {}).get("content") or []]
    want = one["choices"][0]["logprobs"]["content"]
    assert [e["token"] for e in entries] == [e["token"] for e in want], "other tokens"
    assert all(abs(a["logprob"] - b["logprob"]) < 1e-3 for a, b in zip(entries, want)), "other values"


@case("logprobs.off")
def _(c):
    """without logprobs the field is null or absent"""
    assert not c.chat()["choices"][0].get("logprobs")


# Completions


@case("text.shape")
def _(c):
    """the answer has every field of OpenAI's"""
    r = c.text()
    assert r["object"] == "text_completion" and isinstance(r["id"], str), r["object"]
    assert isinstance(r["choices"][0]["text"], str) and r["choices"][0]["finish_reason"] in ("stop", "length")
    check_usage(r["usage"])


@case("text.defaults", "openai")
def _(c):
    """max_tokens is 16 where it is not given"""
    assert c.text(max_tokens=...)["usage"]["completion_tokens"] <= 16


@case("text.stream")
def _(c):
    """streamed completions have text, the same frames, the same text"""
    want = c.text()["choices"][0]
    s = c.stream(TEXT, c.text_body())
    assert clean(s.text()) == clean(want["text"]), (s.text(), want["text"])
    assert s.finish() == want["finish_reason"]
    assert {x["object"] for x in s.chunks} == {"text_completion"}, {x["object"] for x in s.chunks}


@case("text.prompts")
def _(c):
    """an array of prompts gives a choice each, in order, as each alone"""
    prompts = [c.prompt, "1 + 1 =", "abc"]
    r = c.text(prompt=prompts, max_tokens=8)
    assert [x["index"] for x in r["choices"]] == [0, 1, 2], [x["index"] for x in r["choices"]]
    for p, x in zip(prompts, r["choices"]):
        assert x["text"] == c.text(prompt=p, max_tokens=8)["choices"][0]["text"], p


@case("text.prompts_usage", "openai")
def _(c):
    """their usage is the sum over prompts"""
    prompts = [c.prompt, "1 + 1 =", "abc"]
    alone = [c.text(prompt=p, max_tokens=8)["usage"] for p in prompts]
    r = c.text(prompt=prompts, max_tokens=8)["usage"]
    for k in ("prompt_tokens", "completion_tokens"):
        assert r[k] == sum(u[k] for u in alone), (k, r, alone)


@case("text.token_ids", "openai", ["tokenize"])
def _(c):
    """prompts may be token ids, one list or several"""
    ids = c.tokenize(c.prompt)
    want = c.text(max_tokens=8)["choices"][0]["text"]
    assert c.text(prompt=ids, max_tokens=8)["choices"][0]["text"] == want, "ids of the prompt give another text"
    r = c.text(prompt=[ids, ids[:3]], max_tokens=8)
    assert r["choices"][0]["text"] == want and len(r["choices"]) == 2


@case("text.bad_ids", "openai")
def _(c):
    """token ids out of range, and an empty list, are 400"""
    for bad in ([10**9], [-1], [], [[]], [[1], "a", None], [1.5]):
        r = c.post(TEXT, c.text_body(prompt=bad))
        assert r.status_code == 400, f"prompt {bad}: status {r.status_code}"


@case("text.empty", "core")
def _(c):
    """an empty prompt is answered or refused, never a failure of the server"""
    r = c.post(TEXT, c.text_body(prompt=""))
    assert r.status_code in (200, 400), r.status_code
    c.alive()


@case("text.echo", "openai")
def _(c):
    """echo puts the prompt before the text"""
    r = c.text(echo=True)["choices"][0]["text"]
    assert r == c.prompt + c.text()["choices"][0]["text"], r


@case("text.echo_logprobs", "openai")
def _(c):
    """echo with logprobs and max_tokens 0 scores a text, as evaluation harnesses ask"""
    r = c.text(prompt="1 + 1 = 2, 2 + 2 = 4", echo=True, logprobs=1, max_tokens=0)
    lp = r["choices"][0]["logprobs"]
    n = len(lp["tokens"])
    assert n == r["usage"]["prompt_tokens"] and len(lp["token_logprobs"]) == len(lp["top_logprobs"]) == len(lp["text_offset"]) == n
    assert lp["token_logprobs"][0] is None and all(x <= 0 for x in lp["token_logprobs"][1:]), lp["token_logprobs"]
    assert lp["text_offset"] == sorted(lp["text_offset"]), lp["text_offset"]


@case("text.logprobs", "openai")
def _(c):
    """logprobs in the form of completions: tokens, token_logprobs, top_logprobs, text_offset"""
    r = c.text(logprobs=3, max_tokens=6)
    lp, n = r["choices"][0]["logprobs"], r["usage"]["completion_tokens"]
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == len(lp["top_logprobs"]) == len(lp["text_offset"]) == n, lp
    assert all(isinstance(t, dict) and 1 <= len(t) <= 4 for t in lp["top_logprobs"]), lp["top_logprobs"]


@case("text.n", "openai")
def _(c):
    """n choices of each prompt: indices prompt by prompt"""
    r = c.text(prompt=["1 + 1 =", "abc"], n=2, max_tokens=4)
    assert [x["index"] for x in r["choices"]] == [0, 1, 2, 3]
    assert r["choices"][0]["text"] == r["choices"][1]["text"]


@case("text.best_of", "openai")
def _(c):
    """best_of below n is refused; above it works or is refused, never ignored in silence"""
    c.error(c.post(TEXT, c.text_body(n=3, best_of=2)), 400)
    r = c.post(TEXT, c.text_body(best_of=3, n=1, temperature=1))
    if r.status_code != 200:
        c.error(r, 400)
    else:
        assert r.json()["usage"]["completion_tokens"] > 16, "best_of=3 made no more tokens than one"


@case("text.suffix", "openai")
def _(c):
    """suffix works or is refused"""
    r = c.post(TEXT, c.text_body(suffix=" end"))
    if r.status_code != 200:
        c.error(r, 400)
    else:
        assert r.json()["choices"][0]["text"] != c.text()["choices"][0]["text"], "suffix was ignored in silence"


# Structured output


@case("schema.object")
def _(c):
    """response_format json_schema gives what the schema says, with reason stop"""
    r = c.chat(max_tokens=100, response_format=schema_format(CITY))["choices"][0]
    check_city(r["message"]["content"])
    assert r["finish_reason"] == "stop", r["finish_reason"]


@case("schema.sampled", "core", ["schema"])
def _(c):
    """at any temperature"""
    for seed in range(4):
        check_city(c.chat(max_tokens=100, temperature=2, seed=seed, response_format=schema_format(CITY))["choices"][0]["message"]["content"])


@case("schema.stream", "core", ["schema"])
def _(c):
    """and in a stream"""
    check_city(c.stream(body=c.body(max_tokens=100, response_format=schema_format(CITY))).text())


@case("schema.nested", "core", ["schema"])
def _(c):
    """arrays, nesting, $defs, anyOf, null, booleans, const, number bounds, string length and pattern"""
    schema = {"type": "object", "additionalProperties": False, "required": ["a", "b", "c", "d"],
              "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
                                  "required": ["x"], "additionalProperties": False}},
              "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 2, "maxItems": 2},
                             "b": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "c": {"const": "k"},
                             "d": {"type": "string", "pattern": "^[a-c]{2,4}$"}}}
    for seed in range(3):
        v = json_or_none(c.chat(max_tokens=200, temperature=1, seed=seed, response_format=schema_format(schema))["choices"][0]["message"]["content"])
        assert v and len(v["a"]) == 2 and all(0 <= p["x"] <= 9 for p in v["a"]) and v["b"] in (None, True, False), v
        assert v["c"] == "k" and 2 <= len(v["d"]) <= 4 and set(v["d"]) <= set("abc"), v


@case("schema.json_object")
def _(c):
    """json_object gives an object, or its beginning where the tokens end"""
    r = c.chat(max_tokens=80, response_format={"type": "json_object"})["choices"][0]
    text = r["message"]["content"]
    assert text.lstrip().startswith("{"), text
    if r["finish_reason"] == "stop":
        assert isinstance(json_or_none(text), dict), text


@case("schema.text")
def _(c):
    """response_format text changes nothing"""
    assert c.chat(max_tokens=24, response_format={"type": "text"})["choices"][0]["message"]["content"] == c.greedy()[0]


@case("schema.bad", "openai")
def _(c):
    """a schema that is none, and an unknown type, are 400"""
    for bad in (schema_format({"type": "nosuch"}), {"type": "json_schema"}, {"type": "yaml"}, schema_format({"$ref": "#/nowhere"}), {}):
        r = c.post(CHAT, c.body(response_format=bad))
        assert r.status_code == 400, f"{bad}: status {r.status_code}"
    c.alive()


@case("schema.determinism", "ours", ["schema"])
def _(c):
    """constrained and free requests beside each other do not change each other"""
    free, _, _ = c.greedy()
    shape = c.chat(max_tokens=100, response_format=schema_format(CITY))["choices"][0]["message"]["content"]
    got = in_parallel([lambda: c.chat(max_tokens=24)["choices"][0]["message"]["content"],
                       lambda: c.chat(max_tokens=100, response_format=schema_format(CITY))["choices"][0]["message"]["content"]] * 4)
    assert got == [free, shape] * 4, got


@case("structured.choice", "vllm")
def _(c):
    """structured_outputs choice, regex and grammar of vLLM"""
    ask = lambda **kw: c.chat(max_tokens=40, structured_outputs=kw)["choices"][0]["message"]["content"]  # noqa: E731
    assert ask(choice=["red", "green"]) in ("red", "green")
    text = ask(regex="[0-9]{3}-[a-f]{2}")
    assert len(text) == 6 and text[3] == "-" and text[:3].isdigit(), text


# Tools


def _check_call(call, name="get_weather"):
    assert call["id"] and call["type"] == "function" and call["function"]["name"] == name, call
    if name == "get_weather":
        check_city(call["function"]["arguments"])


@case("tools.required")
def _(c):
    """tool_choice required gives a call with arguments of the schema"""
    r = c.chat(tools=[TOOL], tool_choice="required", max_tokens=200)["choices"][0]
    assert r["message"].get("tool_calls"), r
    _check_call(r["message"]["tool_calls"][0])
    assert r["message"]["content"] in (None, ""), r["message"]["content"]


@case("tools.finish_reason")
def _(c):
    """its finish_reason is tool_calls, which agents branch on"""
    r = c.chat(tools=[TOOL], tool_choice="required", max_tokens=200)["choices"][0]
    assert r["finish_reason"] == "tool_calls", r["finish_reason"]


@case("tools.named")
def _(c):
    """a named tool is the one that is called"""
    r = c.chat(tools=[TOOL, TOOL2], tool_choice={"type": "function", "function": {"name": "get_time"}}, max_tokens=200)["choices"][0]
    _check_call(r["message"]["tool_calls"][0], "get_time")
    assert json_or_none(r["message"]["tool_calls"][0]["function"]["arguments"])["zone"] in ("utc", "cet")


@case("tools.none")
def _(c):
    """tool_choice none gives text"""
    r = c.chat(tools=[TOOL], tool_choice="none")["choices"][0]
    assert not r["message"].get("tool_calls") and r["finish_reason"] in ("stop", "length")


@case("tools.auto")
def _(c):
    """tool_choice auto is answered with text or a call, and the reason says which"""
    r = c.chat(tools=[TOOL], tool_choice="auto", max_tokens=60)["choices"][0]
    assert bool(r["message"].get("tool_calls")) == (r["finish_reason"] == "tool_calls"), r


@case("tools.stream")
def _(c):
    """a streamed call: name and id first, arguments in pieces, reason tool_calls"""
    s = c.stream(body=c.body(tools=[TOOL], tool_choice="required", max_tokens=200))
    calls = {}
    for x in s.chunks:
        for ch in x["choices"]:
            for t in ch["delta"].get("tool_calls") or []:
                mine = calls.setdefault(t["index"], {"id": None, "type": None, "name": "", "arguments": ""})
                mine["id"] = mine["id"] or t.get("id")
                mine["type"] = mine["type"] or t.get("type")
                mine["name"] += (t.get("function") or {}).get("name") or ""
                mine["arguments"] += (t.get("function") or {}).get("arguments") or ""
    assert 0 in calls, "no call"
    call = calls[0]
    assert call["id"] and call["type"] == "function" and call["name"] == "get_weather", call
    check_city(call["arguments"])
    assert s.finish() == "tool_calls", s.finish()


@case("tools.history")
def _(c):
    """a history with calls (content null) and their results is taken"""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome", "days": 1}'}}
    c.chat(tools=[TOOL], messages=[{"role": "user", "content": "Weather in Rome?"},
                                   {"role": "assistant", "content": None, "tool_calls": [call]},
                                   {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}])


@case("tools.bad", "openai")
def _(c):
    """a choice of an unknown tool, and required without tools, are 400"""
    c.refused(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "nothing"}})
    c.refused(tool_choice="required")


# Tokens, embeddings


@case("tokenize.round", "ours", ["tokenize"])
def _(c):
    """/tokenize and /detokenize are each other's inverse, in vLLM's and in llama.cpp's form"""
    text = "Hello,  world 123 naïve 漢字 😀\n\tend"
    for ask, there, back in (("prompt", {"add_special_tokens": False}, "prompt"), ("content", {"add_special": False}, "content")):
        r = c.ok(c.post("/tokenize", {"model": c.model, ask: text} | there))
        assert all(isinstance(t, int) for t in r["tokens"]), r
        if ask == "prompt":
            assert r["count"] == len(r["tokens"]) and isinstance(r["max_model_len"], int), r
        got = c.ok(c.post("/detokenize", {"model": c.model, "tokens": r["tokens"]}))
        assert got[back] == text, got


@case("tokenize.chat", "vllm")
def _(c):
    """/tokenize of messages counts what the chat request is charged"""
    r = c.ok(c.post("/tokenize", {"model": c.model, "messages": c.messages()}))
    assert r["count"] == c.chat(max_tokens=1)["usage"]["prompt_tokens"], r["count"]


@case("tokenize.usage", "core", ["tokenize"])
def _(c):
    """/tokenize of a prompt counts what the completion is charged"""
    assert len(c.tokenize(c.prompt)) == c.text(max_tokens=1)["usage"]["prompt_tokens"]


@case("tokenize.template", "ours")
def _(c):
    """/apply-template gives the prompt of a conversation"""
    assert c.prompt in c.ok(c.post("/apply-template", {"messages": c.messages()}))["prompt"]


@case("embeddings.either")
def _(c):
    """embeddings work, in floats and base64 alike, or are refused with an error object"""
    r = c.post("/v1/embeddings", {"model": c.model, "input": ["one", "two"]})
    if r.status_code != 200:
        c.error(r, 400, 404, 501)
        return
    d = r.json()
    assert d["object"] == "list" and [x["index"] for x in d["data"]] == [0, 1], d["object"]
    import struct
    b = c.ok(c.post("/v1/embeddings", {"model": c.model, "input": ["one", "two"], "encoding_format": "base64"}))
    raw = base64.b64decode(b["data"][0]["embedding"])
    v = struct.unpack(f"<{len(raw) // 4}f", raw)
    assert all(abs(x - y) < 1e-5 for x, y in zip(v, d["data"][0]["embedding"])), "base64 and floats differ"


# Metrics


@case("metrics.text", "core", ["metrics"])
def _(c):
    """/metrics is Prometheus text"""
    assert c.http.get(c.url + "/metrics").headers["content-type"].startswith("text/plain")
    assert c.metrics()


@case("metrics.gateway", "vllm", ["metrics"])
def _(c):
    """the metrics of the Gateway API Inference Extension, by vLLM's names"""
    found = c.metrics()
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        labels = [dict(l) for (n, l) in found if n == name]
        assert labels, f"{name} is missing"
        assert labels[0].get("model_name") == c.model, f"{name}: labels {labels[0]}"
    info = [dict(l) for (n, l) in found if n == "vllm:cache_config_info"]
    assert info and int(info[0]["block_size"]) > 0 and int(info[0]["num_gpu_blocks"]) > 0, info


@case("metrics.counters", "vllm", ["metrics"])
def _(c):
    """counters and histograms grow by exactly one request"""
    def read():
        sums = {}
        for (n, l), v in c.metrics().items():
            sums[n] = sums.get(n, 0) + v
        return sums
    before = read()
    u = c.chat(messages=c.messages(f"{c.prompt} {time.time()}"))["usage"]
    after = read()
    grew = lambda n: after.get(n, 0) - before.get(n, 0)  # noqa: E731
    assert grew("vllm:generation_tokens_total") == u["completion_tokens"], grew("vllm:generation_tokens_total")
    assert grew("vllm:prompt_tokens_total") == u["prompt_tokens"], grew("vllm:prompt_tokens_total")
    for name in ("vllm:request_success_total", "vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count",
                 "vllm:request_prompt_tokens_count", "vllm:request_generation_tokens_count"):
        assert grew(name) == 1, f"{name} grew by {grew(name)}"


@case("metrics.running", "core", ["metrics", "ignore_eos"])
def _(c):
    """running requests are counted while they run"""
    c.wait_idle(10)
    with c.open_stream(), c.open_stream():
        assert c.running() == 2, c.running()
    c.wait_idle()


# Many at once


@case("batch.same_bits")
def _(c):
    """a request's greedy text does not depend on what runs beside it"""
    alone = [c.greedy(32, p)[0] for p in c.other]
    for _ in range(3):
        got = in_parallel([lambda p=p: c.chat(messages=c.messages(p), max_tokens=32)["choices"][0]["message"]["content"] for p in c.other])
        assert got == alone, [(p, a, g) for p, a, g in zip(c.other, alone, got) if a != g][0]


@case("batch.same_samples", "ours")
def _(c):
    """nor does a seeded sample"""
    ask = lambda i: c.chat(messages=c.messages(c.other[i % len(c.other)]), temperature=1, seed=i, max_tokens=24)["choices"][0]["message"]["content"]  # noqa: E731
    alone = [ask(i) for i in range(8)]
    assert in_parallel([lambda i=i: ask(i) for i in range(8)]) == alone


@case("batch.streams")
def _(c):
    """sixteen streams at once all end well"""
    for s in in_parallel([lambda: c.stream(body=c.body(max_tokens=24)) for _ in range(16)]):
        assert s.text() == c.greedy()[0]
        s.finish()


@case("batch.health", "core", ["ignore_eos"])
def _(c):
    """/health and /metrics answer within a second under load"""
    with c.open_stream(), c.open_stream(), c.open_stream(), c.open_stream():
        for path in ("/health", "/v1/models", "/metrics"):
            start = time.monotonic()
            c.http.get(c.url + path)
            assert time.monotonic() - start < 1, f"{path} took {time.monotonic() - start:.2f} s"


@case("batch.fair", "core", ["ignore_eos"])
def _(c):
    """a short request is not made to wait for a long prompt or a long answer"""
    with c.open_stream():
        start = time.monotonic()
        c.chat(max_tokens=2)
        assert time.monotonic() - start < 5, f"{time.monotonic() - start:.1f} s for two tokens"


# Real clients


@case("client.openai")
def _(c):
    """the openai package: answer, stream, raw headers, errors of the right class"""
    import openai
    o = c.openai()
    r = o.chat.completions.create(model=c.model, messages=c.messages(), max_tokens=24, temperature=0)
    assert r.choices[0].message.content == c.greedy()[0]
    text = ""
    for x in o.chat.completions.create(model=c.model, messages=c.messages(), max_tokens=24, temperature=0, stream=True):
        text += x.choices[0].delta.content or ""
    assert text == c.greedy()[0]
    try:
        o.chat.completions.create(model=c.model, messages=c.messages(), temperature="hot")
        raise AssertionError("no error")
    except openai.BadRequestError as e:
        assert e.message
    assert c.model in [m.id for m in o.models.list()]
    assert o.completions.create(model=c.model, prompt=c.prompt, max_tokens=4).choices[0].text is not None


@case("client.openai_stream_helper")
def _(c):
    """its stream helper, which accumulates chunks and events"""
    text = _stop_of(c)  # it takes the reason length for an error
    stop = _piece(text, 3, 3)
    with c.openai().chat.completions.stream(model=c.model, messages=c.messages(), max_tokens=24, temperature=0, stop=[stop]) as s:
        kinds = [e.type for e in s]
        final = s.get_final_completion()
    assert clean(final.choices[0].message.content) == clean(text[:text.index(stop)]) and "content.done" in kinds, kinds


@case("client.openai_parse", "core", ["schema"])
def _(c):
    """its parse helper with a pydantic model"""
    import typing

    import pydantic

    class Trip(pydantic.BaseModel):
        city: typing.Literal["Rome", "Oslo"]
        days: typing.Literal[1, 2, 3]

    r = c.openai().chat.completions.parse(model=c.model, messages=c.messages(), max_tokens=100, temperature=0, response_format=Trip)
    assert r.choices[0].message.parsed.city in ("Rome", "Oslo")


@case("client.openai_async")
def _(c):
    """the async client: eight at once, and one that is cancelled"""
    async def run():
        o = c.async_openai()
        ask = lambda: o.chat.completions.create(model=c.model, messages=c.messages(), max_tokens=24, temperature=0)  # noqa: E731
        slow = asyncio.create_task(o.chat.completions.create(model=c.model, messages=c.messages(), max_tokens=c.long_body()["max_tokens"],
                                                            temperature=0, extra_body={"ignore_eos": True}))
        answers = await asyncio.gather(*[ask() for _ in range(8)])
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        await o.close()
        return [a.choices[0].message.content for a in answers]

    assert set(asyncio.run(run())) == {c.greedy()[0]}


@case("client.langchain")
def _(c):
    """langchain-openai: invoke, stream with usage, tools, structured output"""
    try:
        from langchain_openai import ChatOpenAI
    except ImportError:
        raise Skip("langchain-openai is not installed") from None
    make = lambda n: ChatOpenAI(base_url=c.v1, api_key=c.key or "none", model=c.model, temperature=0, max_tokens=n, max_retries=0, stream_usage=True)  # noqa: E731
    m = make(24)
    assert m.invoke(c.prompt).content == c.greedy()[0]
    pieces = list(m.stream(c.prompt))
    assert "".join(p.content for p in pieces) == c.greedy()[0]
    assert any(p.usage_metadata for p in pieces), "no usage in the stream"
    call = make(200).bind_tools([TOOL], tool_choice="required").invoke("Weather in Rome?").tool_calls
    assert call and call[0]["name"] == "get_weather" and call[0]["args"]["city"] in ("Rome", "Oslo"), call


@case("client.litellm")
def _(c):
    """litellm: answer and stream"""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network otherwise
    try:
        import litellm
    except ImportError:
        raise Skip("litellm is not installed") from None
    kw = dict(model="openai/" + c.model, api_base=c.v1, api_key=c.key or "none", messages=c.messages(), max_tokens=24, temperature=0)
    assert litellm.completion(**kw).choices[0].message.content == c.greedy()[0]
    assert "".join(x.choices[0].delta.content or "" for x in litellm.completion(stream=True, **kw)) == c.greedy()[0]


if __name__ == "__main__":
    sys.exit(main(doc=__doc__))
