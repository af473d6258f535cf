// A menu that opens at a button. By keyboard: arrows, Home, End, Escape.

import { h } from "./dom.js";

let close = () => {};

/** items: [[label, action]]. Focus goes back to the button. */
export function openMenu(button, items) {
  close();
  const menu = h("div", { class: "menu", role: "menu" });
  for (const [label, action] of items) {
    const item = h("button", { type: "button", role: "menuitem", tabindex: "-1" }, label);
    item.addEventListener("click", () => {
      close();
      action();
    });
    menu.append(item);
  }
  const outside = (event) => !menu.contains(event.target) && close();
  close = () => {
    close = () => {};
    document.removeEventListener("pointerdown", outside, true);
    button.setAttribute("aria-expanded", "false");
    menu.remove();
  };
  menu.addEventListener("keydown", (event) => {
    const at = [...menu.children].indexOf(document.activeElement);
    const last = menu.children.length - 1;
    const to = { ArrowDown: at < last ? at + 1 : 0, ArrowUp: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
    if (to !== undefined) menu.children[to].focus();
    else if (event.key === "Escape" || event.key === "Tab") {
      close();
      button.focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.addEventListener("pointerdown", outside, true);
  document.body.append(menu);
  const box = button.getBoundingClientRect();
  menu.style.left = `${Math.max(Math.min(box.left, innerWidth - menu.offsetWidth - 8), 8)}px`;
  const below = box.bottom + 4 + menu.offsetHeight < innerHeight;
  menu.style.top = `${below ? box.bottom + 4 : Math.max(box.top - menu.offsetHeight - 4, 8)}px`;
  button.setAttribute("aria-expanded", "true");
  menu.firstElementChild.focus();
}

/** Asks before something that cannot be undone; resolves to whether it is to be done. */
export function confirmed(question, action) {
  const dialog = h("dialog", { class: "confirm", "aria-label": question });
  const buttons = h(
    "div",
    { class: "row" },
    h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
    h("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, action),
  );
  dialog.append(h("p", {}, question), buttons);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    }),
  );
}
