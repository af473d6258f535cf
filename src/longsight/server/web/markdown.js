// A small part of Markdown as DOM nodes: headings, lists, quotes, code, bold, italics, links. All text is set as text,
// so whatever a model writes stays text.

import { copyButton, h } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)/;
const INLINE = /(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|\*(?=[^\s*])([^*\n]+?)(?<=\S)\*|\[([^\][\n]+)\]\(([^()\s]+)\)/;
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);

/** Shows `text` in `container`. Blocks that have not changed since the last call stay as they are. */
export function render(container, text) {
  const blocks = split(text);
  blocks.forEach((block, i) => {
    const old = container.children[i];
    if (old && old.source === block.source) return;
    const element = build(block);
    element.source = block.source;
    if (old) old.replaceWith(element);
    else container.append(element);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    const start = i;
    const fence = FENCE.exec(lines[i]);
    const push = (kind, rest = {}) => blocks.push({ kind, lines: lines.slice(start, i), ...rest });
    if (fence) {
      i++;
      while (i < lines.length && !lines[i].trim().startsWith(fence[1])) i++;
      const code = lines.slice(start + 1, i).join("\n");
      const closed = i < lines.length;
      if (closed) i++;
      push("code", { code, language: fence[2] });
    } else if (!lines[i].trim()) {
      i++;
    } else if (HEADING.test(lines[i])) {
      i++;
      push("heading");
    } else if (ITEM.test(lines[i])) {
      i++;
      // A list goes on with more items and with indented lines.
      while (i < lines.length && (ITEM.test(lines[i]) || /^\s+\S/.test(lines[i]))) i++;
      push("list");
    } else if (lines[i].startsWith(">")) {
      while (i < lines.length && lines[i].startsWith(">")) i++;
      push("quote");
    } else {
      i++;
      while (i < lines.length && lines[i].trim() && ![FENCE, HEADING, ITEM].some((r) => r.test(lines[i]))) i++;
      push("paragraph");
    }
  }
  for (const block of blocks) block.source = block.kind + block.lines.join("\n");
  return blocks;
}

function build(block) {
  const [first] = block.lines;
  switch (block.kind) {
    case "code":
      return codeBlock(block.code, block.language);
    case "heading": {
      const [, marks, text] = HEADING.exec(first);
      return withInline(h("p", { class: "heading", role: "heading", "aria-level": Math.min(marks.length + 2, 6) }), text);
    }
    case "list":
      return list(block.lines);
    case "quote":
      return withInline(h("blockquote"), block.lines.map((line) => line.replace(/^> ?/, "")).join("\n"));
    default:
      return withInline(h("p"), block.lines.join("\n"));
  }
}

function codeBlock(code, language) {
  const bar = h("div", { class: "bar" }, h("span", {}, language), copyButton(() => code));
  return h("div", { class: "code" }, bar, h("pre", { tabindex: "0" }, h("code", {}, code)));
}

/** Nested by indentation. */
function list(lines) {
  const root = h("div", { class: "list" });
  const open = [{ indent: -1, element: root, last: root }];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (!item) {
      withInline(open.at(-1).last, ` ${line.trim()}`);
      continue;
    }
    const [, space, mark, text] = item;
    const indent = space.length;
    while (open.length > 1 && open.at(-1).indent > indent) open.pop();
    if (open.at(-1).indent < indent) {
      const numbered = /\d/.test(mark);
      const element = h(numbered ? "ol" : "ul", numbered ? { start: parseInt(mark, 10) } : {});
      open.at(-1).last.append(element);
      open.push({ indent, element, last: element });
    }
    const top = open.at(-1);
    top.last = withInline(h("li"), text);
    top.element.append(top.last);
  }
  return root;
}

function withInline(parent, text) {
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) {
      parent.append(rest);
      break;
    }
    const [whole, , code, bold, italic, label, address] = found;
    parent.append(rest.slice(0, found.index));
    if (code !== undefined) parent.append(h("code", {}, code));
    else if (bold !== undefined) parent.append(withInline(h("strong"), bold));
    else if (italic !== undefined) parent.append(withInline(h("em"), italic));
    else parent.append(link(label, address) ?? whole);
    rest = rest.slice(found.index + whole.length);
  }
  return parent;
}

function link(label, address) {
  try {
    if (!PROTOCOLS.has(new URL(address).protocol)) return null;
  } catch {
    return null; // relative, or no address at all
  }
  return h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, label);
}

/** JSON with line breaks and indentation, also while its end is still missing. */
export function prettyJson(text) {
  const out = [];
  let depth = 0;
  let inString = false;
  let escaped = false;
  let previous = "";
  const newline = () => out.push("\n" + "  ".repeat(depth));
  for (const c of text) {
    if (inString) {
      if (escaped) escaped = false;
      else if (c === "\\") escaped = true;
      else if (c === '"') inString = false;
    } else {
      if (/\s/.test(c)) continue;
      const closes = c === "}" || c === "]";
      const opened = previous === "{" || previous === "[";
      if (closes) depth = Math.max(depth - 1, 0);
      if (previous === "," || opened !== closes) newline();
      if (c === "{" || c === "[") depth++;
      if (c === '"') inString = true;
      if (previous === ":") out.push(" ");
    }
    out.push(c);
    previous = inString ? "" : c;
  }
  return out.join("");
}
