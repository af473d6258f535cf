// Light, dark, or as the system has it. Loaded on its own, before the page is drawn.

import { set, settings } from "./settings.js";

const NEXT = { "": "light", light: "dark", dark: "" };
const NAMES = { "": "System", light: "Light", dark: "Dark" };

const apply = () => {
  if (settings.theme in NAMES && settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
};
apply();

/** A button that goes through the three; `changed` is called when colours may have changed. */
export function themeButton(button, changed) {
  const show = () => {
    const name = NAMES[settings.theme] ?? NAMES[""];
    button.textContent = `◐ ${name}`;
    button.setAttribute("aria-label", `Colours: ${name}. Change`);
  };
  button.addEventListener("click", () => {
    set("theme", NEXT[settings.theme] ?? "");
    apply();
    show();
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  show();
}
