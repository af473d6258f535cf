// What an empty conversation shows. The embedded model is small: the page says what it can do, with questions that it can
// answer.

import { byId, h } from "./dom.js";
import { needlePrompt } from "./needle.js";

const LONG = 40_000; // characters

const EXAMPLES = [
  {
    label: "Find one sentence in 40,000 characters",
    make() {
      const { text, question } = needlePrompt(LONG, { chat: true });
      return { content: question, files: [{ name: "long-text.txt", text: text.slice(0, text.lastIndexOf(question)).trimEnd() }] };
    },
  },
  {
    label: "Look up a phone number",
    make: () => ({
      content:
        "The phone number of the library is 555-2041. The phone number of the museum is 555-7789. " +
        "The phone number of the pool is 555-1130.\n\nWhat is the phone number of the museum?",
      files: [],
    }),
  },
  {
    label: "Pick one of three codes",
    make: () => ({
      content:
        "The secret code for the amber anchor is 4821-QWE.\nThe secret code for the jade falcon is 7305-MKT.\n" +
        "The secret code for the olive harbour is 2196-ZPD.\n\nWhat is the secret code for the jade falcon?",
      files: [],
    }),
  },
];

/** onTry({content, files}) puts an example into the message field. */
export function showWelcome(builtIn, onTry) {
  const small = builtIn === "embedded";
  byId("small-model").hidden = !small;
  byId("examples").replaceChildren(
    ...(small ? EXAMPLES : []).map(({ label, make }) =>
      h("button", { type: "button", onclick: () => onTry(make()) }, label),
    ),
  );
}
