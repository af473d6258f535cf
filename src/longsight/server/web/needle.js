// One sentence hidden in a long text, and the question for it: what the microscope is for, and what a small model can do.

const PEOPLE = ["the miller", "a surveyor", "her brother", "the night porter", "an old pilot", "the botanist", "our neighbour"];
const ACTS = ["repaired", "carried", "described", "forgot", "painted", "measured", "sold", "wrapped"];
const THINGS = ["the brass kettle", "a map of the coast", "two wicker chairs", "the broken clock", "a letter", "the ladder"];
const PLACES = ["by the river", "in the attic", "behind the station", "under the oak", "at the market", "near the mill"];
const TIMES = ["before noon", "in the rain", "after supper", "that winter", "at first light", "on the last day"];
const COLOURS = ["amber", "azure", "coral", "indigo", "ivory", "jade", "olive", "scarlet"];
const OBJECTS = ["anchor", "beacon", "compass", "falcon", "harbour", "lantern", "meadow", "orchard"];
const LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ";

const pick = (list) => list[Math.floor(Math.random() * list.length)];
// As the demo and the trials draw them: 1000 to 9999, so that no code begins with 0.
const code = () => `${1000 + Math.floor(Math.random() * 9000)}-${pick(LETTERS)}${pick(LETTERS)}${pick(LETTERS)}`;

/** A text of about so many characters. chat: it ends with a question, else with the sentence's own beginning.
    Returns {text, sentence, question, code, depth}: depth is where the sentence stands, 0 (start) to 1 (end). */
export function needlePrompt(characters, { chat }) {
  const subject = `${pick(COLOURS)} ${pick(OBJECTS)}`;
  const secret = code();
  const sentence = `The secret code for the ${subject} is ${secret}.`;
  // Without a space at its end: in most vocabularies a space is the beginning of the token after it.
  const question = chat ? `What is the secret code for the ${subject}?` : `The secret code for the ${subject} is`;
  const at = characters * (0.15 + 0.7 * Math.random());
  let text = "";
  let start = -1;
  while (text.length < characters) {
    if (start < 0 && text.length >= at) {
      start = text.length + 1;
      text += `\n${sentence}\n`;
    }
    const line = `${pick(PEOPLE)} ${pick(ACTS)} ${pick(THINGS)} ${pick(PLACES)} ${pick(TIMES)}`;
    text += `${line[0].toUpperCase()}${line.slice(1)}.${Math.random() < 0.15 ? "\n" : " "}`;
  }
  text = `${text.trimEnd()}\n${chat ? "\n" : ""}${question}`;
  return { text, sentence, question, code: secret, depth: start / text.length };
}
