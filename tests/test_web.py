"""The web page in a real browser, over real servers."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import string
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from starlette.responses import JSONResponse

from live_server import LiveServer, live_server
from longsight.model import load_model
from longsight.model.built_in import model_dir
from longsight.model.needle import NeedlePrompt, hide_needle
from longsight.model.tokenizer import Tokenizer
from longsight.server import web
from longsight.server.auth import StaticKey
from scripted_server import Scripted, delta, ended, scripted_server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
expect.set_options(timeout=20_000)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page's tests need one (Debian: apt-get install chromium)"
)
ROOT = Path(__file__).resolve().parent.parent
BLOCK = 128
_RNG = random.Random(5)
WORDS = " ".join(_RNG.choices(["".join(_RNG.choices(string.ascii_lowercase, k=5)) for _ in range(500)], k=900))


@dataclass
class Tab:
    """A page, and what went wrong on it. expected: parts of console messages that a test provokes."""

    page: Page
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def open(self, url: str, model: str) -> Page:
        def check_request(request: Any) -> None:
            if not request.url.startswith(url.split("#")[0]):
                self.problems.append(f"a request to {request.url}")

        self.page.on("request", check_request)
        self.page.goto(url)
        expect(self.page.locator("#model")).to_have_value(model)
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without the sandbox: containers run tests as root, where Chromium refuses to start with it.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1100, "height": 800}, color_scheme="light")
    context.set_default_timeout(15_000)
    tab = Tab(context.new_page())
    tab.page.on("console", lambda m: tab.problems.append(m.text) if m.type in ("error", "warning") else None)
    tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
    yield tab
    context.close()
    assert [p for p in tab.problems if not any(words in p for words in tab.expected)] == []


@pytest.fixture(scope="module")
def real(constructed: Path) -> Iterator[LiveServer]:
    """The built-in model behind the real engine."""
    model, tokenizer = load_model(constructed), Tokenizer.from_dir(constructed)
    with live_server(model, tokenizer=tokenizer, pages=80, chunk_tokens=2048) as server:
        yield server
        server.engine.prefix_cache.clear()


@pytest.fixture
def script() -> Iterator[Scripted]:
    with scripted_server() as script:
        yield script


@pytest.fixture(scope="module")
def needle() -> NeedlePrompt:
    """The needle lies inside block 15 of 40."""
    return hide_needle(WORDS, 5000, 0.4, offset=15 * BLOCK + 30, seed=2)


def say(page: Page, text: str) -> Locator:
    """Sends a message; the answer it gets."""
    page.fill("#input", text)
    page.press("#input", "Enter")
    return page.locator(".message.assistant").last


def test_who_gets_the_page_and_who_gets_json(server: LiveServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        page = http.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert page.headers["vary"].lower() == "accept"
        assert http.get("/", headers={"accept": "application/json"}).json()["name"] == "longsight"
        assert http.head("/").status_code == http.head("/", headers={"accept": "text/html"}).status_code == 200
        linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert "web/app.js" in linked
        own = {f"/web/{file.name}": file for file in web.FILES.iterdir()}
        theirs = {f"/web/vendor/{f.relative_to(web.VENDOR)}": f for f in web.VENDOR.rglob("*") if f.is_file()}
        for path, file in (own | theirs).items():
            response = http.get(path)
            assert response.content == file.read_bytes(), path
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-security-policy"] == page.headers["content-security-policy"]
            assert http.get(path, headers={"if-none-match": response.headers["etag"]}).status_code == 304
            kinds = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".woff2": "font/woff2"}
            assert response.headers["content-type"].startswith(kinds.get(file.suffix, "")), path
            if path in own:
                addresses = re.findall(r"https?://[^\s\"'`]+", response.text)
                assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert not any(loose in value for value in policy.values() for loose in ("unsafe", "*", "data:", "http"))
        for wrong in ("/web/nothing.js", "/web/", "/web/..%2fapp.py", "/web/%2e%2e/app.py"):
            response = http.get(wrong)
            assert response.status_code == 404
            assert response.json()["error"]["type"] == "invalid_request_error"


@needs_browser
def test_a_conversation_with_the_engine(real: LiveServer, tab: Tab, needle: NeedlePrompt) -> None:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = tab.open(real.url, "tiny")
    page.click("#settings-button")
    page.fill("[name=temperature]", "0")
    page.fill("[name=maxTokens]", "9")
    page.fill("[name=system]", needle.text[:2500])
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    # The message is stripped of its last space, which the chat template of the tests has no part in.
    answer = say(page, needle.text[2501:])
    expect(answer.locator(".text")).to_have_text(f" {needle.answer[:8]}".strip())
    expect(answer.locator("footer")).to_contain_text("9 tokens · cut at the length limit")
    limit = f"{real.engine.max_model_len:,}"
    expect(page.locator("#meter .words")).to_have_text(f"5,008 of {limit} tokens")
    assert page.locator("#meter .bar").get_attribute("aria-valuenow") == "5008"

    answer.get_by_text("Copy").click()
    expect(answer.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").strip() == needle.answer[:8]

    answer.get_by_text("Retry").click()
    expect(page.locator("#meter .words")).to_have_text(re.compile(r"5,008 of .* tokens, 4,\d\d\d cached"))
    expect(page.locator(".message.assistant")).to_have_count(1)
    expect(page.locator(".message.assistant .text")).to_have_text(needle.answer[:8])
    cached, fresh = (page.locator(f"#meter .{name}").bounding_box() for name in ("cached", "fresh"))
    assert cached is not None
    assert fresh is not None
    assert cached["width"] > fresh["width"] > 0

    # The same conversation under the microscope, which runs at once.
    page.click("#tab-microscope")
    page.fill("[name=tokens]", "4")
    page.click("#tab-chat")
    page.locator(".message.assistant").get_by_text("Microscope").click()
    expect(page.locator("#scope-count")).to_have_text("The conversation, 2 messages")
    expect(page.locator("#strip button")).to_have_count(4)
    page.click("#tab-chat")
    page.click("#new-chat")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#meter .words")).to_have_text(f"0 of {limit} tokens")


def colours(page: Page) -> list[str]:
    """The colours on the grid of more than a few pixels."""
    return list(
        page.evaluate("""() => {
          const grid = document.getElementById("grid");
          const data = grid.getContext("2d").getImageData(0, 0, grid.width, grid.height).data;
          const counts = {};
          for (let i = 0; i < data.length; i += 4) {
            const c = `rgb(${data[i]}, ${data[i + 1]}, ${data[i + 2]})`;
            if (data[i + 3] === 255) counts[c] = (counts[c] ?? 0) + 1;
          }
          return Object.keys(counts).filter((c) => counts[c] > 20);
        }""")
    )


def point_at(page: Page, lane: int, block: int, blocks: int) -> tuple[float, float]:
    box = page.locator("#grid").bounding_box()
    assert box is not None
    gutter = float(page.locator("#grid").get_attribute("data-gutter") or 0)
    row = float(page.locator("#grid").get_attribute("data-row-height") or 0)
    return box["x"] + gutter + (block + 0.5) / blocks * (box["width"] - gutter), box["y"] + (lane + 0.5) * row


@needs_browser
def test_the_microscope_shows_that_the_needle_is_read(real: LiveServer, tab: Tab, needle: NeedlePrompt) -> None:
    page = tab.open(real.url, "tiny")
    page.click("#tab-microscope")
    page.fill("#scope-prompt", needle.text)
    page.fill("[name=tokens]", "9")
    page.click("#scope-run")
    tokens = page.locator("#strip button")
    expect(tokens).to_have_count(9)
    expect(page.locator("#scope-run")).to_be_visible()
    assert tokens.all_inner_texts() == list(needle.answer)
    expect(page.locator("#read-count")).to_have_text(re.compile(r"It read \d+ of 40 blocks"))
    drawn = colours(page)
    for name in ("read", "unread"):
        colour = page.locator(f"#swatch-{name}").evaluate("e => getComputedStyle(e).backgroundColor")
        assert colour in drawn, name

    # Every token of the answer read the block that holds it.
    for i in range(9):
        tokens.nth(i).click()
        expect(page.locator("#token-caption")).to_have_text(f"Token {i + 1} of 9, “{needle.answer[i]}”")
        expect(page.locator("#read-list [data-block='15']")).to_be_visible()
    page.mouse.move(*point_at(page, 1, 15, 40))
    tooltip = page.locator("#tooltip")
    expect(tooltip).to_contain_text(needle.question + needle.answer)
    expect(tooltip).to_contain_text("Block 15")
    expect(tooltip).to_contain_text("read by layer 1 group 0")
    expect(tooltip).to_contain_text("tokens 1,920 to 2,047")
    page.mouse.move(*point_at(page, 0, 3, 40))
    expect(tooltip).to_contain_text("not read for this token")
    page.mouse.move(5, 5)
    expect(tooltip).to_be_hidden()

    page.mouse.click(*point_at(page, 1, 15, 40))
    expect(page.locator("#block-text pre")).to_contain_text(needle.answer)
    expect(page.locator("#read-list [data-block='15']")).to_have_attribute("aria-pressed", "true")

    # Drag from block 10 to block 20: the needle's block is then in the middle of the picture.
    page.mouse.move(*point_at(page, 1, 10, 40))
    page.mouse.down()
    page.mouse.move(*point_at(page, 1, 20, 40), steps=3)
    page.mouse.up()
    expect(page.locator("#range")).to_have_text("blocks 10 to 20, tokens 1,280 to 2,687")
    page.mouse.move(*point_at(page, 1, 5, 11))
    expect(tooltip).to_contain_text("Block 15")
    page.click("#zoom-all")
    expect(page.locator("#range")).to_have_text("blocks 0 to 39, tokens 0 to 5,119")


@needs_browser
def test_the_needle_example_marks_the_block_that_holds_it(real: LiveServer, tab: Tab) -> None:
    page = tab.open(f"{real.url}/#microscope", "tiny")
    page.click("#scope-run")
    expect(page.locator("#scope-status")).to_contain_text("Write or open a text first")
    page.evaluate("""async () => {
      const { needlePrompt } = await import("./web/needle.js");
      window.made = Array.from({ length: 500 }, (_, i) => needlePrompt(3000, { chat: i % 2 === 0 }));
    }""")
    for made in page.evaluate("made"):
        assert re.fullmatch(r"[1-9]\d{3}-[A-HJ-NP-Z]{3}", made["code"])
        assert made["text"].count(made["sentence"]) == 1
        assert made["text"].index(made["sentence"]) == round(made["depth"] * len(made["text"]))

    page.click("#scope-needle")
    text = page.locator("#scope-prompt").input_value()
    page.fill("[name=tokens]", "3")
    page.click("#scope-run")
    expect(page.locator("#strip button")).to_have_count(3)
    # One token per character, so the sentence's place in the text is its place in the context.
    question = text.rsplit("\n", 1)[1]
    start = text.index(question)
    blocks = sorted({start // BLOCK, (start + len(question) + len(" 1234-ABC.") - 1) // BLOCK})
    note = page.locator("#needle-note")
    expect(note).to_contain_text(" and ".join(map(str, blocks)) + ". This token read it in")
    expect(note).not_to_contain_text("in 0 of")
    expect(page.locator("#needle-legend")).to_be_visible()
    marked = page.locator("#read-list .marked")
    assert set(marked.evaluate_all("all => all.map(e => Number(e.dataset.block))")) <= set(blocks)
    expect(marked.first).to_contain_text("needle")
    page.fill("#scope-prompt", "no needle here, and no mark")
    page.click("#scope-run")
    expect(page.locator("#strip button")).to_have_count(3)
    expect(note).to_be_hidden()


@needs_browser
def test_the_microscope_by_keyboard(real: LiveServer, tab: Tab, needle: NeedlePrompt) -> None:
    page = tab.open(f"{real.url}/#microscope", "tiny")
    page.fill("#scope-prompt", needle.text)
    page.fill("[name=tokens]", "5")
    page.press("[name=tokens]", "Enter")
    expect(page.locator("#strip button")).to_have_count(5)
    page.focus("#strip [aria-selected=true]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#strip button").nth(2)).to_be_focused()
    expect(page.locator("#token-slider")).to_have_value("2")
    page.keyboard.press("End")
    expect(page.locator("#token-caption")).to_contain_text("Token 5 of 5")
    page.focus("#token-slider")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strip [aria-selected=true]")).to_have_attribute("data-index", "3")

    page.focus("#grid")
    page.keyboard.press("ArrowDown")
    for _ in range(page.locator("#read-list button").count()):
        page.keyboard.press("ArrowRight")
        if page.locator("#tooltip strong").inner_text() == "Block 15":
            break
    expect(page.locator("#tooltip .excerpt")).to_contain_text(needle.answer)
    page.keyboard.press("Enter")
    expect(page.locator("#block-text pre")).to_contain_text(needle.answer)
    page.keyboard.press("+")
    expect(page.locator("#range")).to_contain_text("blocks 7 to 27")
    page.keyboard.press("0")
    expect(page.locator("#range")).to_contain_text("blocks 0 to 39")
    page.keyboard.press("Escape")
    expect(page.locator("#tooltip")).to_be_hidden()


@needs_browser
def test_thinking_and_tool_calls(script: Scripted, tab: Tab) -> None:
    later = threading.Event()
    function = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "P'},
    }
    rest = {"index": 0, "function": {"arguments": 'aris", "days": [1, 2]}'}}
    script.answers = [
        [
            delta(role="assistant", content=""),
            delta(reasoning_content="Which city? "),
            delta(reasoning_content="Paris."),
            delta(tool_calls=[function]),
            later,
            delta(tool_calls=[rest]),
            *ended("tool_calls", cached=3000),
        ],
        [delta(content="Sunny."), *ended()],
    ]
    page = tab.open(script.url, "scripted")
    page.click("#settings-button")
    page.select_option("[name=thinking]", "enabled")
    page.fill("[name=tools]", '[{"type": "function", "function": {"name": "weather"}}]')
    page.fill("[name=system]", "Be brief.")
    answer = say(page, "How is it in Paris?")
    card = answer.locator(".call")
    expect(card.locator(".name")).to_have_text("weather")
    expect(card.locator("pre")).to_have_text('{\n  "city": "P')
    thoughts = answer.locator(".thinking")
    expect(thoughts.locator("summary")).to_have_text("Thoughts")
    expect(thoughts.locator("div")).to_be_hidden()
    later.set()
    expect(card.locator("pre")).to_have_text('{\n  "city": "Paris",\n  "days": [\n    1,\n    2\n  ]\n}')
    thoughts.locator("summary").click()
    expect(thoughts.locator("div")).to_have_text("Which city? Paris.")
    expect(page.locator("#meter .words")).to_have_text("5,000 of 10,000 tokens, 3,000 cached")

    card.get_by_label("Result").fill("28 degrees")
    answer.get_by_text("Send results").click()
    expect(page.locator(".message.assistant").last.locator(".text")).to_have_text("Sunny.")
    (first, _), (second, _) = script.asked
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is it in Paris?"},
    ]
    assert first["thinking"] == {"type": "enabled"}
    assert first["reasoning_split"] is first["return_progress"] is first["stream_options"]["include_usage"] is True
    assert first["tools"][0]["function"]["name"] == "weather"
    assert "temperature" not in first
    called, result = second["messages"][2:]
    assert called["tool_calls"][0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris", "days": [1, 2]}'},
    }
    assert called["reasoning_content"] == "Which city? Paris."
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "28 degrees"}


HOSTILE = """\
<img src=x onerror="document.title='broken into'"><script>document.title = 'broken into'</script>
## A **bold** *heading* with `<b>code</b>`
- one [link](https://example.org/a?b=1&c=2)
  1. nested <i>item</i>
- two [bad](javascript:document.title='broken%20into') ![x](data:text/html,x)

> said <u>so</u>

```html
<script>alert("1 **not bold**")</script>
```
`` a ` b `` and 2 * 3 * 4, **unclosed"""


@needs_browser
def test_text_of_a_model_never_becomes_markup(script: Scripted, tab: Tab) -> None:
    pieces = [HOSTILE[i : i + 7] for i in range(0, len(HOSTILE), 7)]
    script.answers = [[*(delta(content=piece) for piece in pieces), *ended()]]
    page = tab.open(script.url, "scripted")
    text = say(page, "<b>Hello</b>").locator(".text")
    expect(text).to_contain_text("unclosed")
    expect(page.locator(".message.user .text")).to_have_text("<b>Hello</b>")
    assert page.title() == "Longsight"
    assert text.locator("img, script, u, i").count() == 0
    expect(text).to_contain_text("<img src=x onerror=")
    expect(text.get_by_role("heading")).to_have_text("A bold heading with <b>code</b>")
    assert text.locator("strong").all_inner_texts() == ["bold"]
    assert text.locator("em").all_inner_texts() == ["heading"]
    expect(text.locator("ul > li").first).to_contain_text("one link")
    expect(text.locator("ul > li > ol > li")).to_have_text("nested <i>item</i>")
    assert text.locator("a").evaluate_all("all => all.map(a => a.href)") == ["https://example.org/a?b=1&c=2"]
    expect(text).to_contain_text("[bad](javascript:")
    expect(text.locator(".code pre")).to_have_text('<script>alert("1 **not bold**")</script>')
    expect(text.locator("blockquote")).to_have_text("said <u>so</u>")
    expect(text).to_contain_text("a ` b and 2 * 3 * 4, **unclosed")


MARKDOWN = r"""\
| name | cost |
|:-----|-----:|
| tea  | ~~3~~ **2** |

Euler: $e^{i\pi} + 1 = 0$, and \(a^2\), at $5 or $6 a piece.

\[
\sum_{k=1}^{n} k
\]

See https://example.org/x or [there](https://example.org/y), not setup.py.

```python
def f(x: int) -> str:
    return "a" * x  # b
```

![a cat](https://example.org/cat.png)
"""


@needs_browser
def test_tables_formulas_code_and_links(script: Scripted, tab: Tab) -> None:
    pieces = [MARKDOWN[i : i + 9] for i in range(0, len(MARKDOWN), 9)]
    script.answers = [[*(delta(content=piece) for piece in pieces), *ended()]]
    page = tab.open(script.url, "scripted")
    text = say(page, "Show me").locator(".text")
    cells = text.locator("table td")
    expect(cells).to_have_text(["tea", "3 2"])
    expect(text.locator("table s")).to_have_text("3")
    assert cells.nth(1).evaluate("e => getComputedStyle(e).textAlign") == "right"
    expect(text.locator(".katex")).to_have_count(3)
    expect(text.locator(".katex-display")).to_have_count(1)
    expect(text).to_contain_text("at $5 or $6 a piece")
    expect(text.locator(".code .hljs-keyword").first).to_have_text("def")
    keyword, plain = (
        text.locator(f".code {place}").first.evaluate("e => getComputedStyle(e).color")
        for place in (".hljs-keyword", "code")
    )
    assert keyword != plain
    links = text.locator("a").evaluate_all("all => all.map(a => [a.href, a.rel, a.target])")
    addresses = ["https://example.org/x", "https://example.org/y", "https://example.org/cat.png"]
    assert links == [[address, "noopener noreferrer", "_blank"] for address in addresses]
    assert text.locator("img").count() == 0
    fonts = page.evaluate(
        "document.fonts.ready.then(f => [...f].filter(x => x.status === 'loaded').map(x => x.family))"
    )
    assert any("KaTeX" in family for family in fonts)


SIZE = 100_000
COSTLY = {
    "growing runs of backticks": "".join("`" * n + " " for n in range(1, 447)),
    "bold never closed": "**a " * (SIZE // 4),
    "brackets never closed": "![" * (SIZE // 2),
    "emphasis of both kinds": "*a_ " * (SIZE // 4),
    "a table of empty cells": "|" + "a|" * 1000 + "\n|" + "-|" * 1000 + "\n" + "|\n" * 1000,
    "headings": "# a\n" * (SIZE // 4),
    "formulas": "$x^2$ " * (SIZE // 6),
    "formulas never closed": "\\[\n" * (SIZE // 3),
    "deep fractions": ("$$" + r"\frac{1}{" * 150 + "x" + "}" * 150 + "$$\n\n") * (SIZE // 1500),
    "macros that grow": r"$\def\a{xxxxxxxxxxxxxxxx}\def\b{\a\a\a\a\a\a\a\a}\def\c{\b\b\b\b\b\b\b\b}\c\c\c\c\c\c\c\c$ "
    * 700,
    "one long program": "```python\n" + "def f(x): return 'a' + 1 # b\n" * (SIZE // 30),
    "many programs": "```js\nlet a = 1;\n```\n" * (SIZE // 20),
    "one long word": "a" * SIZE,
}


@needs_browser
@pytest.mark.parametrize("kind", COSTLY)
def test_the_page_stays_responsive_whatever_a_model_writes(script: Scripted, tab: Tab, kind: str) -> None:
    """A timer on the page keeps ticking while the text comes in. The bound is far from both sides: the page as it was
    stood still for 4 to 21 s a frame on such texts, and pauses of a tenth of a second are usual."""
    text = COSTLY[kind]
    pieces = [text[i : i + SIZE // 20] for i in range(0, len(text), SIZE // 20)]
    script.answers = [[*(delta(content=piece) for piece in pieces), delta(content="\n\nThe end"), *ended()]]
    page = tab.open(script.url, "scripted")
    page.evaluate("""() => {
      window.longest = 0;
      let last = performance.now();
      setInterval(() => {
        longest = Math.max(longest, performance.now() - last);
        last = performance.now();
      }, 20);
    }""")
    answer = say(page, "Write something")
    expect(answer.locator("footer")).to_contain_text("1,000 tokens")
    page.wait_for_timeout(1500)
    assert answer.locator(".text").inner_text()[:1] != ""
    assert page.evaluate("longest") < 3000


@needs_browser
def test_a_text_that_takes_too_long_to_format_is_shown_as_it_is(script: Scripted, tab: Tab) -> None:
    script.answers = [[delta(content="**slow**"), *ended()], [delta(content="**quick**"), *ended()]]
    page = tab.page
    body = "onmessage = ({ data: { text } }) => { postMessage({ begun: true }); for (;;); };"
    page.route("**/markdown-worker.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))
    tab.open(script.url, "scripted")
    expect(say(page, "One").locator(".text")).to_have_text("**slow**")
    page.unroute("**/markdown-worker.js")
    expect(say(page, "Two").locator(".text strong")).to_have_text("quick")


def test_vendored_libraries_are_as_published() -> None:
    manifest = json.loads((web.VENDOR / "manifest.json").read_text())
    files = {str(f.relative_to(web.VENDOR)): f for f in web.VENDOR.rglob("*") if f.is_file()}
    assert files.keys() == manifest.keys() | {"manifest.json"}
    lock = json.loads((ROOT / "scripts" / "vendor_web" / "package-lock.json").read_text())["packages"]
    for name, entry in manifest.items():
        package, _, version = entry["package"].rpartition("@")
        assert lock[f"node_modules/{package}"]["version"] == version
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == entry["sha256"], name
    libraries = {entry["package"].rpartition("@")[0] for entry in manifest.values()}
    licensed = {entry["package"].rpartition("@")[0] for name, entry in manifest.items() if name.startswith("LICENSE")}
    assert libraries == licensed
    assert sum(file.stat().st_size for file in files.values()) < 1.5e6


def answers(script: Scripted, *texts: str) -> None:
    script.answers += [[delta(content=text), *ended(cached=3000)] for text in texts]


@needs_browser
def test_versions_of_messages_and_answers(script: Scripted, tab: Tab) -> None:
    answers(script, "One", "Two", "Three", "Four")
    page = tab.open(script.url, "scripted")
    first = say(page, "Count")
    expect(first.locator(".text")).to_have_text("One")
    first.get_by_text("Retry").click()
    shown = page.locator(".message.assistant .text")
    expect(shown).to_have_text("Two")
    switch = page.locator(".message.assistant .branches")
    expect(switch).to_contain_text("2 / 2")
    switch.get_by_label("Earlier version").click()
    expect(shown).to_have_text("One")

    # Another version of the message has answers of its own; the first keeps both of its.
    page.locator(".message.user").get_by_text("Edit").click()
    editor = page.get_by_label("Edit the message")
    expect(editor).to_be_focused()
    editor.press("Escape")
    expect(page.locator(".message.user .text")).to_have_text("Count")
    page.locator(".message.user").get_by_text("Edit").click()
    editor.fill("Count on")
    editor.press("Enter")
    expect(shown).to_have_text("Three")
    expect(page.locator(".message.user .text")).to_have_text("Count on")
    say(page, "And then?")
    expect(shown).to_have_text(["Three", "Four"])
    assert [message["content"] for message in script.asked[-1][0]["messages"]] == ["Count on", "Three", "And then?"]
    mine = page.locator(".message.user").first
    mine.get_by_label("Earlier version").click()
    expect(shown).to_have_text(["One"])
    expect(mine.locator(".text")).to_have_text("Count")
    page.locator(".message.user").get_by_label("Later version").click()
    expect(shown).to_have_text(["Three", "Four"])
    page.reload()
    expect(shown).to_have_text(["Three", "Four"])
    expect(page.locator(".message.user .branches").first).to_contain_text("2 / 2")


@needs_browser
def test_conversations_are_kept_found_renamed_exported_and_deleted(script: Scripted, tab: Tab) -> None:
    answers(script, "Blue.", "A **tall** one.")
    page = tab.open(script.url, "scripted")
    expect(page.locator("#history-list")).to_contain_text("No conversations yet")
    expect(say(page, "Which colour has the sky?").locator("footer")).to_contain_text("1,000 tokens")
    page.click("#new-chat")
    expect(page.locator(".message")).to_have_count(0)
    expect(say(page, "Which tree is that?").locator("footer")).to_contain_text("1,000 tokens")
    titles = page.locator("#history-list .title")
    expect(titles).to_have_text(["Which tree is that?", "Which colour has the sky?"])
    expect(titles.first).to_have_attribute("aria-current", "true")

    page.reload()  # what was shown is shown again
    expect(page.locator(".message.assistant .text")).to_have_text("A tall one.")
    expect(page.locator("#meter .words")).to_have_text("5,000 of 10,000 tokens, 3,000 cached")
    page.fill("#history-search", "BLUE")
    expect(titles).to_have_text(["Which colour has the sky?"])
    titles.first.click()
    expect(page.locator(".message.assistant .text")).to_have_text("Blue.")
    page.fill("#history-search", "nowhere")
    expect(page.locator("#history-list")).to_contain_text("Nothing found")
    page.fill("#history-search", "")

    def menu(title: str, item: str) -> None:
        page.get_by_label(f"More for {title}").click()
        page.get_by_role("menuitem", name=item).click()

    menu("Which colour has the sky?", "Rename")
    page.get_by_label("New title").fill("Sky")
    page.get_by_label("New title").press("Enter")
    expect(titles).to_have_text(["Which tree is that?", "Sky"])
    expect(page.locator("#conversation-title")).to_have_text("Sky")
    with page.expect_download() as markdown:
        menu("Which tree is that?", "Export as Markdown")
    assert markdown.value.suggested_filename == "Which-tree-is-that.md"
    assert markdown.value.path().read_text() == (
        "# Which tree is that?\n\n## You\n\nWhich tree is that?\n\n## Model\n\nA **tall** one.\n"
    )
    with page.expect_download() as whole:
        menu("Sky", "Export as JSON")
    nodes = json.loads(whole.value.path().read_text())["nodes"].values()
    assert [(node["role"], node["content"]) for node in nodes] == [
        ("user", "Which colour has the sky?"),
        ("assistant", "Blue."),
    ]
    menu("Sky", "Delete")
    page.get_by_role("button", name="Cancel").click()
    expect(titles).to_have_count(2)
    menu("Sky", "Delete")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(titles).to_have_text(["Which tree is that?"])
    expect(page.locator(".message")).to_have_count(0)
    page.reload()
    expect(titles).to_have_text(["Which tree is that?"])


@needs_browser
def test_an_answer_goes_on_while_another_conversation_is_shown(script: Scripted, tab: Tab) -> None:
    more = threading.Event()
    script.answers = [[delta(content="Half "), more, delta(content="and half."), *ended()]]
    page = tab.open(script.url, "scripted")
    expect(say(page, "Slowly").locator(".text")).to_have_text("Half")
    page.click("#new-chat")
    expect(page.locator("#send")).to_be_visible()
    page.locator("#history-list .title").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Half")
    expect(page.locator("#stop")).to_be_visible()
    page.click("#new-chat")
    more.set()
    page.locator("#history-list .title").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Half and half.")
    expect(page.locator("#send")).to_be_visible()


@needs_browser
def test_files_and_long_pastes_are_attached_whole_or_refused_with_the_reason(script: Scripted, tab: Tab) -> None:
    answers(script, "Read.", "Read again.")
    page = tab.open(script.url, "scripted")
    long = "A line of notes.\n" * 500
    files: list[Any] = [
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": long.encode()},
        {"name": "wide.txt", "mimeType": "text/plain", "buffer": "wide é".encode("utf-16")},
        {"name": "cat.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n\x00\x00"},
        {"name": "empty.txt", "mimeType": "text/plain", "buffer": b""},
        {"name": "huge.log", "mimeType": "text/plain", "buffer": b"x" * (16 * 2**20 + 1)},
    ]
    page.set_input_files("#attach-input", files)
    chips = page.locator("#chips .file-chip")
    expect(chips).to_have_count(2)
    expect(chips.first).to_contain_text("8,500 characters, about 2,834 tokens")
    for cue in (
        "cat.png is not a text file",
        "empty.txt is empty",
        "huge.log has 16.0 MiB; a text file of up to 16.0 MiB",
    ):
        expect(page.locator("#composer-cue")).to_contain_text(cue)
    expect(page.locator("#estimate")).to_contain_text("about 2,8")
    page.get_by_label("Remove wide.txt").click()
    expect(chips).to_have_count(1)

    paste = """text => {
      const data = new DataTransfer();
      data.setData("text/plain", text);
      const event = new ClipboardEvent("paste", { clipboardData: data, cancelable: true, bubbles: true });
      document.getElementById("input").dispatchEvent(event);
    }"""
    page.evaluate(paste, "pasted " * 5000)
    expect(chips).to_have_count(2)
    expect(page.locator("#composer-cue")).to_have_text("The pasted text is attached whole, 35,000 characters.")
    expect(page.locator("#estimate")).to_contain_text("the model has room for 10,000")
    chips.last.locator(".chip-name").click()
    expect(page.get_by_role("dialog").locator("pre")).to_have_text("pasted " * 5000)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)

    drop = """text => {
      const data = new DataTransfer();
      data.items.add(new File([text], "dropped.md", { type: "text/markdown" }));
      for (const type of ["dragenter", "dragover", "drop"]) {
        const event = new DragEvent(type, { dataTransfer: data, cancelable: true, bubbles: true });
        document.getElementById("log").dispatchEvent(event);
        if (type === "dragenter") window.cue = !document.getElementById("drop").hidden;
      }
    }"""
    page.evaluate(drop, "# Dropped")
    assert page.evaluate("window.cue")
    expect(page.locator("#drop")).to_be_hidden()
    expect(chips).to_have_count(3)
    say(page, "What do they say?")
    expect(page.locator(".message.assistant .text")).to_have_text("Read.")
    (sent,) = script.asked[0][0]["messages"]
    assert sent["content"] == (
        f"File notes.txt:\n\n{long.rstrip()}\n\nFile Pasted text:\n\n{('pasted ' * 5000).rstrip()}\n\n"
        "File dropped.md:\n\n# Dropped\n\nWhat do they say?"
    )
    expect(chips).to_have_count(0)
    expect(page.locator(".message.user .file-chip")).to_have_count(3)
    # What was typed is sent whole too; the page shows its beginning, and says so.
    typed = "word " * 700
    say(page, typed)
    expect(page.locator(".message.assistant .text").last).to_have_text("Read again.")
    assert script.asked[1][0]["messages"][-1]["content"] == typed.strip()
    button = page.get_by_role("button", name="Show all 3,499 characters")
    assert len(page.locator(".message.user .text").last.inner_text()) < 1300
    button.click()
    expect(page.locator(".message.user .text").last).to_have_text(typed.strip())


@needs_browser
def test_speed_under_an_answer(script: Scripted, tab: Tab) -> None:
    later = threading.Event()
    script.answers = [[delta(content="a"), later, delta(content="b"), *ended(cached=3000)], [*ended()]]
    page = tab.open(script.url, "scripted")
    answer = say(page, "How fast?")
    expect(answer.locator(".text")).to_have_text("a")
    later.set()
    note = answer.locator("footer > .note")
    expect(note).to_have_text(re.compile(r"^1,000 tokens · [\d.,]+ tokens/s · first token after [\d.]+ (ms|s)$"))
    expect(note).to_have_attribute("title", "4,000 tokens read, 3,000 of them from the cache")
    # Rates are of tokens after the first; without a time between there is none to tell.
    told = page.evaluate("""async () => {
      const { notes } = await import("./web/speed.js");
      const usage = (n) => ({ completion_tokens: n, prompt_tokens: 1 });
      return [
        notes({ usage: usage(101), times: { first: 1234, rest: 5000 }, done: true }),
        notes({ usage: usage(1), times: { first: 75_000, rest: 0 }, finish: "length", done: true }),
        notes({ times: { first: 20, rest: 9 }, finish: "cancelled", done: true }),
        notes({ done: false }),
      ];
    }""")
    assert told == [
        ["101 tokens", "20.0 tokens/s", "first token after 1.2 s"],
        ["1 token", "cut at the length limit", "first token after 1 min 15 s"],
        ["stopped", "first token after 20 ms"],
        ["broken off"],
    ]


@needs_browser
def test_a_reload_keeps_the_part_of_an_answer_that_came(script: Scripted, tab: Tab) -> None:
    tab.expected = ["ERR_"]
    never = threading.Event()
    script.answers = [[delta(content="The beginning "), never]]
    page = tab.open(script.url, "scripted")
    expect(say(page, "Tell me").locator(".text")).to_have_text("The beginning")
    page.reload()
    expect(page.locator(".message.assistant .text")).to_have_text("The beginning")
    expect(page.locator(".message.assistant footer")).to_contain_text("broken off")
    never.set()


@needs_browser
def test_errors_are_shown_with_their_request(script: Scripted, tab: Tab) -> None:
    tab.expected = ["Failed to load resource", "ERR_INCOMPLETE_CHUNKED_ENCODING"]
    refusal = {
        "error": {"message": "the key is <wrong>", "type": "authentication_error", "param": None, "code": "bad_key"}
    }
    failure = {"error": {"message": "a step failed", "type": "server_error", "param": None, "code": "internal_error"}}
    script.answers = [
        JSONResponse(refusal, 401, headers={"x-request-id": "req_42"}),
        [delta(content="Half an "), failure],
        [delta(content="Cut")],
        [delta(content="Whole."), *ended()],
    ]
    page = tab.open(script.url, "scripted")
    page.click("#settings-button")
    page.fill("[name=key]", "sk-mine")
    answer = say(page, "Hello")
    expect(answer.get_by_role("alert")).to_contain_text("the key is <wrong>")
    expect(answer.get_by_role("alert")).to_contain_text("HTTP 401 · bad_key · req_42")
    for shown, message in (("Half an", "a step failed"), ("Cut", "The connection ended before the answer did.")):
        page.locator(".message.assistant").get_by_text("Retry").click()
        expect(page.get_by_role("alert")).to_contain_text(message)
        expect(page.get_by_role("alert")).to_contain_text("req_7")
        expect(page.locator(".message.assistant .text")).to_have_text(shown)
    page.locator(".message.assistant").get_by_text("Retry").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Whole.")
    expect(page.get_by_role("alert")).to_have_count(0)
    assert {headers["authorization"] for _, headers in script.asked} == {"Bearer sk-mine"}
    assert all(body["messages"] == [{"role": "user", "content": "Hello"}] for body, _ in script.asked)

    page.fill("[name=tools]", "[{")
    expect(say(page, "Again").get_by_role("alert")).to_contain_text("Tools in the settings are not valid JSON")
    page.reload()
    assert page.locator("[name=key]").input_value() == "sk-mine"
    page.fill("[name=tools]", "") if page.locator("[name=tools]").is_visible() else page.evaluate(
        "localStorage.clear()"
    )


@needs_browser
def test_a_server_that_asks_for_a_key(tab: Tab) -> None:
    tab.expected = ["Failed to load resource"]
    with live_server(authenticator=StaticKey("sk-secret")) as server, httpx.Client(base_url=server.url) as http:
        for path in ("/web/../v1/models", "/web/%2e%2e/v1/models", "/web/..%2fv1/models", "/web//v1/models"):
            response = http.send(http.build_request("GET", httpx.URL(server.url, raw_path=path.encode())))
            assert response.status_code in (401, 404), path
        page = tab.page
        page.goto(server.url)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("an API key is needed. Put yours under Settings")
        expect(alert).not_to_contain_text("Authorization")
        expect(say(page, "Hello").get_by_role("alert")).to_contain_text("Put yours under Settings")
        page.click("#new-chat")
        alert.get_by_text("Open Settings").click()
        expect(page.locator("[name=key]")).to_be_focused()
        page.fill("[name=key]", "sk-wrong")
        page.press("[name=key]", "Tab")
        expect(alert).to_contain_text("does not take the API key that is under Settings")
        page.fill("[name=key]", "sk-secret")
        page.press("[name=key]", "Tab")
        expect(page.locator("#model")).to_have_value("tiny")
        expect(page.get_by_role("alert")).to_have_count(0)
        page.fill("[name=maxTokens]", "4")
        page.fill("[name=temperature]", "0")
        expect(say(page, "abcdefgh abcdefgh abcd").locator(".text")).to_have_text("efgh")
        page.click("#tab-microscope")
        page.fill("#scope-prompt", "abcdefgh abcdefgh abcd")
        page.fill("[name=tokens]", "4")
        page.click("#scope-run")
        expect(page.locator("#strip button")).to_have_text(["e", "f", "g", "h"])
        page.locator("#read-list button").first.click()
        expect(page.locator("#block-text pre")).to_contain_text("abcd")
        server.engine.prefix_cache.clear()


@needs_browser
def test_progress_and_stop(script: Scripted, tab: Tab) -> None:
    never, more = threading.Event(), threading.Event()
    progress = {"choices": [], "prompt_progress": {"processed": 1024, "total": 4096}}
    script.answers = [[progress, more, delta(content="Some text"), ": keep-alive\n\n", never]]
    page = tab.open(script.url, "scripted")
    answer = say(page, "Read this")
    bar = answer.get_by_role("progressbar")
    expect(bar).to_have_js_property("value", 1024)
    expect(bar).to_have_js_property("max", 4096)
    expect(answer.locator(".progress")).to_have_text("Reading: 1,024 of 4,096 tokens")
    more.set()
    expect(answer.locator(".text")).to_have_text("Some text")
    expect(bar).to_be_hidden()
    page.click("#stop")
    expect(answer.locator("footer")).to_contain_text("stopped")
    assert script.left.wait(10), "the server was not told"
    expect(page.locator("#send")).to_be_visible()
    expect(answer.locator(".text")).to_have_text("Some text")
    never.set()


@needs_browser
def test_a_phone_and_the_dark(real: LiveServer, tab: Tab, needle: NeedlePrompt) -> None:
    page = tab.page
    page.set_viewport_size({"width": 375, "height": 667})
    tab.open(real.url, "tiny")

    def nothing_sticks_out() -> None:
        sizes = (
            "e => [document.documentElement.scrollWidth, ...[...e.children].map(c => c.getBoundingClientRect().right)]"
        )
        assert max(page.locator("main > section:not([hidden])").evaluate(sizes)) <= 375

    nothing_sticks_out()
    page.click("#settings-button")
    nothing_sticks_out()
    page.fill("[name=maxTokens]", "3")
    page.click("#settings-button")
    expect(say(page, needle.text[-600:] + "w" * 300).locator("footer")).to_contain_text("3 tokens")
    nothing_sticks_out()
    for button in ("#send", "#new-chat"):
        expect(page.locator(button)).to_be_in_viewport()
    page.click("#tab-microscope")
    page.fill("#scope-prompt", needle.text[:2600])
    page.fill("[name=tokens]", "2")
    page.click("#scope-run")
    expect(page.locator("#strip button")).to_have_count(2)
    nothing_sticks_out()

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    for name, colour in (("Light", light), ("Dark", dark), ("System", dark), ("Light", light)):
        page.click("#theme")
        expect(page.locator("#theme")).to_contain_text(name)
        assert background() == colour
    swatch = page.locator("#swatch-read").evaluate("e => getComputedStyle(e).backgroundColor")
    expect(page.locator("#grid")).to_be_visible()
    assert swatch in colours(page)
    page.reload()
    expect(page.locator("#theme")).to_contain_text("Light")
    assert background() == light


@needs_browser
def test_tabs_by_keyboard_and_names_for_everything(real: LiveServer, tab: Tab) -> None:
    page = tab.open(real.url, "tiny")
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-microscope")).to_be_focused()
    expect(page.locator("#microscope")).to_be_visible()
    expect(page.locator("#chat")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#chat")).to_be_visible()
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, canvas")]
      .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)
        || (e.matches("select") && !e.labels.length))
      .map((e) => e.outerHTML)""")
    assert nameless == []


@needs_browser
def test_the_page_under_a_root_path(tab: Tab) -> None:
    with live_server(root_path="/deep/ls") as server:
        bare = httpx.get(f"{server.url}/deep/ls", headers={"accept": "text/html"}, follow_redirects=True)
        assert bare.url.path == "/deep/ls/"
        page = tab.open(f"{server.url}/deep/ls/", "tiny")
        page.click("#settings-button")
        page.fill("[name=maxTokens]", "4")
        page.fill("[name=temperature]", "0")
        expect(say(page, "abcdefgh abcdefgh abcd").locator(".text")).to_have_text("efgh")
        page.locator(".message.assistant").get_by_text("Microscope").click()
        expect(page.locator("#strip button")).to_have_count(48)
        assert page.locator("#strip button").all_inner_texts()[:4] == ["e", "f", "g", "h"]
        page.locator("#read-list button").first.click()
        expect(page.locator("#block-text pre")).to_contain_text("abcd")
        server.engine.prefix_cache.clear()


# Every text that is seen, against what lies behind it, by WCAG's formula. Disabled controls may be fainter.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("button:disabled, .katex-mathml, .hidden-label, option")) continue;
    if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(rgba(getComputedStyle(e).backgroundColor));
    const back = chain.reduce((below, colour) => over(colour, below), rgba("Canvas"));
    const [a, b] = [light(over(rgba(getComputedStyle(element).color), back)), light(back)].sort((x, y) => y - x);
    const place = `${element.localName}${element.id && "#" + element.id}.${element.className}`;
    found[place] = Math.min(found[place] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return found;
}"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text_in_every_state(script: Scripted, real: LiveServer, tab: Tab, scheme: Any) -> None:
    tab.expected = ["Failed to load resource"]
    tab.expected.append(f"a request to {real.url}")
    call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    sample = "\n".join(
        f"```{language}\n{code}\n```"
        for language, code in {
            "python": '@cache\ndef f(x: int = 1) -> str:\n    """Doc."""\n    return f"{x}" + "a"  # note',
            "html": '<!doctype html><a href="x">y</a>',
            "css": "#a .b:hover { color: red; width: 3px }",
            "diff": "+ new\n- old\n@@ 1 @@",
            "bash": 'echo "$HOME" # x',
            "json": '{"a": [1, true, null]}',
            "markdown": "# A\n- [b](c) **d** `e`",
        }.items()
    )
    failure = {"error": {"message": "it failed", "type": "server_error", "param": None, "code": "internal_error"}}
    script.answers = [
        [delta(reasoning_content="Hm."), delta(content=f"{MARKDOWN}\n> said\n\n# Head\n{sample}"), *ended()],
        [delta(tool_calls=[call]), *ended("tool_calls")],
        [delta(content="Some"), failure],
    ]
    page = tab.page
    page.emulate_media(color_scheme=scheme)
    tab.open(script.url, "scripted")
    checked: set[str] = set()

    def check(state: str) -> None:
        page.wait_for_timeout(100)
        ratios = page.evaluate(CONTRASTS)
        low = {place: round(ratio, 2) for place, ratio in ratios.items() if ratio < 4.5}
        assert low == {}, (state, scheme)
        checked.update(ratios)

    check("welcome")
    page.evaluate("document.getElementById('small-model').hidden = false")
    page.click("#settings-button")
    check("settings")
    page.click("#settings-button")
    answer = say(page, "Hello " + "there " * 400)
    expect(answer.locator("footer")).to_contain_text("1,000 tokens")
    expect(answer.locator(".katex")).to_have_count(3)
    answer.locator("summary").click()
    check("an answer")
    for button in (
        "#send",
        "#new-chat",
        "#settings-button",
        "#tab-microscope",
        "#history-list .title",
        "footer :text('Retry')",
    ):
        page.locator(button).first.hover()
        check(f"pointer on {button}")
    page.locator(".message.user").get_by_text("Edit").click()
    check("editing")
    page.get_by_role("button", name="Cancel").click()
    page.locator("#history-list .icon").click()
    check("menu")
    page.get_by_role("menuitem", name="Delete").click()
    check("confirming")
    page.get_by_role("button", name="Cancel").click()
    expect(say(page, "Weather?").locator("footer")).to_be_visible()
    page.set_input_files("#attach-input", [{"name": "a.png", "mimeType": "image/png", "buffer": b"\0"}])
    page.fill("#input", "much " * 20_000)
    check("a tool call, a refused file and too long a draft")
    page.fill("#input", "")
    expect(say(page, "Fail").get_by_role("alert")).to_contain_text("it failed")
    check("an error")
    page.goto(f"{real.url}/#microscope")
    expect(page.locator("#model")).to_have_value("tiny")
    page.click("#scope-needle")
    page.fill("[name=tokens]", "4")
    page.click("#scope-run")
    expect(page.locator("#strip button")).to_have_count(4)
    page.locator("#strip button").nth(1).click()
    page.locator("#read-list button").first.click()
    expect(page.locator("#block-text pre")).to_be_visible()
    check("a chosen token")
    page.locator("#strip [aria-selected=true]").hover()
    check("pointer on the chosen token")
    page.mouse.move(*point_at(page, 1, 1, 4))
    check("tooltip")
    for part in (".hljs-keyword", ".hljs-comment", ".menu", "code", "dialog", "small"):
        wanted = {".menu": "button.", "dialog": "button.danger"}.get(part, part.lstrip("."))
        assert any(wanted in place for place in checked), part


@needs_browser
def test_the_small_model_says_what_it_can_do(tab: Tab) -> None:
    """The examples that the page offers, asked of the real model. It is shown for no other model."""
    path = model_dir("embedded")
    model, tokenizer = load_model(path), Tokenizer.from_dir(path)
    options: dict[str, Any] = {"template": None, "built_in": "embedded", "chunk_tokens": 2048, "pages": 240}
    with live_server(model, tokenizer=tokenizer, **options) as server:
        page = tab.open(server.url, "tiny")
        expect(page.locator("#small-model")).to_contain_text("It knows nothing about the world")
        page.click("#settings-button")
        page.fill("[name=temperature]", "0")
        page.click("#settings-button")
        labels = page.locator("#examples button").all_inner_texts()
        assert len(labels) == 3
        for label in labels:
            page.click("#new-chat")
            page.get_by_role("button", name=label).click()
            question = page.locator("#input").input_value().rsplit("\n", 1)[-1]
            page.press("#input", "Enter")
            expect(page.locator(".message.assistant footer")).to_contain_text("tokens", timeout=120_000)
            sent = page.locator(".message.user .text").inner_text()
            if page.locator(".message.user .file-chip").count():
                page.locator(".message.user .chip-name").click()
                sent = page.get_by_role("dialog").locator("pre").inner_text()
                page.keyboard.press("Escape")
            subject = question.removeprefix("What is ").removesuffix("?")
            (sentence,) = re.findall(rf"{subject} is [^\s.]+\.", sent, re.IGNORECASE)
            value = sentence.removesuffix(".").rsplit(" ", 1)[1]
            expect(page.locator(".message.assistant .text")).to_contain_text(value)
        server.engine.prefix_cache.clear()
