"""Markup, scripts and paths in every text that a page shows; text must stay text.

    python -m tests.campaigns.pages --size 500 --seed 1

The size is the number of attacks, on each of `PAGES` in turn: the chat, asked as an ASGI
application, with questions, uploaded files, their names, and answers of a language model; its
playground, with queries, candidates and names of models, and the programs that it writes; the
report of `evaluate`, with questions, passages, ids and names; the tables of notebooks; uploads with
paths, archives, and PDF files that are broken or take too long; requests from other sites and under
other names. Passes if a parser of HTML finds each text in the page, letter by letter, and no
element, attribute or template sign that the page itself does not have; if no file outside the
upload folder is read or written; and if requests of others are refused.
"""

import ast
import asyncio
import base64
import io
import json
import os
import random
import re
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import gradio as gr
import html5lib
from fastapi import FastAPI
from rag_chatbot.chatbot import Chatbot
from rag_chatbot.page import build_app, build_page
from rag_chatbot.passages import Passage
from rag_chatbot.search import Index
from rag_chatbot.settings import LanguageModel, RerankSettings
from starlette.testclient import TestClient

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base.trace import PassageTrace, RerankTrace
from bge_rerank_integrations.evaluate import JudgedQuery, evaluate
from bge_rerank_integrations.evaluate.page import html_page
from tests.campaigns.command import run_campaign
from tests.examples.language_model import LanguageModelServer
from tests.examples.pdfs import pdf_of, pdf_with_negative_offsets, slow_pdf
from tests.fakes import WordOverlapScorer

CANARY = "zqjx"
"""A part of every hostile text and of nothing else."""

MARKUP = (
    "<script>zqjx()</script>", "</script><script>zqjx()//", "<img src=zqjx onerror='zqjx()'>",
    '"><svg onload=zqjx()>', "' onmouseover='zqjx()", "</p></div></table><zqjx>", "<!-- zqjx -->",
    "--><zqjx", "<![CDATA[zqjx]]>", "<?zqjx?>", "</title></style></textarea><zqjx a=1>",
    "<a href=javascript:zqjx()>x</a>", "[x](javascript:zqjx())", "![](https://zqjx.example/a.png)",
    "<iframe srcdoc='<zqjx>'>", "<base href=//zqjx.example>", "<style>@import 'zqjx'</style>",
    "&lt;zqjx&gt; &#60;zqjx&#x3e; &amp;zqjx;", "＜script＞zqjx()＜/script＞", "﹤zqjx﹥",
    "${zqjx} {{zqjx}} {%zqjx%} #{zqjx}", "@children @zqjx", "`zqjx` \\x3czqjx\\x3e \\u003czqjx",
    "<math><mtext></table><mglyph><style><zqjx>", "<zqjx style='x:expression(1)'>", "$zqjx^2$",
    "\"\"\" + zqjx() + \"\"\"", "'); zqjx('", "{zqjx} {0.zqjx} %(zqjx)s", "[1] [2] [999] [zqjx](#)",
    "\x00<zqjx>\x00", "<\tzqjx\r\n>", "\u202e<zqjx>\u202c", "<zqjx\u2028a\u2029>", "\x1b[31mzqjx",
)  # fmt: skip
WORDS = ("red", "fox", "panda", "bamboo", "大熊猫", "the", "river", "a", "1901", "é")
TAGS = {
    *("a", "b", "br", "div", "h1", "h4", "header", "li", "mark", "ol", "p", "pre", "span"),
    *("body", "h2", "h3", "head", "html", "img", "meta", "style", "table", "tbody", "td", "th"),
    *("thead", "title", "tr", "line", "svg"),
}
NUMBER = r"-?[\d.]+"
ATTRIBUTES = {
    "class": r"[a-z -]+", "id": r"source-\d+", "href": r"#source-\d+", "style": r"--rows:\d+",
    "role": "status", "aria-live": "polite", "aria-hidden": "true", "viewBox": r"0 0 10 \d+",
    "preserveAspectRatio": "none", "x1": NUMBER, "x2": NUMBER, "y1": NUMBER, "y2": NUMBER,
    "lang": "en", "charset": "utf-8", "src": r"data:image/svg\+xml;base64,[\w+/=]+",
    "content": r"[\w =,.:;'-]+", "http-equiv": "Content-Security-Policy", "name": "viewport",
    "alt": r"[\w ,@-]+", "data-label": r"[\w ,@%/-]*",
}  # fmt: skip
CHART_TAGS = {
    *("svg", "g", "defs", "style", "path", "use", "rect", "clipPath", "text", "tspan"),
    *("metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title", "date"),
}
CALLS = {
    *("BGERerank", "NodeWithScore", "TextNode", "Document", "print"),
    *("postprocess_nodes", "compress_documents", "get_content"),
}
OWN = "127.0.0.1:7860"
SECRET = "the secret of the house"
Attack = Callable[["_House", random.Random], None]


def campaign(size: int, seed: int) -> Counter[str]:
    """The number of attacks and of texts found; raises `AssertionError` for one that was markup."""
    with ExitStack() as after:
        house = after.enter_context(_house(seed))
        for number in range(size):
            kind = list(PAGES)[number % len(PAGES)]
            PAGES[kind](house, random.Random(f"{seed}/{number}"))
            house.counts[kind] += 1
        return house.counts


def hostile(rng: random.Random) -> str:
    """A text of words and markup, which ends in a number of its own."""
    parts = rng.choices(MARKUP, k=rng.randint(1, 3)) + rng.choices(WORDS, k=rng.randint(1, 4))
    rng.shuffle(parts)
    return f"{rng.choice(('', ' ')).join(parts)} {CANARY}{rng.randrange(10**9)}"


def one_line(text: str) -> str:
    """The text without the characters at which a file or a list of candidates has a new line."""
    return " ".join(text.split())


def letters(text: str) -> str:
    """What a reader sees of a text: no spaces, no control characters, look-alikes made one."""
    plain = unicodedata.normalize("NFKC", text)
    return "".join(sign for sign in plain if sign.isprintable() and not sign.isspace())


def _built(bot: Chatbot, index: Index, example: str) -> tuple[gr.Blocks, FastAPI]:
    """A page and its application; gradio would leave loops open where none runs."""

    async def build() -> tuple[gr.Blocks, FastAPI]:
        page = build_page(bot, index, any_model=True, examples=[example])
        return page, build_app(page, host="127.0.0.1", loopback=True)

    with closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(build())


class _House:
    """The pages under attack, their upload folder, and what was counted."""

    def __init__(self, folder: Path, llm: LanguageModelServer) -> None:
        self.counts: Counter[str] = Counter()
        self.folder, self.llm = folder, llm
        self._sessions = 0

    def open(self, after: ExitStack, name: str) -> None:
        """Both pages: one whose answers are sentences, one with a language model of this name."""
        index = Index([Passage("1", "A red fox eats bamboo.", "bears.txt")])
        settings = RerankSettings(scorer=WordOverlapScorer(), min_score=0.0)
        bots = (
            Chatbot("langchain", settings),
            Chatbot("llama-index", settings, llm=LanguageModel(name, self.llm.url, "none")),
        )
        self.clients: list[TestClient] = []
        for bot in bots:
            page, app = _built(bot, index, name)
            self.functions = {
                function.fn.__name__: number
                for number, function in page.fns.items()
                if function.fn is not None
            }
            client = TestClient(app, base_url=f"http://{OWN}", raise_server_exceptions=False)
            self.clients.append(after.enter_context(client))

    def session(self) -> str:
        """A visitor who was not here before."""
        self._sessions += 1
        return f"visitor{self._sessions}"

    def call(self, client: TestClient, session: str, name: str, data: list[Any]) -> Any:
        """The last output of one of the page's functions, or its error."""
        asked = {"data": data, "fn_index": self.functions[name], "session_hash": session}
        kind = {"content-type": "application/json"}
        joined = client.post("/gradio_api/queue/join", content=json.dumps(asked), headers=kind)
        assert joined.status_code == 200, joined.text
        stream = client.get("/gradio_api/queue/data", params={"session_hash": session}).text
        events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: ")]
        (done,) = [event for event in events if event["msg"] == "process_completed"]
        assert SECRET not in stream
        return done["output"].get("data", done["output"].get("error"))

    def upload(self, client: TestClient, *files: tuple[str, bytes]) -> list[str]:
        """The paths at which the files lie, which must be in the upload folder, byte by byte."""
        sent = [("files", (name, content, "text/plain")) for name, content in files]
        answer = client.post("/gradio_api/upload", files=sent)
        if answer.status_code != 200:
            assert answer.status_code in (400, 413, 422), answer.text
            self.counts["uploads that were refused"] += 1
            return []
        paths: list[str] = answer.json()
        for path, (_, content) in zip(paths, files, strict=True):
            where = Path(path).resolve()
            assert where.is_relative_to((self.folder / "uploads").resolve()), path
            assert where.read_bytes() == content
        return paths

    def shows(self, html: str, texts: Iterable[str]) -> None:
        """Raise `AssertionError` unless the page shows the texts, and has no markup of theirs."""
        shown = letters(inert(html))
        assert not re.search(r"[${}@`\\]", html), html
        for text in texts:
            assert letters(text) in shown, (text, html)
            self.counts["texts found"] += 1


@contextmanager
def _house(seed: int) -> Iterator[_House]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LanguageModelServer() as llm,
        _environment(GRADIO_TEMP_DIR=str(Path(folder) / "uploads")),
        ExitStack() as after,
    ):
        (Path(folder) / "secret.txt").write_text(SECRET, encoding="utf-8")
        house = _House(Path(folder), llm)
        house.open(after, hostile(random.Random(f"{seed}/name")))
        before = _outside(Path(folder))
        yield house
        assert _outside(Path(folder)) == before


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _outside(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "uploads" not in path.parts)


def inert(html: str) -> str:
    """The text of a page whose elements and attributes are all the page's own."""
    parse = html5lib.parse if html.startswith("<!DOCTYPE") else html5lib.parseFragment
    tree = parse(html, treebuilder="etree", namespaceHTMLElements=False)
    for element in tree.iter():
        if element is tree and element.tag == "DOCUMENT_FRAGMENT":
            continue
        assert isinstance(element.tag, str), "a comment"
        assert _local(element.tag) in TAGS, element.tag
        assert element.tag != "style" or CANARY not in (element.text or "")
        for name, value in element.attrib.items():
            assert re.fullmatch(ATTRIBUTES.get(name, ""), value), (element.tag, name, value)
    return "".join(tree.itertext())


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _chat(house: _House, rng: random.Random) -> None:
    """A file with a hostile name and text, and a question about it."""
    client, session = rng.choice(house.clients), house.session()
    with_model = client is house.clients[1]
    text = f"red fox {one_line(hostile(rng))}"
    name = f"{hostile(rng)[:60]}{CANARY}.{rng.choice(('txt', 'md'))}"
    paths = house.upload(client, (name, text.encode()))
    if not paths:
        return
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    own, _, report, about, _ = house.call(client, session, "change", [files, None])
    stored = Path(paths[0]).name
    house.shows(report, [stored])
    house.shows(about, ["2 passages"])
    question, said = f"red fox? {hostile(rng)}", one_line(hostile(rng))
    house.llm.pieces = re.findall(".{1,7}", f"{said} [1]", re.DOTALL)
    answered = house.call(client, session, "answer", [question, None, own, True])
    conversation, _, unanswered, notes, sources = answered
    assert unanswered == "", notes
    house.shows(conversation, [question, said if with_model else CANARY])
    house.shows(notes, [])
    house.shows(sources, [text, stored])


def _playground(house: _House, rng: random.Random) -> None:
    """A query, candidates, and a model that is not there."""
    client, session = house.clients[0], house.session()
    query = hostile(rng)
    candidates = [one_line(hostile(rng)) for _ in range(rng.randint(1, 5))]
    second = rng.choice(("none", f"<{hostile(rng)}"))
    asked = [query, "\n".join(candidates), "offline", second]
    answer = house.call(
        client, session, "rerank", [*asked, None, None, rng.random() < 0.5, None, "cut"]
    )
    said, orders, exported, *programs = answer
    house.shows(said, [] if second == "none" else [second])
    house.shows(orders, candidates)
    assert json.loads(exported)["candidates"] == candidates
    for program in programs:
        tree = ast.parse(program)
        found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert [text for text in found if text in candidates] == candidates, program
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {getattr(one, "id", None) or getattr(one, "attr", None) for one in called}
        assert names <= CALLS, names
        house.counts["programs"] += 1


def _report(house: _House, rng: random.Random) -> None:
    """Questions, passages, ids, names of rerankers and scorers, a title and code."""
    texts = {hostile(rng): hostile(rng) for _ in range(3)}
    first, *_, last = texts
    queries = [JudgedQuery(hostile(rng), texts[last], texts, {last: 1})]
    name, scorer, title, code = (hostile(rng) for _ in range(4))
    report = evaluate(
        queries,
        {name: WordOverlapScorer(scorer), f"{name} 2": WordOverlapScorer()},
        resamples=100,
        title=title,
    )
    page = html_page(report, code=code)
    shown = letters(inert(page))
    changed = [] if texts[first] == texts[last] else [texts[last]]
    for text in (name, scorer, title, code, *changed):
        assert letters(text) in shown, text
        house.counts["texts found"] += 1
    for chart in re.findall(r"base64,([\w+/=]+)", page):
        drawn = ET.fromstring(base64.b64decode(chart))
        for element in drawn.iter():
            assert _local(element.tag) in CHART_TAGS, element.tag
            assert not any(key.lower().startswith("on") for key in element.attrib)
            assert CANARY not in "".join(element.attrib.values())
        house.counts["charts"] += 1


def _tables(house: _House, rng: random.Random) -> None:
    """The tables of a trace and of a plan in a notebook."""
    facts = {hostile(rng): hostile(rng) for _ in range(3)}
    rule, failure = hostile(rng), hostile(rng)
    passages = (PassageTrace(0, 1, 0.5, 0.6), PassageTrace(1, None, None, None))
    trace = RerankTrace(passages, "logit", False, rule, failure, None, {}, {"total": 0.1}, facts)
    shown = letters(inert(trace._repr_html_()))
    for text in (*facts, *facts.values(), rule, failure):
        assert letters(text) in shown, text
        house.counts["texts found"] += 1
    inert(load_scorer("offline").plan._repr_html_())


def _uploads(house: _House, rng: random.Random) -> None:
    """Files with the names of paths, of other kinds than they say, broken, or too large."""
    client, session = house.clients[0], house.session()
    kind = rng.choices(list(FILES), [0.2 if name == "slow PDF" else 2 for name in FILES])[0]
    ending, content = FILES[kind](rng)
    name = rng.choice(PATHS).format(rng.randrange(10**6)) + ending
    files: list[Any] = [
        {"path": path, "meta": {"_type": "gradio.FileData"}}
        for path in house.upload(client, (name, content))
    ]
    if rng.random() < 0.3:
        secret = house.folder / rng.choice(("secret.txt", "uploads/../secret.txt"))
        files.append({"path": str(secret), "meta": {"_type": "gradio.FileData"}})
        read = client.get(f"/gradio_api/file={secret}")
        assert (read.status_code in (403, 404), SECRET in read.text) == (True, False)
        house.counts["other files that were not read"] += 1
    foreign = len(files) > 1 or "secret.txt" in str(files)
    changed = house.call(client, session, "change", [files, None])
    assert not (foreign and isinstance(changed, list)), files
    if not isinstance(changed, list):
        house.counts["files that were refused"] += 1
        return
    house.shows(changed[2], [Path(file["path"]).name for file in files])
    read_in = "passages were added" in changed[2]
    assert not (read_in and kind in UNREADABLE), (kind, changed[2])
    house.counts["files that were read" if read_in else "files that were left out"] += 1


def _origins(house: _House, rng: random.Random) -> None:
    """Requests of a page of another site, and under another name of this machine."""
    client = rng.choice(house.clients)
    foreign = rng.choice(
        ("evil.example", f"{OWN}.evil.example", "127.0.0.1:3000", "[::2]:7860", "null", "")
    )
    path = rng.choice(("/", "/config", "/gradio_api/upload", "/gradio_api/queue/join"))
    method = "GET" if path in ("/", "/config") else "POST"
    body: Mapping[str, Any] = {"files": [("files", ("a.txt", b"a"))]} if "upload" in path else {}
    origin = {"origin": f"http://{foreign}" if foreign != "null" else "null"}
    answer = client.request(method, path, headers=origin, **body)
    assert answer.status_code == 403, (origin, path)
    hosts = {"host": foreign, "origin": f"http://{foreign}"}
    if foreign != "127.0.0.1:3000":  # a name of this machine: a tunnel may have another port
        answer = client.request(method, path, headers=hosts, **body)
        assert answer.status_code == 400, (hosts, path)
    assert "access-control-allow-origin" not in answer.headers
    own = client.get(rng.choice(("/", "/config")), headers={"origin": f"http://{OWN}"})
    assert own.status_code == 200
    if own.headers["content-type"].startswith("text/html"):
        tree = html5lib.parse(own.text, treebuilder="etree", namespaceHTMLElements=False)
        for element in tree.iter():
            if element.tag != "script":  # which has the page's settings as JSON
                assert CANARY not in str((element.tag, element.attrib, element.text))


def _archive(rng: random.Random) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(rng.choice(("../../evil.txt", "/etc/evil.txt", "a.txt")), b"0" * 100_000)
    return whole.getvalue()


def _broken_pdf(rng: random.Random) -> bytes:
    damaged = bytearray(pdf_of("a red fox", "bamboo"))
    for _ in range(rng.randint(1, 30)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])


FILES: dict[str, Callable[[random.Random], tuple[str, bytes]]] = {
    "text": lambda rng: (rng.choice((".txt", ".md")), f"red fox {hostile(rng)}".encode()),
    "archive": lambda rng: (rng.choice((".txt", ".pdf", ".zip", ".md")), _archive(rng)),
    "not UTF-8": lambda rng: (".txt", "é".encode("latin-1") + rng.randbytes(50) + b"\xff"),
    "UTF-16": lambda rng: (".md", hostile(rng).encode("utf-16")),
    "empty": lambda rng: (rng.choice((".txt", ".md", ".pdf")), b""),
    "too large": lambda _: (".txt", b"red fox " * 700_000),
    "too long": lambda _: (".txt", b"red fox " * 60_000),
    "PDF": lambda _: (".pdf", pdf_of("a red fox eats bamboo")),
    "broken PDF": lambda rng: (".pdf", _broken_pdf(rng)),
    "PDF with negative offsets": lambda _: (".pdf", pdf_with_negative_offsets("a red fox")),
    "slow PDF": lambda _: (".pdf", slow_pdf(pages=40)),
    "program": lambda _: (".txt", b"\x7fELF\x02\x01\x01" + bytes(range(128, 256))),
}
UNREADABLE = {"archive", "not UTF-8", "UTF-16", "empty", "too large", "too long", "slow PDF"}
PATHS = (
    "../../../secret{}", "/etc/passwd{}", "..\\..\\secret{}", "C:\\Windows\\{}", "a/b/../../{}",
    "%2e%2e%2f{}", "~root{}", "-rf {}", "x\x00{}", "x\r\nSet-Cookie: zqjx={}", "{}" + "x" * 300,
    "\u202etxt.{}", "{} <img src=zqjx>", "con{}", "....//....//{}", ".{}", "é大熊猫{}",
)  # fmt: skip
PAGES: dict[str, Attack] = {
    "chats": _chat,
    "playgrounds": _playground,
    "reports": _report,
    "tables": _tables,
    "uploads": _uploads,
    "origins": _origins,
}


if __name__ == "__main__":
    run_campaign("pages", campaign, size=500)
