#!/usr/bin/env python3
"""Hostile requests against `bitnet serve` with the demo model: odd bytes of HTTP/1.1 and HTTP/2, fields of every wrong kind, schemas,
patterns, grammars, tools, prompts and templates that want harm, streams that are abandoned.

    python hostile.py [--program PATH] [--only PATTERN] [--list]

While all of it runs, a probe asks for health, and a plain question now and then, whose answer must stay what it was alone. At the end no
request may run, no page may be held, and memory may not have grown. Needs httpx, and h2 for the cases of HTTP/2 (left out without).
"""

import argparse
import fnmatch
import json
import socket
import struct
import sys
import threading
import time
import traceback

import httpx

from server import Server, program

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CASES = []


def case(name):
    def add(f):
        CASES.append((name, f))
        return f
    return add


class Target:
    def __init__(self, server):
        self.server = server
        self.port = int(server.url.rsplit(":", 1)[1])
        self.http = httpx.Client(base_url=server.url, timeout=60)

    def connect(self, timeout=45):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(self, data, timeout=45, shut=False):
        """What comes for these bytes until the connection ends or is silent for a while after something came."""
        with self.connect(timeout) as s:
            try:
                s.sendall(data)
                if shut:
                    s.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return read_all(s)

    def post(self, path, body, **kw):
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.http.post(path, content=content, headers={"Content-Type": "application/json"} | kw.pop("headers", {}), **kw)

    def chat(self, **kw):
        return self.post(CHAT, {"messages": [{"role": "user", "content": "Count from 7 to 12."}], "max_tokens": 8, "temperature": 0} | kw)

    def text(self, **kw):
        return self.post(TEXT, {"prompt": "abc", "max_tokens": 4, "temperature": 0} | kw)

    def fine(self, r, *statuses):
        """An answer, or one error object of a status that says whose fault it is."""
        assert r.status_code in (statuses or (200, 400, 404)), f"status {r.status_code}: {r.text[:300]}"
        if r.status_code != 200:
            e = r.json()["error"]
            assert e["message"] and len(e["message"]) < 2000 and e["type"], e
            for secret in ("/root", "/work", ".rs:", "backtrace", "panicked", "mistake in this program"):
                assert secret not in e["message"], e
        return r

    def refused(self, r, param=..., status=400):
        asked = r.request.content[-300:].decode(errors="replace")
        assert r.status_code == status, f"status {r.status_code} for ...{asked}: {r.text[:200]}"
        self.fine(r, status)
        if param is not ...:
            assert r.json()["error"]["param"] == param, (param, r.text[:300])


def read_all(s, quiet=1.0):
    got = b""
    try:
        while chunk := s.recv(65536):
            got += chunk
            s.settimeout(quiet)
    except (TimeoutError, ConnectionError):
        pass
    return got


def statuses(raw):
    return [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]


def request(body=b"", head=b"", path=CHAT, method="POST", host=b"Host: localhost\r\n", length=True, kind=b"Content-Type: application/json\r\n"):
    n = f"Content-Length: {len(body)}\r\n".encode() if length else b""
    return f"{method} {path} HTTP/1.1\r\n".encode() + host + kind + n + head + b"\r\n" + body


ASK = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}).encode()
LONG = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900, "ignore_eos": True, "stream": True, "temperature": 0}
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


# HTTP/1.1

@case("http1.pipelined")
def _(t):
    raw = t.raw(request(ASK) + HEALTH + request(b"{") + request(ASK) + HEALTH)
    assert statuses(raw) == [200, 200, 400, 200, 200], statuses(raw)


@case("http1.pipelined_stream")
def _(t):
    body = json.dumps(LONG | {"max_tokens": 5}).encode()
    raw = t.raw(request(body) + HEALTH)
    assert statuses(raw) == [200, 200] and raw.index(b"[DONE]") < raw.rindex(b"HTTP/1.1 200"), raw[-300:]


@case("http1.chunked_bytes")
def _(t):
    chunks = b"".join(b"1\r\n" + bytes([b]) + b"\r\n" for b in ASK) + b"0\r\n\r\n"
    assert statuses(t.raw(request(chunks, b"Transfer-Encoding: chunked\r\n", length=False))) == [200]


@case("http1.chunked_extensions_and_trailers")
def _(t):
    body = f"{len(ASK):x};a=b;c=\"d\"\r\n".encode() + ASK + b"\r\n0;x\r\nX-Trailer: 1\r\nContent-Length: 5\r\n\r\n"
    assert statuses(t.raw(request(body, b"Transfer-Encoding: chunked\r\n", length=False) + HEALTH)) == [200, 200]


for name, body in {
    "no_number": b"x\r\nabc\r\n0\r\n\r\n", "overflow": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n", "huge": b"7fffffffffffffff\r\nabc\r\n", "negative": b"-1\r\nabc\r\n0\r\n\r\n",
    "no_crlf": b"3\r\nabcd\r\n0\r\n\r\n", "endless_extension": b"3;" + b"a" * 40000 + b"\r\nabc\r\n0\r\n\r\n", "endless_trailers": b"0\r\n" + b"a: b\r\n" * 9000 + b"\r\n",
    "plus": b"+3\r\nabc\r\n0\r\n\r\n", "0x": b"0x3\r\nabc\r\n0\r\n\r\n", "space": b"3 \r\n{}\n\r\n0\r\n\r\n",
}.items():
    @case("http1.chunk_" + name)
    def _(t, body=body):
        got = statuses(t.raw(request(body, b"Transfer-Encoding: chunked\r\n", length=False), shut=True))
        assert got in ([], [400], [431], [413]), got


for name, head in {
    "two_lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n", "length_and_chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "negative_length": b"Content-Length: -5\r\n", "plus_length": b"Content-Length: +5\r\n", "list_of_lengths": b"Content-Length: 5, 6\r\n", "hex_length": b"Content-Length: 0x5\r\n",
    "overflowing_length": b"Content-Length: 99999999999999999999999\r\n", "gzip": b"Transfer-Encoding: gzip\r\n", "chunked_twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "chunked_first": b"Transfer-Encoding: chunked, identity\r\n", "no_colon": b"Nonsense\r\n", "space_in_name": b"A b: c\r\n", "space_before_colon": b"Content-Length : 5\r\n",
    "folded": b"X: a\r\n b\r\n", "nul": b"X: a\0b\r\n", "bare_cr": b"X: a\rb\r\n", "empty_name": b": x\r\n", "control": b"X\x01: a\r\n",
}.items():
    @case("http1.head_" + name)
    def _(t, head=head):
        got = statuses(t.raw(request(b"12345", head, length=False) + HEALTH, shut=True))
        # Whatever it is taken for: no smuggled second answer of another kind, and no 500.
        assert all(s in (200, 400, 411, 413, 415, 501) for s in got) and len(got) <= 2, got


for name, data in {
    "tls": bytes.fromhex("1603010200010001fc0303") + b"\x11" * 500, "nothing": b"", "newlines": b"\r\n" * 20000, "zeros": b"\0" * 70000, "http09": b"GET /\r\n", "http10": b"GET /health HTTP/1.0\r\n\r\n",
    "http29": b"GET /health HTTP/2.9\r\nHost: localhost\r\n\r\n", "no_host": b"GET /health HTTP/1.1\r\n\r\n", "two_hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "foreign_host": b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", "absolute": b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n", "long_path": b"GET /" + b"a" * 60000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", "trace": b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", "star": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lower": b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n", "method": b"A" * 3000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n", "odd_path": b"GET /%00%ff/../..//etc/passwd?a=%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "raw_path": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", "many_headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 400 + b"\r\n",
    "large_header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 30000 + b"\r\n\r\n", "upgrade": b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
    "websocket": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "bare_lf": b"GET /health HTTP/1.1\nHost: localhost\n\n", "range": b"GET / HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-5,6-\r\n\r\n", "get_with_body": b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello" + HEALTH,
    "gzip_bomb_accept": b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: " + b"gzip;q=0.5," * 900 + b"\r\n\r\n",
}.items():
    @case("http1.line_" + name)
    def _(t, data=data):
        raw = t.raw(data, shut=True)
        assert b" 500 " not in raw[:20] and len(raw) < 200_000, raw[:200]


@case("http1.head_in_pieces")
def _(t):
    with t.connect() as s:
        for byte in HEALTH:
            s.sendall(bytes([byte]))
        assert statuses(read_all(s)) == [200]


@case("http1.slow_head_is_cut")
def _(t):
    began = time.monotonic()
    with t.connect() as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        read_all(s)
    assert 5 < time.monotonic() - began < 20, time.monotonic() - began


@case("http1.slow_body_is_cut")
def _(t):
    began = time.monotonic()
    raw = t.raw(request(b"{", b"Content-Length: 5000\r\n", length=False), timeout=60)
    assert time.monotonic() - began < 45 and statuses(raw) in ([408], [400], []), (time.monotonic() - began, raw[:200])


@case("http1.body_shorter_then_gone")
def _(t):
    for _ in range(50):
        with t.connect() as s:
            s.sendall(request(b"{\"messages\"", b"Content-Length: 100000\r\n", length=False))


@case("http1.body_longer")
def _(t):
    got = statuses(t.raw(request(ASK) + b"garbage garbage\r\n\r\n"))
    assert got in ([200, 400], [200]), got


@case("http1.expect")
def _(t):
    with t.connect() as s:
        s.sendall(request(b"", b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(ASK), length=False))
        assert s.recv(100).startswith(b"HTTP/1.1 100")
        s.sendall(ASK)
        assert statuses(read_all(s)) == [200]
    assert statuses(t.raw(request(ASK, b"Expect: the-unexpected\r\n")))[-1] in (200, 417, 400)


for kind, expected in {b"APPLICATION/JSON": 200, b"application/json ; charset=UTF-8": 200, b"application/json; charset=utf-16": None, b"application/json5": 415, b"text/json": 415, b"": 415,
                       b"application/x-www-form-urlencoded": 415, b"multipart/form-data; boundary=x": 415, b"application/json, text/plain": 415, b"\xff\xfe": 415, b"application/jsonx; application/json": 415}.items():
    @case(f"http1.type_{kind.decode('latin-1')}")
    def _(t, kind=kind, expected=expected):
        got = statuses(t.raw(request(ASK, kind=b"Content-Type: " + kind + b"\r\n")))
        assert got == [expected] if expected else got[0] in (200, 400, 415), got


@case("http1.type_twice")
def _(t):
    got = statuses(t.raw(request(ASK, b"Content-Type: text/plain\r\n")))
    assert got[0] in (200, 400, 415), got


@case("http1.encodings")
def _(t):
    for encoding in (b"gzip", b"deflate", b"br", b"x", b"identity, gzip", b"\xff"):
        assert statuses(t.raw(request(ASK, b"Content-Encoding: " + encoding + b"\r\n"))) == [415], encoding


@case("http1.request_ids")
def _(t):
    for given, kept in (("a" * 128, True), ("a" * 129, False), ("a b", False), ("é", False), ("", False), ("<script>", True), ("a\tb", False)):
        r = t.http.get("/health", headers={"X-Request-Id": given.encode()})
        assert r.status_code == 200 and (r.headers["x-request-id"] == given) == kept, (given, r.headers)


@case("http1.keys_of_other_kinds")
def _(t):
    for value in (b"Bearer", b"Basic eDp5", b"Bearer " + b"x" * 9000, b"\xff\xff", b"bearer none", b"Bearer a, Bearer b"):
        assert statuses(t.raw(request(ASK, b"Authorization: " + value + b"\r\n"))) == [200], value


@case("http1.origins")
def _(t):
    for origin in ("null", "http://localhost.evil.example", "http://127.0.0.1.evil.example:80", "file://", "http://localhost:99999", "x" * 5000, "http://LOCALHOST:3", "http://[::1]:3", "http://evil.example#localhost"):
        r = t.chat(max_tokens=1) if origin is None else t.http.post(CHAT, content=ASK, headers={"Content-Type": "application/json", "Origin": origin})
        allowed = r.headers.get("access-control-allow-origin")
        assert allowed in (None, origin) and (allowed is None or "evil" not in allowed and allowed != "null"), (origin, allowed)
        assert r.status_code in (200, 403), r.status_code


@case("http1.connections")
def _(t):
    held = []
    try:
        for _ in range(900):
            held.append(t.connect())
        assert t.http.get("/health").status_code == 200
    finally:
        for s in held:
            s.close()


# HTTP/2

def open_h2(t):
    import h2.config
    import h2.connection
    s = t.connect(20)
    c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False))
    c.initiate_connection()
    s.sendall(c.data_to_send())
    return s, c


def heads(path=CHAT, method="POST", **more):
    return [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost"), ("content-type", "application/json"), *more.items()]


def answers(s, c, streams, seconds=20, grow=True):
    """Statuses by stream until all ended."""
    import h2.events
    seen, over, end = {}, set(), time.monotonic() + seconds
    while over != set(streams) and time.monotonic() < end:
        try:
            data = s.recv(65536)
        except (TimeoutError, ConnectionError):
            break
        if not data:
            break
        for e in c.receive_data(data):
            if isinstance(e, h2.events.ResponseReceived):
                seen[e.stream_id] = dict(e.headers)[b":status"].decode()
            elif isinstance(e, h2.events.DataReceived) and grow:
                c.acknowledge_received_data(e.flow_controlled_length, e.stream_id)
            elif isinstance(e, (h2.events.StreamEnded, h2.events.StreamReset)):
                over.add(e.stream_id)
            elif isinstance(e, h2.events.ConnectionTerminated):
                return seen
        s.sendall(c.data_to_send())
    return seen


@case("http2.many_streams")
def _(t):
    s, c = open_h2(t)
    ids = []
    for _ in range(90):
        i = c.get_next_available_stream_id()
        c.send_headers(i, heads())
        c.send_data(i, ASK, end_stream=True)
        ids.append(i)
    s.sendall(c.data_to_send())
    got = answers(s, c, ids, 60)
    s.close()
    assert len(got) == 90 and set(got.values()) <= {"200", "429"}, got


@case("http2.rapid_reset")
def _(t):
    s, c = open_h2(t)
    try:
        for k in range(2000):
            i = c.get_next_available_stream_id()
            c.send_headers(i, heads())
            c.send_data(i, ASK, end_stream=True)
            c.reset_stream(i)
            if k % 50 == 0:
                s.sendall(c.data_to_send())
        s.sendall(c.data_to_send())
    except OSError:
        pass  # That it ends such a connection is right.
    s.close()


@case("http2.window_of_nothing")
def _(t):
    import h2.settings
    s, c = open_h2(t)
    c.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    for _ in range(8):
        i = c.get_next_available_stream_id()
        c.send_headers(i, heads())
        c.send_data(i, json.dumps(LONG).encode(), end_stream=True)
    s.sendall(c.data_to_send())
    answers(s, c, [99999], 4, grow=False)
    s.close()


@case("http2.floods")
def _(t):
    for frame in (b"\0\0\x08\x06\0\0\0\0\0" + b"x" * 8, b"\0\0\0\x04\0\0\0\0\0", b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\x10", b"\0\0\0\0\0\0\0\0\x01", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"):
        s, c = open_h2(t)
        try:
            for _ in range(200):
                s.sendall(frame * 200)
        except OSError:
            pass
        s.close()


@case("http2.continuations")
def _(t):
    s, c = open_h2(t)
    try:
        s.sendall(b"\0\0\x01\x01\0\0\0\0\x01\x82")
        for _ in range(3000):
            s.sendall(b"\0\x04\0\x09\0\0\0\0\x01" + b"\x40\x01a\x02bb" * 170 + b"\x82\x82\x82\x82")
    except OSError:
        pass
    s.close()


@case("http2.odd_heads")
def _(t):
    for head in ([(":method", "POST")], [(":path", "/health")], heads() + [("connection", "close")], heads() + [("te", "gzip")], heads() + [("x", "a" * 40000)], heads() + [("Upper", "x")],
                 heads() + [(":path", "/again")], [("a", "b")] + heads(), heads() + [("content-length", "3")], heads(method="CONNECT"), heads(path=""), heads(path="health"), heads() + [("a", "b\0c")]):
        s, c = open_h2(t)
        try:
            c.send_headers(1, head)
            c.send_data(1, ASK, end_stream=True)
            s.sendall(c.data_to_send())
            got = answers(s, c, [1], 5)
            assert "500" not in got.values(), (head, got)
        except OSError:
            pass
        finally:
            s.close()


@case("http2.broken_frames")
def _(t):
    for data in (b"\xff" * 5000, b"\0\0\0\x01\x04\0\0\0\0", b"\xff\xff\xff\0\0\0\0\0\x01", b"\0\0\x04\x03\0\0\0\0\x07\0\0\0\0", b"\0\0\x03\x05\0\0\0\0\x01abc", b"\0\0\0\x09\x04\0\0\0\x03", b"\0\0\x02\x01\x05\0\0\0\x02\x82\x86"):
        s, c = open_h2(t)
        try:
            s.sendall(data)
            s.settimeout(3)
            read_all(s)
        except OSError:
            pass
        s.close()
    with t.connect() as s:
        s.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        time.sleep(0.2)


@case("http2.stream_and_gone")
def _(t):
    for _ in range(20):
        s, c = open_h2(t)
        c.send_headers(1, heads())
        c.send_data(1, json.dumps(LONG).encode(), end_stream=True)
        s.sendall(c.data_to_send())
        s.recv(2000)
        s.close()
    rest(t)


@case("http2.reset_in_mid_stream")
def _(t):
    s, c = open_h2(t)
    for _ in range(30):
        i = c.get_next_available_stream_id()
        c.send_headers(i, heads())
        c.send_data(i, json.dumps(LONG).encode(), end_stream=True)
        s.sendall(c.data_to_send())
        c.receive_data(s.recv(65536))
        c.reset_stream(i)
        s.sendall(c.data_to_send())
    rest(t)
    i = c.get_next_available_stream_id()
    c.send_headers(i, heads())
    c.send_data(i, ASK, end_stream=True)
    s.sendall(c.data_to_send())
    assert answers(s, c, [i])[i] == "200"
    s.close()


# Bodies

for name, body in {
    "bom": b"\xef\xbb\xbf" + ASK, "utf16": ASK.decode().encode("utf-16"), "latin1": b'{"messages":[{"role":"user","content":"\xe9"}]}', "two": ASK + ASK, "array": b"[" + ASK + b"]", "deep": b"[" * 100000, "deep_objects": b'{"a":' * 50000,
    "deep_field": b'{"messages":[{"role":"user","content":"hi"}],"metadata":' + b"[" * 126 + b"]" * 126 + b"}", "deeper_field": b'{"messages":[{"role":"user","content":"hi"}],"metadata":' + b"[" * 200 + b"]" * 200 + b"}",
    "nan": b'{"temperature":NaN}', "infinity": b'{"temperature":1e999,"messages":[]}', "minus_zero": ASK[:-1] + b',"temperature":-0}', "number": b"5", "null": b"null", "trailing_comma": b'{"messages":[],}', "comment": b"{/*x*/}",
    "single_quotes": b"{'messages':[]}", "nul": b"\0", "nul_in_text": b'{"messages":[{"role":"user","content":"a\\u0000b"}],"max_tokens":2}', "raw_control": b'{"messages":[{"role":"user","content":"a\x01b"}]}',
    "lone_surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}', "swapped_surrogates": b'{"messages":[{"role":"user","content":"\\udc00\\ud800"}]}', "duplicates": b'{"messages":1,"messages":[{"role":"user","content":"hi"}],"max_tokens":2}',
    "many_keys": json.dumps({f"k{i}": i for i in range(100_000)}).encode(), "long_key": json.dumps({"k" * 3_000_000: 1}).encode(), "empty_key": b'{"":1}', "long_number": b'{"seed":' + b"1" * 100_000 + b"}", "many_zeros": b'{"temperature":0.' + b"0" * 100_000 + b"1}",
    "exponent": b'{"max_tokens":1e-99999999999999999999}', "spaces": b" " * 3_000_000 + ASK, "escapes": b'{"user":"' + b"\\u0041" * 600_000 + b'"}',
}.items():
    @case("body." + name)
    def _(t, body=body):
        t.fine(t.post(CHAT, body))


WRONG = [True, False, 0, 1, -1, 1.5, -1.5, 8.0, 1e308, -1e308, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**30, "", "x", "1", "null", "\u0000", "é" * 100, [], {}, [[]], [None], [1], [""], ["a"], [{}], {"a": 1}, {"1": 1}, {"1": "1"}, [[1]], [[[]]],
         {"type": "x"}, {"type": None}, {"type": []}, {"type": "function"}, {"type": "json_schema"}, [1.5], [-1], [2**64], [True]]


@case("fields.every_kind")
def _(t):
    """Every field of openapi.json with values of every kind: an answer, or a 400 that names it."""
    api = t.http.get("/openapi.json").json()
    for path in (CHAT, TEXT, "/tokenize", "/detokenize", "/apply-template"):
        content = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in content:
            content = api["components"]["schemas"][content["$ref"].rsplit("/", 1)[1]]
        fields = content["properties"]
        assert len(fields) > 1, path
        base = {CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}, TEXT: {"prompt": "hi", "max_tokens": 1}, "/tokenize": {"prompt": "hi"}, "/detokenize": {"tokens": [1]}, "/apply-template": {"messages": [{"role": "user", "content": "hi"}]}}[path]
        for name in fields:
            for wrong in WRONG:
                for stream in (False, True) if path in (CHAT, TEXT) and wrong in (True, "x", 1.5) else (False,):
                    body = base | ({"stream": True} if stream else {}) | {name: wrong}
                    r = t.post(path, body)
                    try:
                        t.fine(r)
                    except AssertionError as e:
                        raise AssertionError(f"{path} {name}={wrong!r}: {e}") from None
                    if r.status_code == 400:
                        e = r.json()["error"]
                        own = e["param"] is None or e["param"].split(".")[0].split("[")[0] in {name, *base}
                        assert own or name in ("n", "best_of", "logprobs", "top_logprobs", "echo", "stream_options", "tools", "tool_choice"), f"{path} {name}={wrong!r}: {e}"
            r = t.post(path, base | {name: None})
            assert r.status_code == 200 or name in base or (path == "/tokenize" and name in ("content", "messages")), f"{path} {name}=null: {r.text[:200]}"


@case("fields.pairs")
def _(t):
    """Two structures at once, and options without what they belong to."""
    structured = [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}}, {"guided_regex": "a"}, {"guided_json": {}}, {"guided_choice": ["a"]}, {"grammar": "root ::= \"a\""}, {"json_schema": {"type": "object"}}, {"guided_grammar": "start: \"a\""}]
    for i, a in enumerate(structured):
        assert t.chat(**a).status_code == 200, a
        for b in structured[i + 1:]:
            t.refused(t.chat(**a, **b))
    for bad in ({"top_logprobs": 1}, {"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 1}, {"stream_options": {}}, {"stream": False, "stream_options": {"include_usage": True}}, {"echo": True}, {"add_generation_prompt": True, "continue_final_message": True},
                {"tool_choice": "auto"}, {"tool_choice": "required"}, {"n": 17}, {"priority": 1}, {"chat_template": "x"}, {"max_tokens": 5, "min_tokens": 6}, {"structured_outputs": {"regex": "a", "choice": ["a"]}}):
        r = t.fine(t.chat(**bad))
        if not ("top_logprobs" in bad and bad["top_logprobs"] == 0) and bad != {"tool_choice": "auto"}:
            assert r.status_code == 400, (bad, r.text[:200])
    for good in ({"max_tokens": 1, "max_completion_tokens": 2}, {"max_tokens": 10**9}, {"seed": -(2**63)}, {"seed": 2**64 - 1}, {"temperature": 8.0}, {"n": 2.0}, {"top_k": -1}, {"top_k": 0}, {"stop": []}, {"stop": ["a"] * 16}, {"stop": "é" * 128}, {"logit_bias": {}},
                 {"stop_token_ids": []}, {"response_format": {"type": "text"}}, {"tools": []}, {"tool_choice": "none"}, {"priority": 0}, {"top_p": 1}, {"min_p": 0}, {"temperature": 0.00001}, {"logprobs": False}, {"top_logprobs": None, "logprobs": True}):
        assert t.chat(**good).status_code == 200, (good, t.chat(**good).text[:200])
    for bad in ({"stop": ["a"] * 17}, {"stop": "é" * 129}, {"stop": "a" * 257}, {"seed": 2**64}, {"seed": -(2**64)}, {"seed": 1.5}, {"temperature": 100.1}, {"top_p": 0}, {"min_p": 1.1}, {"top_k": -2}, {"logit_bias": {"768": 1}}, {"logit_bias": {"1.5": 1}}, {"logit_bias": {" 1": 1}},
                {"logit_bias": {"1": None}}, {"logit_bias": {"1": 100.5}}, {"repetition_penalty": 0}, {"stop_token_ids": [768]}, {"presence_penalty": 2.1}, {"frequency_penalty": -2.1}):
        t.refused(t.chat(**bad))


@case("messages.kinds")
def _(t):
    user = {"role": "user", "content": "hi"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for messages in ([None], [[]], ["x"], [{}], [user | {"role": None}], [user | {"role": 5}], [user | {"role": "USER"}], [user | {"role": "function"}], [user | {"content": None}], [user | {"content": {}}], [user | {"content": [None]}], [user | {"content": [{}]}],
                     [user | {"content": [{"type": "text"}]}], [user | {"content": [{"type": "text", "text": None}]}], [user | {"content": [{"type": "text", "text": 5}]}], [user | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                     [user | {"content": [{"type": "input_audio", "input_audio": {}}]}], [user | {"content": [{"type": "file"}]}], [user | {"content": [{"type": 5}]}], [user | {"content": [{"text": "x"}]}], [user, {"role": "assistant"}, user], [user, {"role": "assistant", "content": None}, user],
                     [user, {"role": "assistant", "content": None, "tool_calls": []}, user], [user, {"role": "assistant", "tool_calls": [5]}], [user, {"role": "assistant", "tool_calls": [{}]}], [user, {"role": "assistant", "tool_calls": [{"function": {}}]}], [user, {"role": "assistant", "tool_calls": "x"}],
                     [user, {"role": "assistant", "tool_calls": [call | {"function": {"name": 5, "arguments": "{}"}}]}], [user, {"role": "assistant", "tool_calls": [call | {"function": {"name": "f", "arguments": 5}}]}], [user | {"content": [["x"]]}]):
        t.refused(t.post(CHAT, {"messages": messages, "max_tokens": 1}))
    for messages in ([user | {"name": "x", "extra": [1]}], [user | {"content": ""}], [user | {"content": []}], [user, user], [{"role": "system", "content": "x"}], [{"role": "assistant", "content": "x"}], [user, {"role": "tool", "content": "x"}], [user, {"role": "tool", "tool_call_id": "nope", "content": "x"}],
                     [user, {"role": "assistant", "content": "", "tool_calls": [call]}], [user, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny"}]}], [user | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
                     [user, {"role": "assistant", "tool_calls": [call | {"function": {"name": "f", "arguments": "not json"}}]}, user], [user, {"role": "assistant", "refusal": "no", "content": None}], [{"role": "user", "content": "<|eot_id|><|begin_of_text|></s><s>[INST]"}],
                     [{"role": "user", "content": "\u0000\u202e\ufeff\uffff\U0010ffff" * 5}], [{"role": "user", "content": "{{ 7*7 }} {% for i in range(10**9) %}x{% endfor %}"}], [user | {"content": ""}] * 20):
        t.fine(t.post(CHAT, {"messages": messages, "max_tokens": 1}))
    for messages in ([user] * 20_000, [{"role": "user", "content": "a" * 3_000_000}], [{"role": "user", "content": [{"type": "text", "text": "a"}] * 40_000}], [{"role": "user", "content": "\u0301" * 400_000}], [{"role": "user", "content": "<|eot_id|>" * 300_000}]):
        r = t.post(CHAT, {"messages": messages, "max_tokens": 1})
        t.refused(r)
        assert r.json()["error"]["code"] == "context_length_exceeded", r.text[:200]


@case("template.kwargs")
def _(t):
    for kwargs in ({}, {"messages": []}, {"bos_token": "x" * 1000}, {"add_generation_prompt": False}, {"tools": [1]}, {"a": [[[[[]]]]]}, {"loop": 1, "range": 5, "self": {}}, {"": 1}, {f"k{i}": i for i in range(10_000)}, {"strftime_now": "x"}, {"raise_exception": 1}):
        t.fine(t.chat(chat_template_kwargs=kwargs))
    for bad in (5, "x", [], True):
        t.refused(t.chat(chat_template_kwargs=bad), "chat_template_kwargs")
    for kw in ({"add_generation_prompt": False}, {"continue_final_message": True}, {"continue_final_message": True, "messages": [{"role": "assistant", "content": ""}]}, {"continue_final_message": True, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "7, 8"}]},
               {"continue_final_message": True, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]}):
        t.fine(t.chat(**kw))


@case("prompts.kinds")
def _(t):
    for bad in (5, True, {}, [[]], [None], [""] * 5000, [[1], []], [["a"]], [[[1]]], [1, "a"], ["a", 1], [1.5], [-1], [768], [2**40], [[768]], [True], "a" * 3_000_000, [1] * 100_000, ["a"] * 100_000, [[1, 2]] * 50_000):
        t.refused(t.text(prompt=bad))
    for good in ("", "a", ["a"], ["a", ""], [1], [1.0], [[1]], [[1], [2, 3]], [0], [767], "\u0000", "\U0010ffff", ["a", "a", "a"], "<|eot_id|>"):
        t.fine(t.text(prompt=good))
    for kw in ({"n": 16, "prompt": ["a"] * 16}, {"n": 16, "prompt": ["a"] * 100}, {"best_of": 1}, {"best_of": 2, "n": 2}, {"best_of": 2}, {"suffix": ""}, {"suffix": "x"}, {"echo": True, "max_tokens": 0}, {"max_tokens": 0}, {"echo": True, "max_tokens": 0, "n": 3}, {"echo": True, "logprobs": 20, "stream": True},
               {"echo": True, "logprobs": 0, "max_tokens": 0, "prompt": ["a", "bcd"]}, {"echo": True, "stop": "b"}, {"logprobs": 21}, {"logprobs": True}, {"logprobs": False}, {"logprobs": 0}, {"echo": True, "prompt": [5, 6, 7], "logprobs": 2}, {"prompt": ""} | {"echo": True, "logprobs": 1}):
        t.fine(t.text(**kw), 200, 400, 429)


# What answers must obey

def takes(t, seconds, **kw):
    began = time.monotonic()
    r = t.fine(t.chat(**kw))
    took = time.monotonic() - began
    assert took < seconds, f"{took:.1f} s"
    return r


def schema(s):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": s}}}


NAMES = [f"p{i}" for i in range(2000)]
SCHEMAS = {
    "empty": {}, "true": True, "false": False, "null": None, "number": 5, "text": "x", "list": [], "types": {"type": ["string", "null", "object"]}, "no_types": {"type": []}, "odd_types": {"type": ["string", 5]}, "type_object": {"type": {}}, "properties_list": {"type": "object", "properties": []},
    "properties_null": {"type": "object", "properties": None}, "property_number": {"type": "object", "properties": {"a": 5}}, "required_text": {"type": "object", "required": "a"}, "required_numbers": {"type": "object", "required": [1]}, "required_unknown": {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
    "enum_text": {"enum": "a"}, "enum_mixed": {"enum": [1, "a", None, [1], {"a": 1}, 1.5, True]}, "const_deep": {"const": {"a": [{"b": [None]}]}}, "contradiction": {"type": "string", "const": 5}, "not": {"not": {}}, "if": {"if": {}, "then": {}, "else": {}}, "dependent": {"dependentRequired": {"a": ["b"]}},
    "unevaluated": {"unevaluatedProperties": False}, "contains": {"type": "array", "contains": {"type": "integer"}}, "unique": {"type": "array", "uniqueItems": True}, "names": {"type": "object", "propertyNames": {"pattern": "^a"}}, "minimum_text": {"type": "integer", "minimum": "a"}, "minimum_large": {"type": "integer", "minimum": 1e300},
    "bounds": {"type": "integer", "minimum": 5, "maximum": 4}, "exclusive": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-300}, "multiple_zero": {"type": "number", "multipleOf": 0}, "multiple_small": {"type": "number", "multipleOf": 1e-30}, "multiple_negative": {"type": "integer", "multipleOf": -3},
    "length": {"type": "string", "minLength": 5, "maxLength": 4}, "length_negative": {"type": "string", "minLength": -1}, "length_huge": {"type": "string", "minLength": 2**40}, "length_float": {"type": "string", "maxLength": 2.5}, "items_huge": {"type": "array", "minItems": 2**40}, "items_none": {"type": "array", "items": False, "minItems": 1},
    "pattern_bad": {"type": "string", "pattern": "("}, "pattern_number": {"type": "string", "pattern": 5}, "pattern_look": {"type": "string", "pattern": "(?=a)b"}, "pattern_back": {"type": "string", "pattern": "(a)\\1"}, "pattern_nested": {"type": "string", "pattern": "^(((a{1,99}){1,99}){1,99})$"}, "pattern_class": {"type": "string", "pattern": "[\\p{L}]{1,4000}"},
    "pattern_never": {"type": "string", "pattern": "a^"}, "format_odd": {"type": "string", "format": "nonsense"}, "format_all": {"type": "object", "properties": {f: {"type": "string", "format": f} for f in ("date-time", "date", "time", "email", "uri", "uuid", "ipv4", "ipv6", "hostname", "duration", "regex")}},
    "ref_self": {"$ref": "#"}, "ref_number": {"$ref": 5}, "ref_web": {"$ref": "http://169.254.169.254/latest"}, "ref_file": {"$ref": "file:///etc/passwd"}, "ref_pointer": {"$ref": "#/a~2b/%zz"}, "ref_cycle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "ref_dynamic": {"$dynamicRef": "#x", "$dynamicAnchor": "x"}, "id_odd": {"$id": "::::", "type": "object"}, "schema_odd": {"$schema": "http://evil.example/schema"}, "schema_draft4": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1, "exclusiveMinimum": True}, "schema_number": {"$schema": 5},
    "recursive": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "tree": {"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}, "v": {"type": "integer"}}, "required": ["v"]}, "any_self": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "all_self": {"allOf": [{"$ref": "#"}]},
    "one_many": {"oneOf": [{"const": i} for i in range(3000)]}, "any_empty": {"anyOf": []}, "any_bad": {"anyOf": [{"type": "nosuch"}, {"type": "null"}]}, "all_many": {"allOf": [{"properties": {n: {}}} for n in NAMES[:300]]}, "products": {"allOf": [{"anyOf": [{"required": ["a%d" % i]}, {"required": ["b%d" % i]}]} for i in range(16)]},
    "optional": {"type": "object", "properties": {n: {"type": "string"} for n in NAMES}}, "optional_twice": {"type": "object", "properties": {n: {"type": "string"} for n in NAMES + [n + "x" for n in NAMES]}}, "required": {"type": "object", "properties": {n: {"type": "string"} for n in NAMES}, "required": NAMES},
    "patterns": {"type": "object", "patternProperties": {f"^{n}$": {} for n in NAMES[:500]}}, "counted": {"type": "object", "properties": {n: {} for n in NAMES[:500]}, "minProperties": 1, "additionalProperties": False}, "counted_high": {"type": "object", "properties": {n: {} for n in NAMES[:400]}, "required": NAMES[:200], "maxProperties": 201, "additionalProperties": False},
    "alternatives": {"type": "object", "properties": {n: {} for n in NAMES[:1000]}, "anyOf": [{"required": [n]} for n in NAMES[:100]]}, "deep_items": json.loads('{"items":' * 90 + "{}" + "}" * 90), "deeper_items": json.loads('{"items":' * 110 + "{}" + "}" * 110), "enum_large": {"enum": ["x" * 200 + str(i) for i in range(1000)]},
    "unicode_names": {"type": "object", "properties": {"é\u0000\"\\\n😀": {"type": "integer"}}, "required": ["é\u0000\"\\\n😀"], "additionalProperties": False}, "x_guidance": {"type": "object", "x-guidance": {"lenient": True, "whitespace_pattern": "(a*)*"}}, "guidance_bad": {"x-guidance": 5}, "prefix": {"type": "array", "prefixItems": [{"const": n} for n in NAMES], "items": False, "minItems": 2000},
}

for name, s in SCHEMAS.items():
    @case("schema." + name)
    def _(t, s=s):
        takes(t, 10, **schema(s))


PATTERNS = ["", "a", "a*", "(a*)*", "(a|a)*", "(a+)+$", "^a$", "a|", "|", "()", "[]", "[^]", "[a", "a{2,1}", "a{99999}", "(a{1,999}){1,999}", "a{0}", "\\", "\\b", "\\B\\b", "(?i)abc", "(?P<n>a)", "(?<!a)b", "(?=a)", "\\1", "\\p{Han}{1,50}", "\\p{Nonsense}", "\\x{110000}", "\\u{d800}", "[\\s\\S]{5000}", ".{5000}", "(.{0,900}a.{0,900}b.{0,900})*", "((a|b)*a(a|b){18})",
            "[^\\x00-\\x{10FFFF}]", "a^", "$a", "é{3}", "\u0000", "a" * 60_000, "(" * 5000 + ")" * 5000, "[a-z]" * 8000, "(a|" * 3000 + "b" + ")" * 3000, "\\d+" * 5000, "(\\w+\\s?)+", "x" * 70_000, "(?s:.)*", "(?x) a # b", "[[:alpha:]]+", "a++", "a*?", "(?R)", "(*ACCEPT)"]


@case("structured.patterns")
def _(t):
    for pattern in PATTERNS:
        try:
            takes(t, 10, structured_outputs={"regex": pattern})
        except AssertionError as e:
            raise AssertionError(f"{pattern[:60]!r}: {e}") from None


GRAMMARS = ["", " ", "start:", "start: ", "start: start", "start: start start", "start: a\na: b\nb: a", "start: \"\"", "start: /a/ start?", "start: nosuch", "START: \"a\"", "start: \"a\"*", "start: (\"a\"*)*", "start: \"a\"~1..99999", "start: \"a\" ~ 5", "start: /(/", "start[", "%import common.INT\nstart: INT", "%ignore / /\nstart: \"a\"", "%include x\nstart: \"a\"",
            "start: %json {\"type\": \"integer\"}", "start: %json {", "start: %json " + json.dumps(SCHEMAS["patterns"]), "start: %json " + json.dumps(SCHEMAS["counted"]), "start: %json " + json.dumps({"type": "number", "multipleOf": 999999937}), "start: %json " + "{\"items\":" * 200 + "{}" + "}" * 200, "start: %regex {\"substring_words\": \"a b c\"}", "start: %regex {}",
            "start: %lark {\nstart: \"a\"\n}", "start: %lark {", "start: <[1-5]>", "start: <|eot_id|>", "start: <nosuch>", "start: @other", "start[capture=\"x\"]: \"a\"", "start[max_tokens=5]: /a*/", "start[temperature=0.5]: /a/", "start[lazy]: /a+/", "start[stop=\"\"]: /a/", "?start: \"a\"", "!start: \"a\"", "start: \"\\xff\\ud800\"", "start: \"a\" -> b", "start.5: \"a\"",
            "start: " + " | ".join(f"a{i}" for i in range(2000)) + "\n" + "\n".join(f"a{i}: \"{i}\"" for i in range(2000)), "\n".join(f"a{i}: a{i+1} a{i+1}" for i in range(40)) + "\na40: \"x\"\nstart: a0", "start: " + "(" * 2000 + "\"a\"" + ")" * 2000, "start: \"" + "a" * 60_000 + "\"",
            "root ::= \"a\"", "root ::= ", "root ::= root", "root ::= root root | \"a\"", "root ::= x", "root ::= \"a\"{1,99999}", "root ::= [", "root ::= [^]", "root ::= [a-]", "root ::= [z-a]", "root ::= \"\\x\"", "root ::= \"\\U0010FFFF\"", "x ::= \"a\"", "root ::= (((", "root ::= \"a\" # comment", "root ::= .", "root ::= \"a\"**", "root ::= " + "(" * 3000 + "\"a\"" + ")" * 3000,
            "root ::= " + " ".join("\"a\"?" for _ in range(5000)), "root ::= a\n" + "\n".join(f"a{i or ''} ::= a{i+1} | a{i+1} a{i+1}" for i in range(0, 30)) + "\na30 ::= \"x\"", "\ufeffroot ::= \"a\"", "root ::= <[5]>", "::=", "::= ::= ::="]


@case("structured.grammars")
def _(t):
    for grammar in GRAMMARS:
        for field in ("structured_outputs", "grammar"):
            try:
                takes(t, 10, **{field: {"grammar": grammar} if field == "structured_outputs" else grammar})
            except AssertionError as e:
                raise AssertionError(f"{field} {grammar[:80]!r}: {e}") from None


@case("structured.choices")
def _(t):
    for choice in ([], [""], ["", "a"], ["a", "a"], ["a", "ab", "abc"], ["\u0000"], ["<|eot_id|>"], ["é😀"], ["x" * 5000, "y"], [str(i) for i in range(9000)], [5], "a", {}, None, [None], ["a" * 70_000]):
        takes(t, 10, structured_outputs={"choice": choice})
    for odd in ({}, {"regex": None}, {"nosuch": 1}, {"json": "{}"}, {"json": "{"}, {"json": "5"}, {"json_object": True}, {"json_object": False}, {"regex": 5}, {"grammar": 5}, {"json": None, "regex": "a"}, {"structural_tag": "x"}, {"whitespace_pattern": "x"}):
        takes(t, 10, structured_outputs=odd)
    for odd in ({"type": "json_schema", "json_schema": {}}, {"type": "json_schema", "json_schema": {"schema": None}}, {"type": "json_schema", "json_schema": {"name": 5, "schema": {}}}, {"type": "json_schema", "json_schema": []}, {"type": "json_schema", "schema": {}}, {"type": "json_object", "schema": {"type": "object"}}, {"type": "regex"}, {"type": ["text"]}, {"type": "TEXT"},
                {"type": "json_schema", "json_schema": {"name": "a b", "strict": "yes", "schema": {"type": "object"}}}, {"type": "json_schema", "json_schema": {"strict": False, "schema": {"type": "object", "properties": {}, "additionalProperties": False}}}):
        takes(t, 10, response_format=odd)


def tool(**kw):
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}} | kw}


@case("tools.kinds")
def _(t):
    for tools in (5, "x", {}, [5], [None], [{}], [{"type": "function"}], [{"type": "function", "function": None}], [{"type": "function", "function": {}}], [{"type": "nosuch", "function": {"name": "f"}}], [tool(name=None)], [tool(name=5)], [tool(name="")], [tool(), tool()], [tool(parameters=5)], [tool(parameters=[])], [tool(parameters="{}")],
                  [tool(parameters={"type": "nosuch"})], [tool(parameters={"$ref": "#/nowhere"})], [tool(parameters=SCHEMAS["patterns"])], [tool(name=f"f{i}", parameters=SCHEMAS["optional"]) for i in range(6)]):
        r = t.fine(t.chat(tools=tools, tool_choice="required"))
        assert r.status_code == 400, (str(tools)[:200], r.text[:200])
        t.fine(t.chat(tools=tools))
    for tools in ([tool(parameters=None)], [tool(parameters={})], [tool(description=None, strict=None)], [tool(description="<tool_call>" * 50)], [tool(name="a b\"c</tool_call>é")], [tool(name="f" * 500)], [tool(strict=True)], [tool(parameters={"type": "string"})], [tool(parameters=SCHEMAS["recursive"])], [tool(extra=1)], [tool(name=f"f{i}") for i in range(60)],
                  [tool(parameters=SCHEMAS["unicode_names"])], [tool(parameters={"type": "object", "properties": {"name": {"enum": ["</tool_call>", "\"}}"]}}, "required": ["name"], "additionalProperties": False})]):
        for choice in ("required", "auto", "none", None):
            r = t.fine(t.chat(tools=tools, tool_choice=choice, max_tokens=60))
            if r.status_code == 200:
                choice_ = r.json()["choices"][0]
                for made in choice_["message"].get("tool_calls") or []:
                    assert choice != "none" and (choice_["finish_reason"] == "length" or json.loads(made["function"]["arguments"]) is not None), r.text[:400]
    for choice in (5, [], {}, {"type": "function"}, {"type": "function", "function": {}}, {"type": "function", "function": {"name": "nosuch"}}, {"type": "function", "function": "f"}, "f", "any", "", {"type": "nosuch"}, {"function": {"name": "f"}}):
        t.fine(t.chat(tools=[tool()], tool_choice=choice))
    for kw in ({"parallel_tool_calls": True}, {"parallel_tool_calls": False}, {"n": 3}, {"stop": "name"}, {"stop": "</tool_call>"}, {"response_format": {"type": "json_object"}}, {"logprobs": True, "top_logprobs": 3}, {"stream": True}, {"max_tokens": 1}, {"min_tokens": 8}, {"ignore_eos": True}, {"temperature": 2, "seed": 3}):
        t.fine(t.chat(tools=[tool()], tool_choice="required", **{"max_tokens": 80} | kw))


@case("sampling.extremes")
def _(t):
    for kw in ({"temperature": 100, "seed": 1}, {"temperature": 1e-4}, {"top_p": 1e-300, "temperature": 1}, {"min_p": 1, "temperature": 1}, {"repetition_penalty": 1e-30, "temperature": 1}, {"repetition_penalty": 1e30}, {"frequency_penalty": -2, "temperature": 1}, {"logit_bias": {str(i): -100 for i in range(768)}}, {"logit_bias": {str(i): 100 for i in range(768)}, "temperature": 1},
               {"logit_bias": {str(i): -100 for i in range(767)}}, {"logit_bias": {"5": -100}, "structured_outputs": {"choice": ["a"]}}, {"logprobs": True, "top_logprobs": 20, "logit_bias": {str(i): -100 for i in range(760)}}, {"stop": ["a", "b", "c", "d", "e", "1", " ", ","]}, {"stop_token_ids": list(range(768))}, {"min_tokens": 8, "stop_token_ids": list(range(700))},
               {"n": 16, "temperature": 1, "seed": 2**64 - 1}, {"ignore_eos": True, "max_tokens": 10**18}, {"min_tokens": 10**18}, {"seed": 0, "temperature": 1, "top_k": 10**9}):
        r = t.fine(t.chat(**kw))
        if r.status_code == 200:
            assert "NaN" not in r.text and "Infinity" not in r.text


# Streams that are left

def rest(t, seconds=8):
    end = time.monotonic() + seconds
    while (n := t.server.gauge("vllm:num_requests_running") + t.server.gauge("vllm:num_requests_waiting")) and time.monotonic() < end:
        time.sleep(0.1)
    assert n == 0, f"{n} requests still run"


@case("left.reset")
def _(t):
    for _ in range(60):
        s = t.connect()
        s.sendall(request(json.dumps(LONG).encode()))
        s.recv(300)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    rest(t)


@case("left.before_the_answer")
def _(t):
    for _ in range(100):
        s = t.connect()
        s.sendall(request(json.dumps(LONG | {"stream": False}).encode()))
        s.close()
    rest(t)


@case("left.half_closed")
def _(t):
    for stream in (True, False):
        raw = t.raw(request(json.dumps(LONG | {"max_tokens": 20, "stream": stream}).encode()), shut=True)
        assert statuses(raw) in ([200], []), raw[:200]
    rest(t)


@case("left.in_the_queue")
def _(t):
    held = []
    for _ in range(60):
        s = t.connect()
        s.sendall(request(json.dumps(LONG | {"n": 4}).encode()))
        held.append(s)
    time.sleep(0.5)
    for s in held:
        s.close()
    rest(t)


@case("left.slow_readers")
def _(t):
    held = []
    for _ in range(12):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.connect(("127.0.0.1", t.port))
        s.sendall(request(json.dumps(LONG | {"logprobs": True, "top_logprobs": 20}).encode()))
        held.append(s)
    time.sleep(2)
    assert t.chat(max_tokens=2).status_code in (200, 429)
    for s in held:
        s.close()
    rest(t)


@case("left.during_a_grammar")
def _(t):
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900, "stream": True} | schema(SCHEMAS["optional"])).encode()
    for _ in range(20):
        s = t.connect()
        s.sendall(request(body))
        s.close()
    rest(t, 30)


@case("many.hostile_schemas_at_once")
def _(t):
    """Others are answered meanwhile."""
    stop = threading.Event()

    def attack(i):
        with httpx.Client(base_url=t.server.url, timeout=120) as c:
            while not stop.is_set():
                s = {"type": "object", "properties": {f"q{i}_{time.monotonic()}_{k}": {"type": "string"} for k in range(1000)}}
                c.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | schema(s))
    threads = [threading.Thread(target=attack, args=(i,)) for i in range(24)]
    [x.start() for x in threads]
    try:
        time.sleep(1)
        slowest = 0
        for _ in range(10):
            began = time.monotonic()
            assert t.chat(max_tokens=2).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5, f"a plain question took {slowest:.1f} s"
    finally:
        stop.set()
        [x.join() for x in threads]


class Probe(threading.Thread):
    """Asks for health and a question all the time."""

    def __init__(self, server, expected):
        super().__init__(daemon=True)
        self.server, self.expected, self.slowest, self.wrong, self.over = server, expected, 0.0, [], threading.Event()

    def run(self):
        with httpx.Client(base_url=self.server.url, timeout=60) as c:
            while not self.over.wait(0.1):
                began = time.monotonic()
                try:
                    if c.get("/health").status_code != 200:
                        self.wrong.append("health")
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    for body, text in self.expected:
                        r = c.post(CHAT, json=body)
                        if r.status_code == 200 and r.json()["choices"][0]["message"]["content"] != text:
                            self.wrong.append(r.text)
                        elif r.status_code not in (200, 429):
                            self.wrong.append(r.text)
                except httpx.HTTPError as e:
                    self.wrong.append(repr(e))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", help="the program `bitnet`; what was built last unless given")
    p.add_argument("--only", default="*", help="run only cases that match this pattern")
    p.add_argument("--rounds", type=int, default=1, help="how often; memory may not grow from the second one on")
    p.add_argument("--list", action="store_true", help="only list the cases")
    args = p.parse_args()
    chosen = [(name, f) for name, f in CASES if fnmatch.fnmatch(name, args.only)]
    if args.list:
        print("\n".join(name for name, _ in chosen))
        return 0
    failed, passed, left_out = [], 0, 0
    with Server(args.program or program()) as server:
        t = Target(server)
        ask = {"messages": [{"role": "user", "content": "Count from 7 to 12."}], "max_tokens": 16}
        bodies = [ask | {"temperature": 0}, ask | {"temperature": 1, "seed": 7}]
        expected = [(b, t.post(CHAT, b).json()["choices"][0]["message"]["content"]) for b in bodies]
        t.fine(t.chat(**schema({"type": "object"})))
        probe = Probe(server, expected)
        probe.start()
        memory = [server.memory()]
        for number in range(args.rounds):
            for name, f in chosen:
                began = time.monotonic()
                try:
                    f(t)
                    assert server.process.poll() is None, "the server is gone"
                    passed += 1
                except ImportError:
                    left_out += 1
                    continue
                except Exception as e:
                    failed.append(name)
                    print(f"FAIL {name}: {str(e)[:600] or traceback.format_exc()}", flush=True)
                took = time.monotonic() - began
                if took > 5 and not number:
                    print(f"     {name}: {took:.1f} s", flush=True)
            memory.append(server.memory())
        rest(t)
        probe.over.set()
        probe.join()
        print(f"health took at most {probe.slowest * 1000:.0f} ms; MiB of memory at first and after each round: {[round(m / 2**20) for m in memory]}")
        if args.rounds > 2 and memory[-1] - memory[2] > 48 << 20:
            failed.append("memory")
        if probe.wrong:
            failed.append("probe")
            print(f"FAIL probe: {len(probe.wrong)} wrong, first {probe.wrong[0][:300]}")
        if server.gauge("vllm:kv_cache_usage_perc"):
            failed.append("pages")
        log = server.said()
        if "panicked" in log:
            failed.append("panic")
            print(log[log.index("panicked") - 300:][:1500])
    print(f"{passed} passed, {len(failed)} failed{f', {left_out} left out: h2 is not installed' if left_out else ''}" + (f": {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
