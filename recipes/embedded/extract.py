"""Paragraphs of readable text out of the file formats that documentation comes in.

Every reader takes a file's text and returns paragraphs, one line each, headings among them; code listings, tables and
navigation are left out.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from xml.etree import ElementTree

from selectolax.lexbor import LexborHTMLParser, LexborNode

BLOCKS = re.compile("p|div|section|article|main|body|h[1-6]|li|ul|ol|dl|dt|dd|blockquote|br|hr|center")
LEFT_OUT = "script, style, head, nav, header, footer, pre, table, form, svg, math, aside, button, select, sup, span.MAC"
NAVIGATION = re.compile(
    r"\b(nav|navheader|navfooter|navigation|menu|toc|contents|sidebar|sphinxsidebar|related|footer|header|breadcrumbs?"
    r"|pagenav|programlisting|screen|synopsis|highlight|listing\w*|indexterm|copyright|legalnotice|translations?|langs?"
    r"|path-?\w*|up|bottomlang|toplang|qmenu)\b"
)


def paragraphs(text: str) -> list[str]:
    """Blank lines part them; a run of white space is one blank."""
    return [joined for part in re.split(r"\n\s*\n", text) if (joined := " ".join(part.split()))]


def from_html(text: str) -> list[str]:
    tree = LexborHTMLParser(text)
    for node in tree.css(LEFT_OUT):
        node.decompose()
    for node in tree.css("div[class], ul[class], p[class], span[class], div[id], a.headerlink, a.anchor"):
        marks = f"{node.attributes.get('class') or ''} {node.attributes.get('id') or ''}".lower()
        if node.tag == "a" or NAVIGATION.search(marks):
            node.decompose()
    out: list[str] = []
    if tree.body is not None:
        _walk(tree.body, out)
    return paragraphs("".join(out))


def _walk(node: LexborNode, out: list[str]) -> None:
    child = node.child
    while child is not None:
        if child.tag == "-text":
            out.append((child.text_content or "").replace("\n", " "))
        elif child.tag is not None and BLOCKS.fullmatch(child.tag):
            out.append("\n\n")
            _walk(child, out)
            out.append("\n\n")
        else:
            _walk(child, out)
        child = child.next


def from_mallard(text: str) -> list[str]:
    """Help pages of GNOME. Raises ElementTree.ParseError for bad XML."""
    out: list[str] = []

    def walk(element: ElementTree.Element) -> None:
        tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "comment"
        if tag not in ("info", "code", "screen", "media", "table", "comment", "links"):
            block = tag in ("p", "title", "item", "section", "note", "steps", "list", "terms")
            out.append("\n\n" if block else "")
            out.append(element.text or "")
            for child in element:
                walk(child)
            out.append("\n\n" if block else "")
        out.append(element.tail or "")

    walk(ElementTree.fromstring(text))
    return paragraphs("".join(out).replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n"))


def from_pod(text: str) -> list[str]:
    """Perl's documentation: paragraphs that begin with a blank are code."""
    out = []
    foreign = False
    for part in re.split(r"\n[ \t]*\n", text):
        part = part.strip("\n")
        if command := re.match(r"=(\w+)\s*(.*)", part, re.S):
            if command[1] in ("begin", "for", "end"):
                foreign = command[1] == "begin"
                continue
            if not re.match(r"head\d|item", command[1]) or re.fullmatch(r"[*\d.\s]*", command[2]):
                continue
            part = command[2]
        if part and not part[0].isspace() and not foreign:
            out.append(" ".join(_pod_inline(part).split()))
    return [part for part in out if part]


def _pod_inline(text: str) -> str:
    text = re.sub(r"E<(\w+)>", lambda m: {"lt": "\0", "gt": "\1", "sol": "/", "verbar": "|"}.get(m[1], ""), text)
    text = re.sub(r"[XZ]<[^<>]*>", "", text)
    text = re.sub(r"[A-Z]<<+\s+(.*?)\s+>>+", lambda m: m[1].replace("<", "\0").replace(">", "\1"), text, flags=re.S)
    before = ""
    while before != text:
        before, text = text, re.sub(r"\b([BCFILS])<([^<>]*)>", _pod_code, text)
    return text.replace("\0", "<").replace("\1", ">")


def _pod_code(match: re.Match[str]) -> str:
    if match[1] != "L" or "://" in match[2]:
        return match[2]
    name, _, target = match[2].partition("|")
    page, _, section = ("" if target else name).partition("/")
    return name if target else section.strip('"') or page


def from_markdown(text: str) -> list[str]:
    text = re.sub(r"^(```|~~~).*?^\1.*?$", "", text, flags=re.M | re.S)
    text = re.sub(r"^(    |\t).*$", "", text, flags=re.M)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|</?[a-zA-Z][^>]*>|\{[#.][^}]*\}", "", text, flags=re.S)
    text = re.sub(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"^(#+\s.*)$", r"\n\1\n", text, flags=re.M)
    text = re.sub(r"^\s*(#+|>|[-*+]|\d+\.)\s+", "\n", text, flags=re.M)
    text = re.sub(r"^[\[=*_-]{3,}.*$|^\[[^\]]+\]:.*$", "\n", text, flags=re.M)
    text = re.sub(r"(\*\*|__|`+)(.+?)\1", r"\2", text)
    text = re.sub(r"(?<!\w)([*_])(\S(?:[^*_]*\S)?)\1(?!\w)", r"\2", text)
    return paragraphs(re.sub(r"\\([^\w\s])", r"\1", html.unescape(text)))


def from_campaign(text: str) -> list[str]:
    """Stories and dialogue of a Wesnoth campaign: who speaks, a colon, what is said."""
    out = []
    speaker = ""
    for match in re.finditer(r"\bspeaker\s*=\s*([^\n#]+)|(\w+)\s*=\s*_\s*\"((?:[^\"]|\"\")*)\"", text):
        if match[1]:
            speaker = match[1].strip().strip('"')
            continue
        said = " ".join(re.sub(r"<[^<>]*>", "", match[3].replace('""', '"')).split())
        if match[2] in ("story", "message", "description", "note") and not re.search(r"[$|{}]", said):
            named = match[2] == "message" and re.fullmatch(r"[A-Z][a-z]+([ -][A-Z][a-z]+)*", speaker)
            out.append(f"{speaker}: {said}" if named else said)
        speaker = ""
    return out


def from_missions(text: str) -> list[str]:
    """Conversations of Endless Sky: texts between back quotes, those without place holders."""
    return [
        line
        for found in re.findall(r"`([^`\n]*)`", text)
        if len(line := " ".join(found.split())) > 20 and not re.search(r"[<>]", line)
    ]


def from_dictionary(text: str) -> list[str]:
    """Entries of a DICT database, headwords at the left edge: one paragraph for each of an entry's."""
    text = re.sub(r"\[(syn|ant|also):[^\]]*\]|\(\d{4}-\d\d-\d\d\)|\{\(?(http|ftp)[^}]*\}", "", text)
    text = re.sub(r"[{}]", "", text)
    out = []
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        senses = re.sub(r"^\s+(?:(?:n|v|adj|adv)\s+)?(?:\d+:|(?:n|v|adj|adv) *:)", "\n", body, flags=re.M)
        parts = paragraphs(senses)
        if parts:
            out += [f"{head.strip()}: {parts[0]}", *parts[1:]]
    return out


def from_osis(text: str) -> list[str]:
    """A book of a SWORD module, as `sword_blocks` gives it."""
    text = re.sub(r"<note\b.*?</note>|<table>.*?</table>", "", text, flags=re.S)
    text = re.sub(r"<(div|chapter|lg|item|/title|title|list)\b[^>]*>|</(title|item|list|lg)>", "\n\n", text)
    text = re.sub(r"<l\b[^>]*>|<lb\b[^>]*>", " ", text)
    return paragraphs(html.unescape(re.sub(r"<[^>]*>", "", text)))


def sword_blocks(index: bytes, data: bytes) -> list[str]:
    """Texts of a compressed SWORD module. index: of (offset, bytes, bytes unpacked), 32 bits little-endian each."""
    found = []
    for offset, size, _ in struct.iter_unpack("<III", index[: len(index) // 12 * 12]):
        found.append(zlib.decompress(data[offset : offset + size]).decode("utf-8", "replace"))
    return found


def by_path(path: str, text: str) -> list[str]:
    """The reader that belongs to a file's name, applied. Raises ElementTree.ParseError for a bad help page."""
    name = path.removesuffix(".gz")
    if name.endswith(".page"):
        return from_mallard(text)
    if name.endswith((".html", ".htm", ".en")):
        return from_html(text)
    if name.endswith(".pod"):
        return from_pod(text)
    if name.endswith(".md"):
        return from_markdown(text)
    if name.endswith(".cfg"):
        return from_campaign(text)
    if name.endswith(".dict.dz"):
        return from_dictionary(text)
    if "endless-sky" in name:
        return from_missions(text)
    if "jargon" in name:
        text = re.sub(r"[{}]", "", text)  # around words with an entry of their own
    return paragraphs(text)
