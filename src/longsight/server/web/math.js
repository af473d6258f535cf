// TeX in Markdown, as models write it: $a$, $$a$$, \(a\) and \[a\] become elements that hold the source. Every search for
// an end is remembered when it fails, so a text of unclosed formulas costs no more than its length.

const LONGEST = 2000; // characters of a formula
const INLINE = { "\\(": "\\)", "\\[": "\\]", $$: "$$" };

/** A plugin for markdown-it. */
export function math(md) {
  md.inline.ruler.before("escape", "math", inline);
  md.block.ruler.before("paragraph", "math", block, { alt: ["paragraph", "blockquote", "list"] });
  md.renderer.rules.math = (tokens, i) => {
    const { content, meta } = tokens[i];
    const source = md.utils.escapeHtml(content);
    return meta.block ? `<p><span class="math display">${source}</span></p>` : `<span class="math${meta.display ? " display" : ""}">${source}</span>`;
  };
}

function inline(state, silent) {
  const { src, pos } = state;
  const opener = src.slice(pos, pos + 2);
  const long = INLINE[opener];
  const found = long ? between(state, pos + 2, long) : src[pos] === "$" ? dollars(state, pos + 1) : null;
  if (!found) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = found.content;
    token.meta = { display: opener === "\\[" || opener === "$$" };
  }
  state.pos = found.end;
  return true;
}

function between(state, start, closer) {
  const missing = (state.mathMissing ??= new Set());
  if (missing.has(closer)) return null;
  const at = state.src.indexOf(closer, start);
  if (at < 0 || at >= state.posMax) {
    missing.add(closer);
    return null;
  }
  const content = state.src.slice(start, Math.min(at, start + LONGEST + 1)).trim();
  return content && at - start <= LONGEST ? { content, end: at + closer.length } : null;
}

/** One dollar on each side. Prices are not formulas: no space within, next to the dollars, and no digit after them. */
function dollars(state, start) {
  const { src } = state;
  if (/\s/.test(src[start] ?? " ")) return null;
  for (let at = start; at < Math.min(state.posMax, start + LONGEST); at++) {
    if (src[at] === "\\") at++;
    else if (src[at] === "$") {
      const closes = at > start && !/\s/.test(src[at - 1]) && !/[\d$]/.test(src[at + 1] ?? "");
      return closes ? { content: src.slice(start, at), end: at + 1 } : null;
    }
  }
  return null;
}

/** $$ or \[ at the start of a line, up to the line that ends with the other one. */
function block(state, first, last, silent) {
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]).trim();
  const opener = line(first).slice(0, 2);
  const closer = opener === "$$" ? "$$" : opener === "\\[" ? "\\]" : null;
  if (!closer || state.sCount[first] - state.blkIndent >= 4) return false;
  const missing = (state.env.mathMissing ??= new Set());
  const key = `${closer} ${last}`;
  if (missing.has(key)) return false;
  const lines = [];
  for (let n = first; n < last; n++) {
    const text = n === first ? line(n).slice(2) : line(n);
    if (!text.endsWith(closer)) {
      lines.push(text);
      continue;
    }
    lines.push(text.slice(0, -2));
    const content = lines.join("\n").trim();
    if (!content || content.length > LONGEST) return false;
    if (silent) return true;
    const token = state.push("math", "", 0);
    token.block = true;
    token.content = content;
    token.meta = { block: true };
    token.map = [first, n + 1];
    state.line = n + 1;
    return true;
  }
  missing.add(key);
  return false;
}
