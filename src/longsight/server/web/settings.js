// What the user set, kept in this browser only.

const NAME = "longsight";

export const settings = { key: "", model: "", system: "", temperature: "", maxTokens: "", thinking: "", tools: "", theme: "", history: "" };

try {
  Object.assign(settings, JSON.parse(localStorage.getItem(NAME) ?? "{}"));
} catch {
  // Storage is blocked or holds something else: start with the defaults.
}

export function set(name, value) {
  settings[name] = value;
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // Not kept, then.
  }
}

/** Ties form controls named like settings to them. */
export function bind(form) {
  for (const control of form.elements) {
    if (!(control.name in settings)) continue;
    control.value = settings[control.name];
    control.addEventListener("input", () => set(control.name, control.value));
  }
}

/** The fields of a request that sampling needs; throws for numbers that are none. */
export function sampling() {
  const fields = {};
  if (settings.temperature !== "") fields.temperature = Number(settings.temperature);
  if (settings.maxTokens !== "") fields.max_tokens = Number(settings.maxTokens);
  return fields;
}

/** The list of tools, or undefined. Throws an Error that says what is wrong with it. */
export function tools() {
  if (!settings.tools.trim()) return undefined;
  let value;
  try {
    value = JSON.parse(settings.tools);
  } catch (error) {
    throw new Error(`Tools in the settings are not valid JSON: ${error.message}`);
  }
  if (!Array.isArray(value)) throw new Error("Tools in the settings must be a JSON list.");
  return value.length ? value : undefined;
}
