// Elements without markup strings: text given here can never become HTML.

/** h("button", {class: "x", onclick: f, "aria-label": "Stop"}, "text", child) */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

export const grouped = (number) => number.toLocaleString("en");

/** Runs `work` once before the next picture, however often it is asked for. */
export function eachFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}

export const quietButton = (name, action, title) =>
  h("button", { type: "button", class: "quiet", onclick: action, title }, name);

// Strokes in a square of 24.
const ICONS = {
  close: "M6 6l12 12M18 6L6 18",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  more: "M5 12h.01M12 12h.01M19 12h.01",
};

export function iconButton(icon, label, action) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", ICONS[icon]);
  svg.append(line);
  return h("button", { type: "button", class: "quiet icon", "aria-label": label, title: label, onclick: action }, svg);
}

export function copyButton(text) {
  const button = h("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Copying is not allowed here";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over http from another machine there is no navigator.clipboard.
  }
  const field = h("textarea", { readonly: true, class: "hidden-label", "aria-hidden": "true" });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}

/** A bar with a role and a label; set(done, total). */
export function progressBar(label) {
  const bar = h("progress", { "aria-label": label });
  const words = h("span", {}, label);
  const element = h("div", { class: "progress" }, words, bar);
  const set = (done, total) => {
    bar.max = total;
    bar.value = done;
    words.textContent = `${label}: ${grouped(done)} of ${grouped(total)} tokens`;
  };
  return { element, set };
}

/** An error with what is needed to report it and a way on; retry is optional. The page listens for "ask-for-key". */
export function errorBox(error, retry) {
  const box = h("div", { class: "error", role: "alert" }, h("p", {}, error.message));
  const details = [error.status && `HTTP ${error.status}`, error.code, error.requestId].filter(Boolean).join(" · ");
  if (details) box.append(h("p", { class: "note" }, details));
  if (error.status === 401) {
    const ask = () => document.dispatchEvent(new Event("ask-for-key"));
    box.append(h("button", { type: "button", onclick: ask }, "Open Settings"));
  }
  if (retry) box.append(h("button", { type: "button", onclick: retry }, "Try again"));
  return box;
}
