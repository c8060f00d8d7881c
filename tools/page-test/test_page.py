#!/usr/bin/env python3
"""The chat page in Chromium: against a scripted server, and against `bitnet serve` with the demo model.

    python test_page.py [--program target/debug/bitnet] [--shots FOLDER] [--only NAME]

Needs playwright (requirements.txt) and Debian's chromium. Exit 0: every case passed; 1: one failed.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from scripted import PAGE, Scripted

CASES = []
SIZES = {"wide": (1280, 860), "narrow": (360, 740)}
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def case(function):
    CASES.append(function)
    return function


class Tester:
    """A browser, and a page in a context of its own whose errors are failures of the case."""

    def __init__(self, browser, args):
        self.browser, self.args, self.contexts, self.faults = browser, args, [], []

    def context(self, size="wide", scheme="light", **more):
        width, height = SIZES[size]
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        context.set_default_timeout(15_000)
        self.contexts.append(context)
        return context

    def open(self, url, context=None, ready=True, **kw):
        page = (context or self.context(**kw)).new_page()
        page.on("pageerror", lambda e: self.faults.append(f"error in the page: {e}"))
        page.on("dialog", lambda d: (self.faults.append(f"a dialog: {d.message}"), d.dismiss()))
        # Chromium reports statuses of errors that the page deals with; everything else it says is a fault.
        page.on("console", lambda m: m.type == "error" and "Failed to load resource" not in m.text and self.faults.append(f"console: {m.text}"))
        page.goto(url)
        if ready:
            expect(page.locator("#state")).not_to_have_class(re.compile("wait"))
        return page

    def close(self):
        for context in self.contexts:
            context.close()
        self.contexts = []
        assert not self.faults, self.faults


def ask(page, text, wait=True):
    page.get_by_test_id("prompt").fill(text)
    page.get_by_test_id("prompt").press("Enter")
    if wait:
        idle(page)


def idle(page):
    expect(page.get_by_test_id("stop")).to_be_hidden(timeout=30_000)


def answer(page):
    return page.get_by_test_id("message-assistant").last


def written(page):
    """How long the last answer is by now."""
    return page.evaluate("[...document.querySelectorAll('.answer .text')].at(-1)?.textContent.length ?? 0")


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def set_field(page, name, text):
    page.get_by_test_id("settings").click()
    page.get_by_test_id(name).fill(text)
    page.locator("#panel-close").click()


# The file


@case
def file_is_self_contained(_):
    """less than 60 kB, nothing from elsewhere, and no way to make markup of a text"""
    text = PAGE.read_text()
    assert len(text.encode()) < 60_000, f"{len(text.encode())} bytes"
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc", "eval(", "new Function", "@import", "src="):
        assert word not in text, word
    assert set(re.findall(r"https?://[\w./-]+", text)) == {"http://www.w3.org/2000/svg"}
    for name in ("prompt", "send", "stop", "new-chat", "chat-list", "settings", "api-key"):
        assert f'data-testid="{name}"' in text, name
    for name in ("message-user", "message-assistant", "regenerate", "edit", "stats", "error", "temperature", "system-prompt"):
        assert f"'{name}'" in text or name == "temperature", name


# Against the scripted server


@case
def answer_grows(t):
    """a question is sent by Enter, its answer is seen to grow, and numbers stand under it"""
    with Scripted() as server:
        page = t.open(server.url)
        page.get_by_test_id("prompt").press("Shift+Enter")
        ask(page, "essay", wait=False)
        until(lambda: written(page) > 50)
        first = written(page)
        until(lambda: written(page) > first + 200)
        page.keyboard.press("Escape")
        idle(page)
        expect(page.get_by_test_id("stats")).to_contain_text("Stopped")
        expect(page.get_by_test_id("stats")).to_contain_text(re.compile(r"[\d.]+ tokens/s.*context \d+ of 4,096", re.S))
        time.sleep(0.2)
        assert server.left == ["essay"], "the server was not left when Stop was pressed"
        body = server.bodies[-1]
        assert body["stream"] is True and body["stream_options"]["include_usage"] and body["model"] == server.model


@case
def hostile_text_stays_text(t):
    """markup, scripts and addresses of an answer and a question are shown and never run"""
    with Scripted() as server:
        page = t.open(server.url)
        ask(page, "hostile")
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked === undefined")
        found = page.evaluate("""() => ({ bad: document.querySelectorAll('.answer .text :is(script, img, b, iframe, object)').length,
            links: [...document.querySelectorAll('.answer a')].map((a) => a.href), text: document.querySelector('.answer').innerText })""")
        assert found["bad"] == 0, found
        assert all(link.startswith("https://example.com/") for link in found["links"]), found["links"]
        assert "<script>window.hacked = 1</script>" in found["text"] and '<img src=x onerror="window.hacked = 2">' in found["text"], found["text"]
        ask(page, "<img src=x onerror='window.hacked = 8'>")
        assert page.evaluate("document.querySelectorAll('#log img').length === 0 && window.hacked === undefined")
        page.reload()
        expect(page.get_by_test_id("message-assistant")).to_have_count(2)
        assert page.evaluate("window.hacked === undefined && document.title.includes('hostile')")
        refused = page.evaluate("(() => { try { document.body.innerHTML = '<p>'; return false; } catch { return true; } })()")
        assert refused, "the browser let HTML be assigned"
        (told,) = t.faults
        assert "TrustedHTML" in told
        t.faults = []


@case
def markdown_is_rendered(t):
    """headings, lists, tables, quotes, links and code, which Copy copies"""
    with Scripted() as server:
        context = t.context(permissions=["clipboard-read", "clipboard-write"])
        page = t.open(server.url, context)
        ask(page, "markdown")
        count = lambda selector: answer(page).locator(selector).count()  # noqa: E731
        for selector, n in (("h2", 1), ("strong", 1), ("em", 1), ("ol > li", 3), ("ol ul > li", 2), ("tbody tr", 2), ("blockquote", 1), ("pre code", 1), ("p code", 1)):
            assert count(selector) == n, f"{selector}: {count(selector)}"
        links = answer(page).locator("a").evaluate_all("all => all.map((a) => [a.href, a.rel])")
        assert links == [["https://arxiv.org/abs/2402.17764", "noopener noreferrer"], ["https://example.com/a_(b)", "noopener noreferrer"]], links
        grown = answer(page).locator(".text").evaluate("(e) => e.innerHTML")
        page.get_by_test_id("copy-code").click()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("def unpack(byte):\n    \"Four") and copied.endswith("# each -1, 0 or +1"), repr(copied)
        page.reload()
        assert answer(page).locator(".text").evaluate("(e) => e.innerHTML") == grown, "what grew piece by piece is other than what is made in one go"


@case
def errors_and_retry(t):
    """busy, failing and breaking off in mid-stream, too long: told where it happens, and Retry goes on"""
    with Scripted() as server:
        page = t.open(server.url)
        ask(page, "busy")
        expect(answer(page).get_by_test_id("error")).to_contain_text("64 requests wait")
        expect(answer(page).get_by_test_id("retry")).to_contain_text("better in")
        expect(answer(page).get_by_test_id("error")).to_have_attribute("role", "alert")
        answer(page).get_by_test_id("retry").click()
        idle(page)
        expect(answer(page)).to_contain_text("Now there is room.")
        expect(page.get_by_test_id("error")).to_have_count(0)
        for text, told in (("fails", "the device is gone"), ("breaks", "ended before the answer was complete")):
            server.failures = 1
            ask(page, text)
            expect(answer(page).get_by_test_id("error")).to_contain_text(told)
            expect(answer(page).locator(".text")).to_have_text("You s")
            answer(page).get_by_test_id("retry").click()
            idle(page)
            expect(answer(page).locator(".text")).to_have_text(f"You said: {text}")
        ask(page, "long")
        expect(answer(page).get_by_test_id("error")).to_contain_text("the prompt has 5000 tokens and the context holds 4096")
        answer(page).get_by_text("Start a new chat").click()
        expect(page.locator("#hello")).to_be_visible()


@case
def key_is_asked_for(t):
    """401: a field for the key; a wrong one is told; the right one is kept, and what waited for it goes on"""
    with Scripted(key="correct-horse-battery") as server:
        page = t.open(server.url, ready=False)
        key = page.get_by_test_id("api-key")
        expect(key).to_be_visible()
        ask(page, "hello")
        expect(answer(page).get_by_test_id("error")).to_contain_text("API key")
        for text in ("wrong", "correct-horse-battery"):
            key.fill(text)
            key.press("Enter")
            if text == "wrong":
                expect(page.locator("#keyhint")).to_contain_text("did not accept")
        expect(key).to_be_hidden()
        expect(answer(page)).to_contain_text("You said: hello")
        expect(page.locator("#state")).to_have_text(server.model)
        page.reload()
        ask(page, "again")
        expect(answer(page)).to_contain_text("You said: again")


@case
def server_goes_and_comes(t):
    """a server that is gone is told; once it is back, the page knows, and Retry works"""
    with Scripted() as server:
        page, port = t.open(server.url), server.server_port
    ask(page, "hello")
    expect(answer(page).get_by_test_id("error")).to_contain_text("cannot be reached")
    expect(page.locator("#state")).to_have_text("Not reachable")
    with Scripted(port=port):
        expect(page.locator("#state")).not_to_have_class(re.compile("down"), timeout=10_000)
        answer(page).get_by_test_id("retry").click()
        expect(answer(page)).to_contain_text("You said: hello")


@case
def reload_in_mid_answer(t):
    """what had come is there after a reload, is said to be interrupted, and can be asked for again or continued"""
    with Scripted() as server:
        page = t.open(server.url)
        ask(page, "essay", wait=False)
        page.wait_for_timeout(1500)
        page.reload()
        expect(answer(page).get_by_test_id("error")).to_contain_text("interrupted", timeout=8000)
        assert answer(page).locator(".text").inner_text().startswith("word word")
        expect(answer(page).get_by_test_id("continue")).to_be_visible()
        answer(page).get_by_test_id("continue").click()
        page.wait_for_timeout(300)
        page.get_by_test_id("stop").click()
        body = server.bodies[-1]
        assert body["continue_final_message"] is True and body["messages"][-1]["role"] == "assistant", body
        answer(page).get_by_test_id("regenerate").click()
        page.get_by_test_id("stop").click()
        expect(answer(page).locator(".turn")).to_contain_text("2/2")


@case
def several_tabs(t):
    """tabs share chats: one sees the other's answer grow, goes along, and loses what the other deletes"""
    with Scripted() as server:
        context = t.context()
        one = t.open(server.url, context)
        ask(one, "hello")
        two = t.open(one.url, context)
        expect(answer(two)).to_contain_text("You said: hello")
        ask(one, "essay", wait=False)
        expect(two.get_by_test_id("message-user")).to_have_count(2)
        expect(answer(two)).to_contain_text("word word")
        expect(answer(two)).to_contain_text("another tab")
        one.get_by_test_id("stop").click()
        expect(answer(two).get_by_test_id("stats")).to_contain_text("Stopped")
        ask(two, "from two")
        expect(answer(one)).to_contain_text("You said: from two")
        one.get_by_test_id("chat-list").get_by_label("Delete hello").click()
        expect(two.locator("#hello")).to_be_visible()
        expect(two.get_by_test_id("chat-list").locator(".entry")).to_have_count(0)
        one.get_by_text("Undo").click()
        expect(two.get_by_test_id("chat-list")).to_contain_text("hello")
        two.get_by_test_id("chat-list").get_by_text("hello").click()
        expect(two.get_by_test_id("message-user")).to_have_count(3)


@case
def edit_and_branch(t):
    """an edited question and a regenerated answer are new versions; the old ones stay, also after a reload"""
    with Scripted() as server:
        page = t.open(server.url)
        ask(page, "first")
        ask(page, "second")
        question = page.get_by_test_id("message-user").first
        question.hover()
        question.get_by_test_id("edit").click()
        page.get_by_test_id("edit-text").fill("changed")
        page.get_by_test_id("edit-save").click()
        idle(page)
        expect(page.get_by_test_id("message-user")).to_have_count(1)
        expect(answer(page)).to_contain_text("You said: changed")
        assert [m["content"] for m in server.bodies[-1]["messages"]] == ["changed"]
        answer(page).get_by_test_id("regenerate").click()
        idle(page)
        expect(answer(page).locator(".turn")).to_contain_text("2/2")
        page.reload()
        question.hover()
        expect(question.locator(".turn")).to_contain_text("2/2")
        question.get_by_label("Version before").click()
        expect(page.get_by_test_id("message-user")).to_have_count(2)
        expect(answer(page)).to_contain_text("You said: second")


@case
def settings_reach_the_request(t):
    """system prompt, sampling and schema are sent, wrong values told and not sent, and a new chat has them too"""
    with Scripted() as server:
        page = t.open(server.url)
        page.get_by_test_id("settings").click()
        for name, text in {"system-prompt": "Be brief.", "temperature": "0.5", "max-tokens": "64", "top-k": "40", "top-p": "0.9", "min-p": "0.05", "seed": "7",
                           "json-schema": '{"type": "object"}'}.items():
            page.get_by_test_id(name).fill(text)
        page.locator("#panel-close").click()
        ask(page, "hello")
        body = server.bodies[-1]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        wanted = {"temperature": 0.5, "max_tokens": 64, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": 7}
        assert {k: body[k] for k in wanted} == wanted, body
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"} and body["response_format"]["type"] == "json_schema"
        expect(page.locator("#chips")).to_contain_text("JSON schema")
        page.get_by_test_id("settings").click()
        for name, text in (("temperature", "hot"), ("top-p", "1.5"), ("seed", "1.5"), ("json-schema", "{oops")):
            page.get_by_test_id(name).fill(text)
            expect(page.get_by_test_id(name)).to_have_attribute("aria-invalid", "true")
        page.locator("#panel-close").click()
        page.get_by_test_id("new-chat").click()
        ask(page, "hello")
        assert {k: server.bodies[-1][k] for k in wanted} == wanted
        page.get_by_test_id("settings").click()
        page.get_by_text("Reset all").click()
        page.keyboard.press("Escape")
        ask(page, "hello")
        assert not set(wanted) & set(server.bodies[-1]) and len(server.bodies[-1]["messages"]) == 3


@case
def list_of_chats(t):
    """rename, export, delete, and import into another browser; a file that is none is refused"""
    with Scripted() as server, tempfile.TemporaryDirectory() as folder:
        page = t.open(server.url)
        ask(page, "alpha")
        page.get_by_test_id("new-chat").click()
        ask(page, "beta")
        chats = page.get_by_test_id("chat-list")
        expect(chats.locator(".entry")).to_have_count(2)
        chats.get_by_label("Rename beta").click()
        page.get_by_label("Title").fill("Letters")
        page.get_by_label("Title").press("Enter")
        expect(page.locator("#title")).to_have_text("Letters")
        with page.expect_download() as download:
            page.locator("#export").click()
        file = Path(folder) / "chats.json"
        download.value.save_as(file)
        data = json.loads(file.read_text())
        data["chats"][0]["messages"][0]["onload"] = data["chats"][0]["hacked"] = "<script>"
        data["chats"].append({"id": "x' onload='", "messages": [], "title": 5})
        file.write_text(json.dumps(data))
        other = t.open(server.url)
        other.locator("#file").set_input_files(file)
        expect(other.get_by_test_id("chat-list").locator(".entry")).to_have_count(2)
        other.get_by_test_id("chat-list").get_by_text("Letters").click()
        expect(answer(other)).to_contain_text("You said: beta")
        ask(other, "gamma")
        for text, told in (("{", "not JSON"), ("[]", "no export")):
            file.write_text(text)
            other.locator("#file").set_input_files(file)
            expect(other.locator("#toast")).to_contain_text(told)


@case
def long_conversation(t):
    """a thousand messages open at once, the earlier ones on demand, and a question is answered"""
    messages = [{"id": f"m{i}", "parent": f"m{i - 1}" if i else None, "role": "user" if i % 2 == 0 else "assistant", "created": i + 1, "state": "done",
                 "content": f"message {i}\n\n" + "text " * 100} for i in range(1000)]
    with Scripted() as server, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "long.json"
        file.write_text(json.dumps({"format": "bitnet-chats", "version": 1, "chats": [{"id": "long", "title": "Long", "created": 1, "updated": 2, "leaf": "m999", "messages": messages, "settings": {}}]}))
        page = t.open(server.url)
        page.locator("#file").set_input_files(file)
        page.get_by_test_id("chat-list").get_by_text("Long").click(timeout=30_000)
        expect(answer(page)).to_contain_text("message 999")
        start = time.monotonic()
        ask(page, "hello")
        expect(answer(page)).to_contain_text("You said: hello")
        assert time.monotonic() - start < 4, f"{time.monotonic() - start:.1f} s"
        assert len(server.bodies[-1]["messages"]) == 1001
        assert page.locator(".msg").count() <= 64
        page.locator("#earlier").click()
        assert page.locator(".msg").count() > 250


@case
def keyboard_and_reader(t):
    """everything has a name, all of it is reached by keys, and answers are told to screen readers"""
    with Scripted() as server:
        for size in SIZES:
            page = t.open(server.url, size=size)
            expect(page.get_by_test_id("prompt")).to_be_focused()
            ask(page, "markdown")
            expect(page.locator("#live")).to_contain_text("How a ternary weight")
            nameless = page.evaluate("""() => [...document.querySelectorAll('button, input:not([hidden]), textarea, a')].filter((e) => !(e.ariaLabel || e.textContent.trim()
                || e.labels?.length || e.title)).map((e) => e.outerHTML.slice(0, 90))""")
            assert not nameless, nameless
            reached = set()
            for _ in range(40):
                page.keyboard.press("Tab")
                reached.add(page.evaluate("document.activeElement.dataset.testid || document.activeElement.id"))
            assert {"edit", "regenerate", "settings", "new-chat", "prompt"} <= reached, reached
            if size == "narrow":
                assert "menu" in reached and "export" not in reached, reached
                page.locator("#menu").press("Enter")
                expect(page.locator("#export")).to_be_visible()
                page.keyboard.press("Escape")
                expect(page.locator("#menu")).to_be_focused()
            page.get_by_test_id("settings").press("Enter")
            page.keyboard.press("Escape")
            expect(page.get_by_test_id("settings")).to_be_focused()


@case
def looks(t):
    """nothing is cut off at 360 and 1,280 pixels, text has contrast enough, light and dark; screenshots"""
    with Scripted() as server:
        for size, (width, _) in SIZES.items():
            for scheme in ("light", "dark"):
                server.busy = 1
                page = t.open(server.url, size=size, scheme=scheme)
                t.shot(page, f"{scheme}-{width}-empty")
                ask(page, "markdown")
                t.shot(page, f"{scheme}-{width}-answer")
                ask(page, "busy")
                t.shot(page, f"{scheme}-{width}-error")
                wide = page.evaluate("""() => [...document.querySelectorAll('#app *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1
                    && !e.closest('pre, .grid, #side')).map((e) => e.outerHTML.slice(0, 80))""")
                assert not wide, wide
                weak = page.evaluate(CONTRAST)
                assert not weak, weak
                page.get_by_test_id("settings").click()
                t.shot(page, f"{scheme}-{width}-settings")


# The contrast of every text with what lies behind it, as WCAG 2 counts it; 4.5 is its demand.
CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
    const light = ([r, g, b]) => { const f = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
    const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
    const weak = [];
    for (const e of document.querySelectorAll('#app *')) {
        if (!e.checkVisibility() || e.closest(':disabled') || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) weak.push([e.textContent.slice(0, 30), ((a + 0.05) / (b + 0.05)).toFixed(2)]);
    }
    return weak;
}"""


# Against `bitnet serve`


@contextlib.contextmanager
def served(t, *flags):
    """`bitnet serve` with the demo model on a free port."""
    if not t.args.program:
        raise LookupError("no --program")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BITNET_")}
    process = subprocess.Popen([t.args.program, "serve", "--port", "0", "--log-format", "json", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        url = None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                url = found[0]
                break
        assert url, "the server told no address"
        # What it tells from now on goes nowhere, lest it wait for a reader.
        subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url + "/health", timeout=5)
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None, "the server did not get ready"
                time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, f"the server ended with {process.returncode}"


def running(url):
    text = urllib.request.urlopen(url + "/metrics", timeout=5).read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running{"))


LONG = json.dumps({"type": "object", "properties": {"text": {"type": "string", "minLength": 3000}}, "required": ["text"], "additionalProperties": False})
CONST = json.dumps({"const": {"a": "<img src=x onerror=\"window.hacked = 1\">", "b": "<script>window.hacked = 2</script>"}})


@case
def real_answers(t):
    """the demo model answers; the policy is there; a reload keeps the chat; markup that it writes stays text"""
    with served(t) as url:
        response = urllib.request.urlopen(url + "/")
        assert "default-src 'self'" in response.headers["Content-Security-Policy"] and response.headers["ETag"]
        page = t.open(url)
        ask(page, "What is 123 + 456?")
        expect(answer(page)).to_contain_text("123 + 456 = 579")
        expect(page.get_by_test_id("stats")).to_contain_text(re.compile(r"\d+ tokens.*context \d+ of 1,024", re.S))
        t.shot(page, "demo")
        set_field(page, "json-schema", CONST)
        ask(page, "What is 1 + 1?")
        expect(answer(page)).to_contain_text('<img src=x onerror=')
        expect(answer(page)).to_contain_text("<script>window.hacked = 2</script>")
        assert page.evaluate("window.hacked === undefined && !document.querySelector('.answer :is(img, script)')")
        page.reload()
        expect(page.get_by_test_id("message-user")).to_have_count(2)
        expect(page.get_by_test_id("message-assistant").first).to_contain_text("123 + 456 = 579")
        assert page.evaluate("window.hacked === undefined")


@case
def real_stop(t):
    """Stop ends the work on the server too, and so does a tab that is closed"""
    def stop(page):
        return page.evaluate("() => { const stop = document.getElementById('stop'), shown = !!stop.offsetParent; if (shown) stop.click(); return shown; }")

    def close(page):
        page.close()
        return True

    def ends(url, end):
        page = t.open(url)
        set_field(page, "json-schema", LONG)
        ask(page, "What is 1 + 1?", wait=False)
        until(lambda: written(page) > 30)
        return running(url) == 1 and end(page)

    with served(t) as url:
        for end in (stop, close):
            # The demo model fills its context in less than a second: an answer may be over before anybody can end it.
            assert any(ends(url, end) for _ in range(5)), "every answer was over before it could be ended"
            until(lambda: running(url) == 0)


@case
def real_key(t):
    """with --api-key: asked for, given, answered"""
    with served(t, "--api-key", "a-key-of-some-length") as url:
        page = t.open(url, ready=False)
        page.get_by_test_id("api-key").fill("a-key-of-some-length")
        page.get_by_test_id("api-key").press("Enter")
        expect(page.get_by_test_id("api-key")).to_be_hidden()
        ask(page, "Count from 7 to 12.")
        expect(answer(page)).to_contain_text("7, 8, 9, 10, 11, 12")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", help="the program `bitnet`; without it the cases that need it are left out")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--shots", default=str(ROOT / "target/page-shots"), help="folder for screenshots")
    parser.add_argument("--only", default="", help="cases whose names have this")
    args = parser.parse_args()
    Path(args.shots).mkdir(parents=True, exist_ok=True)
    failed, start = 0, time.monotonic()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for run in CASES:
            if args.only not in run.__name__ or (run.__name__.startswith("real_") and not args.program):
                continue
            tester = Tester(browser, args)
            tester.shot = lambda page, name: page.screenshot(path=Path(args.shots) / f"{name}.png")
            began = time.monotonic()
            try:
                run(tester)
                tester.close()
                print(f"pass  {run.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
            except Exception as e:  # noqa: BLE001
                failed += 1
                print(f"FAIL  {run.__name__}: {run.__doc__}\n{traceback.format_exc(limit=-3) if not isinstance(e, AssertionError) else traceback.format_exc(limit=-2)}", flush=True)
                with contextlib.suppress(Exception):
                    tester.contexts[-1].pages[-1].screenshot(path=Path(args.shots) / f"failed-{run.__name__}.png")
                    tester.close()
        browser.close()
    print(f"{failed} failed, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
