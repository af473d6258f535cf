// JSON as people read it, also while its end is still missing.

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
