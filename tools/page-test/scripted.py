"""A server whose answers are scripted, for what a real one does seldom: failing in mid-stream, being busy, writing hostile Markdown.

It serves the page itself, from the source tree, under the policy that `bitnet serve` sends with it.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "crates/bitnet-server/src/page/index.html"
POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"

HOSTILE = """Look: <script>window.hacked = 1</script> and <img src=x onerror="window.hacked = 2"> and <b>bold</b>.

[a link](javascript:window.hacked=3) [another](data:text/html,<script>window.hacked=4</script>) <a href="javascript:alert(1)">x</a>

```html"><img src=x onerror=window.hacked=5>
<script>window.hacked = 6</script>
```

![an image](https://example.com/x.png "t\\" onerror=window.hacked=7")
"""

MARKDOWN = """## How a ternary weight is stored

A weight is **-1, 0 or +1**: two bits each. Four of them make a byte, and `127 / absmax` is the *scale* of the activations.

1. Read the words.
2. Multiply in integers:
   - exactly, with no rounding
   - in any order
3. Scale once a row.

```python
def unpack(byte):
    "Four weights of one byte."
    return [((byte >> shift) & 3) - 1 for shift in (0, 2, 4, 6)]  # each -1, 0 or +1
```

| path | tokens/s | exact |
|---|---:|:---:|
| AVX2 | 21.6 | yes |
| AMX | 613 | yes |

> The same request gives the same bits, whatever else is computed beside it.

See [the paper](https://arxiv.org/abs/2402.17764) or https://example.com/a_(b).
"""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, status, value, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message, code, **headers):
        self.reply(status, {"error": {"message": message, "type": "x", "param": None, "code": code}}, **headers)

    def allowed(self):
        key = self.server.key
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            self.refuse(401, "the key is missing or wrong", "invalid_api_key")
            return False
        return True

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/":
            return self.reply(200, PAGE.read_bytes(), Content_Type="text/html; charset=utf-8", Content_Security_Policy=POLICY)
        if path == "/health":
            return self.reply(200, {"status": "ok"})
        if not self.allowed():
            return None
        if path == "/v1/models":
            return self.reply(200, {"object": "list", "data": [{"id": self.server.model, "object": "model", "max_model_len": 4096}]})
        return self.refuse(404, "there is nothing here", "not_found")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.server.bodies.append(body)
        text = body["messages"][-1]["content"]
        if text == "busy" and self.server.busy > 0:
            self.server.busy -= 1
            return self.refuse(429, "64 requests wait, which is all that may", "queue_full", Retry_After="2")
        if text == "long":
            return self.refuse(400, "the prompt has 5000 tokens and the context holds 4096", "context_length_exceeded")
        answer = {"hostile": HOSTILE, "markdown": MARKDOWN, "busy": "Now there is room.", "essay": "word " * 3000}.get(text, f"You said: {text}")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        try:
            self.stream(text, answer, body)
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.append(text)

    def stream(self, text, answer, body):
        def event(choices, **more):
            value = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.server.model, "choices": choices} | more
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
            self.wfile.flush()

        def choice(delta, reason=None):
            return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

        def usage(n):
            return {"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n, "prompt_tokens_details": {"cached_tokens": 4}}

        event(choice({"role": "assistant", "content": ""}))
        self.wfile.write(b":\n\n")
        pieces = [answer[i:i + 5] for i in range(0, len(answer), 5)]
        for i, piece in enumerate(pieces):
            if text in ("fails", "breaks") and i == 1 and self.server.failures > 0:
                self.server.failures -= 1
                if text == "fails":
                    self.wfile.write(b'data: {"error": {"message": "the device is gone", "type": "server_error", "code": "internal"}}\n\n')
                return
            event(choice({"content": piece}), usage=usage(i + 1))
            time.sleep(self.server.delay)
        event(choice({}, "stop"))
        event([], usage=usage(len(pieces) + 1))
        self.wfile.write(b"data: [DONE]\n\n")


class Scripted(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, key=None, model="bitnet-b1.58-2B-4T", port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.key, self.model, self.busy, self.failures, self.delay, self.bodies, self.left = key, model, 1, 1, 0.004, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
