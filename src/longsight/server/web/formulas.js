// Formulas, drawn by KaTeX. It is loaded with the first one, and works in slices between which the page stays free.

import { Slices } from "./slices.js";

const PER_BLOCK = 300; // formulas; more stay TeX
// KaTeX bounds how often a macro is expanded, not how large the result becomes.
const DEFINES = /\\(?:[gex]?def|(?:future)?let|newcommand|renewcommand|providecommand)(?![a-zA-Z])/;
const REMEMBERED = 400;
// Of what KaTeX makes of one formula: browsers end a page that nests some thousand boxes.
const DEEPEST = 120;
const BRACES = 24; // within each other, before KaTeX is asked at all
const ELEMENTS = 4000;
const OPTIONS = { throwOnError: true, strict: "ignore", trust: false, maxExpand: 1000, maxSize: 40 };

const drawn = new Map(); // source -> the element that was made of it, the latest ones
const slices = new Slices();
let katex;

async function load() {
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = new URL("./vendor/katex.css", import.meta.url).href;
  document.head.append(style);
  await import("./vendor/katex.js"); // of the kind that leaves its name in the global object
  return globalThis.katex;
}

/** Draws the formulas in `root`, whose elements of class math hold TeX; each keeps its source until then. */
export function drawFormulas(root, onDraw) {
  const found = [...root.querySelectorAll(".math")].slice(0, PER_BLOCK);
  if (!found.length) return;
  katex ??= load();
  katex.then(
    async (library) => {
      for (const element of found) {
        await slices.turn();
        if (element.isConnected) draw(library, element);
      }
      onDraw();
    },
    () => {}, // not to be had: the source stays
  );
}

function draw(library, element) {
  const source = element.textContent;
  if (DEFINES.test(source) || braces(source) > BRACES) return;
  const displayMode = element.classList.contains("display");
  const key = `${displayMode} ${source}`;
  let made = drawn.get(key);
  if (!made) {
    made = document.createElement("span");
    try {
      library.render(source, made, { ...OPTIONS, displayMode });
    } catch {
      element.classList.add("wrong");
      return;
    }
    if (made.getElementsByTagName("*").length > ELEMENTS || depth(made) > DEEPEST) made.replaceChildren(source);
    drawn.set(key, made);
    if (drawn.size > REMEMBERED) drawn.delete(drawn.keys().next().value);
  }
  element.replaceChildren(...made.cloneNode(true).childNodes);
}

function depth(root) {
  let deepest = 0;
  let level = [root];
  while (level.length) {
    deepest++;
    level = level.flatMap((element) => [...element.children]);
  }
  return deepest;
}

function braces(source) {
  let open = 0;
  let most = 0;
  for (const [found] of source.matchAll(/\\.|[{}]/gs)) {
    if (found === "{") most = Math.max(most, ++open);
    else if (found === "}") open--;
  }
  return most;
}
