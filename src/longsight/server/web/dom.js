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

export function copyButton(text) {
  const button = h("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copying is not allowed here";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
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

/** An error with what is needed to report it; retry is optional. */
export function errorBox(error, retry) {
  const box = h("div", { class: "error", role: "alert" }, h("p", {}, error.message));
  const details = [error.status && `HTTP ${error.status}`, error.code, error.requestId].filter(Boolean).join(" · ");
  if (details) box.append(h("p", { class: "note" }, details));
  if (retry) box.append(h("button", { type: "button", onclick: retry }, "Try again"));
  return box;
}
