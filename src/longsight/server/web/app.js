// The page: its parts put together; models, tabs, settings, theme.

import { getJson } from "./api.js";
import { Chat } from "./chat.js";
import { byId, errorBox, h } from "./dom.js";
import { History } from "./history.js";
import { Scope } from "./scope.js";
import { bind, set, settings } from "./settings.js";
import { openStore } from "./store.js";
import { themeButton } from "./theme.js";
import { showWelcome } from "./welcome.js";

const SHOWN = "longsight-shown";

const select = byId("model");
const contexts = new Map(); // model id -> context length

const builtIns = new Map(); // model id -> the built-in model that it is, if it is one

const contextLength = () => contexts.get(settings.model);

const scope = new Scope({ builtIn: () => builtIns.get(settings.model), contextLength });
const store = await openStore();
const shownBefore = remembered(); // before the chat begins with a new conversation
const history = new History(store, {
  async onOpen(id) {
    const conversation = chat.find(id) ?? (await store.get(id));
    if (conversation) chat.show(conversation);
  },
  onGone: (id) => chat.forget(id),
  onNamed: (id, title) => chat.rename(id, title),
});
const chat = new Chat({
  contextLength,
  openMicroscope(conversation) {
    show("microscope");
    scope.look(conversation);
    byId("scope-stop").focus();
  },
  save: (conversation) => history.save(conversation),
  onShow(id) {
    remember(id);
    history.show(id);
  },
});

/** Which conversation a window shows outlives a reload, and is the window's own. */
function remember(id) {
  try {
    if (id) sessionStorage.setItem(SHOWN, id);
    else sessionStorage.removeItem(SHOWN);
  } catch {
    // Storage is blocked: a reload begins with a new conversation.
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(SHOWN);
  } catch {
    return null; // see above
  }
}

function modelChanged() {
  chat.showContext();
  showWelcome(builtIns.get(settings.model), (example) => chat.composer.fill(example));
}

async function loadModels() {
  const place = byId("page-status");
  try {
    const { data } = await getJson("v1/models");
    contexts.clear();
    builtIns.clear();
    for (const { id, context_length: length, built_in: builtIn } of data) {
      contexts.set(id, length);
      if (builtIn) builtIns.set(id, builtIn);
    }
    select.replaceChildren(...data.map(({ id }) => h("option", { value: id }, id)));
    if (!contexts.has(settings.model)) set("model", data[0]?.id ?? "");
    select.value = settings.model;
    place.replaceChildren();
    modelChanged();
  } catch (error) {
    place.replaceChildren(errorBox(error, loadModels));
  }
}

const tabs = [byId("tab-chat"), byId("tab-microscope")];

function show(name) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  window.history.replaceState(null, "", `#${name}`);
  scope.grid.draw();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    const other = tabs[1 - tabs.indexOf(tab)];
    show(other.getAttribute("aria-controls"));
    other.focus();
  });
}

const panel = byId("settings");
const panelButton = byId("settings-button");

function openSettings(open) {
  panel.hidden = !open;
  panelButton.setAttribute("aria-expanded", String(open));
}

document.addEventListener("ask-for-key", () => {
  openSettings(true);
  panel.querySelector("[name=key]").focus();
});
panelButton.addEventListener("click", () => openSettings(panel.hidden));
panel.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  openSettings(false);
  panelButton.focus();
});
bind(panel.querySelector("form"));
panel.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
panel.querySelector("[name=key]").addEventListener("change", loadModels);
select.addEventListener("change", () => {
  set("model", select.value);
  modelChanged();
});
themeButton(byId("theme"), () => scope.grid.draw());
const before = shownBefore && (await store.get(shownBefore));
if (before) chat.show(before);
show(location.hash === "#microscope" ? "microscope" : "chat");
loadModels();
