// Markdown to HTML, beside the page's own thread: a text that takes long holds up nothing, and the page ends this worker
// when it takes too long. HTML in the text is escaped here; the page sanitises what it gets all the same.

import hljs from "./vendor/highlight.mjs";
import MarkdownIt from "./vendor/markdown-it.mjs";
import { math } from "./math.js";

const COLOURED = 20_000; // characters of a code block; longer ones stay in one colour
const HTML_PER_BLOCK = 150_000; // characters: more is shown as plain text
const REMEMBERED = 64;
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);

const md = new MarkdownIt({ html: false, linkify: true, breaks: true, highlight });
md.use(math);
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false }); // setup.py is a file, though .py is a country
md.validateLink = (address) => {
  try {
    return PROTOCOLS.has(new URL(address).protocol);
  } catch {
    return false; // relative to this page, or no address at all
  }
};

// Nothing that an answer names is loaded by itself: an image becomes a link.
md.renderer.rules.image = (tokens, i) => {
  const address = tokens[i].attrGet("src");
  const label = tokens[i].content || address;
  return `<a href="${md.utils.escapeHtml(address)}">Image: ${md.utils.escapeHtml(label)}</a>`;
};
// The page's own headings are h1 and h2.
for (const rule of ["heading_open", "heading_close"]) {
  md.renderer.rules[rule] = (tokens, i, options, env, self) => {
    tokens[i].tag = `h${Math.min(Number(tokens[i].tag.slice(1)) + 2, 6)}`;
    return self.renderToken(tokens, i, options);
  };
}
// The page's policy allows no style attributes.
for (const rule of ["th_open", "td_open"]) {
  md.renderer.rules[rule] = (tokens, i, options, env, self) => {
    const side = /text-align:(left|right|center)/.exec(tokens[i].attrGet("style") ?? "");
    tokens[i].attrs = side ? [["class", `align-${side[1]}`]] : null;
    return self.renderToken(tokens, i, options);
  };
}

const coloured = new Map(); // language and code -> HTML, the latest ones

function highlight(code, language) {
  if (!hljs.getLanguage(language) || code.length > COLOURED) return "";
  const key = `${language}\n${code}`;
  const html = coloured.get(key) ?? hljs.highlight(code, { language, ignoreIllegals: true }).value;
  coloured.delete(key);
  coloured.set(key, html);
  if (coloured.size > REMEMBERED) coloured.delete(coloured.keys().next().value);
  return html;
}

/** The blocks of a text, as HTML, or as {text} where the HTML would be too large. */
function blocks(text) {
  const env = {};
  const lines = text.split("\n");
  const groups = [];
  let depth = 0;
  for (const token of md.parse(text, env)) {
    if (depth === 0) groups.push([]);
    groups.at(-1).push(token);
    depth += token.nesting;
  }
  return groups.map((tokens) => {
    const html = md.renderer.render(tokens, md.options, env);
    if (html.length <= HTML_PER_BLOCK) return { html };
    return { text: lines.slice(...tokens[0].map).join("\n") };
  });
}

onmessage = ({ data: { text } }) => {
  postMessage({ begun: true });
  postMessage({ blocks: blocks(text) });
};
