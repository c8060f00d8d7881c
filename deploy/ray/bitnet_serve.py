"""Ray Serve in front of `bitnet serve`: every replica starts a server of its own and passes bytes through.

    serve run --app-dir deploy/ray bitnet_serve:app program=/usr/local/bin/bitnet model=/models/MODEL replicas=2
    serve deploy deploy/ray/serve.yaml

Serve's proxy balances, scales and replaces replicas; queueing, limits and errors of the API are the server's own. Each server
listens on a Unix socket that only its replica knows. Needs ray[serve].
"""

import asyncio
import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

# Headers that belong to one connection, or that Serve's proxy makes itself.
HOP = {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "date", "server"}
LOST = {"error": {"message": "the replica that wrote this answer is gone", "type": "server_error", "param": None, "code": "replica_lost"}}


# More requests than a server has places wait in its own queue, which answers 429 when it is full.
@serve.deployment(max_ongoing_requests=128, health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=45)
class Bitnet:
    def __init__(self, program="bitnet", model="", flags=""):
        self.folder = tempfile.mkdtemp(prefix="bitnet-")
        self.socket = os.path.join(self.folder, "serve.sock")
        self.command = [program, "serve", "--host", self.socket, *(["-m", model] if model else []), *shlex.split(flags)]
        self.process = self.start()
        self.ends, self.session, self.lock = [], None, asyncio.Lock()

    def start(self):
        # A replica that is killed takes its server with it (1 is PR_SET_PDEATHSIG).
        return subprocess.Popen(self.command, preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM))

    def connection(self):
        if self.session is None:  # An event loop is there only now.
            limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
            self.session = aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(self.socket, limit=0), timeout=limits, auto_decompress=False)
        return self.session

    async def answering(self, seconds=120):
        """Waits until the server takes requests; one that is gone is started again, but not for ever."""
        end = time.monotonic() + seconds
        async with self.lock:
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    self.ends = [at for at in self.ends if at > time.monotonic() - 300] + [time.monotonic()]
                    if len(self.ends) > 3:
                        break
                    self.process = self.start()
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.connection().get("/readyz") as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(0.2)
        return False

    async def check_health(self):
        """Serve replaces the replica where its server ends again and again, or says that it should not live."""
        if len(self.ends) > 3:
            raise RuntimeError(f"bitnet serve ended {len(self.ends)} times, at last with {self.process.returncode}")
        if self.process.poll() is not None:
            await self.answering(20)
        with contextlib.suppress(aiohttp.ClientConnectorError):  # It is being loaded.
            async with self.connection().get("/livez") as answer:
                if answer.status != 200:
                    raise RuntimeError(f"/livez is {answer.status}")

    async def __call__(self, request: Request):
        headers = {name: value for name, value in request.headers.items() if name not in HOP}
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = await request.body() or None
        for _ in range(3):
            # Of what was not answered yet nothing is lost: it is asked again, also of a server that was started again and is not ready.
            # Refusing at once would draw all requests here.
            with contextlib.suppress(aiohttp.ClientError):
                answer = await self.connection().request(request.method, path, headers=headers, data=body, allow_redirects=False)
                if answer.status == 503 and is_loading(await answer.read()) and await self.answering():
                    continue
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
                if answer.content_type == "text/event-stream":
                    return StreamingResponse(pieces(answer), answer.status, kept)
                async with answer:
                    return Response(await answer.read(), answer.status, kept)
            if not await self.answering():
                break
        return JSONResponse(LOST, 503, headers={"Retry-After": "5"})

    async def __del__(self):
        """Lets what runs go on to its end, as SIGTERM does."""
        if self.session is not None:
            await self.session.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self.process.wait)
        shutil.rmtree(self.folder, ignore_errors=True)


def is_loading(body):
    """Whether a server says so that its model is not there yet."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return json.loads(body)["error"]["code"] == "loading"
    return False


async def pieces(answer):
    """The bytes of a stream; an error event where they break off. Left early when the client goes away: then the server ends its work."""
    async with answer:
        try:
            async for piece in answer.content.iter_any():
                yield piece
        except aiohttp.ClientError:
            yield b"data: " + json.dumps(LOST).encode() + b"\n\n"


def app(args: dict):
    """What `serve run` and serve.yaml import; all arguments are texts."""
    own = {name: args[name] for name in ("program", "model", "flags") if name in args}
    return Bitnet.options(num_replicas=int(args.get("replicas", 1))).bind(**own)
