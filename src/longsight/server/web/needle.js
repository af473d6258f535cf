// A prompt that shows what the microscope is for: one sentence hidden in a long text, and the question for it.

const PEOPLE = ["the miller", "a surveyor", "her brother", "the night porter", "an old pilot", "the botanist", "our neighbour"];
const ACTS = ["repaired", "carried", "described", "forgot", "painted", "measured", "sold", "wrapped"];
const THINGS = ["the brass kettle", "a map of the coast", "two wicker chairs", "the broken clock", "a letter", "the ladder"];
const PLACES = ["by the river", "in the attic", "behind the station", "under the oak", "at the market", "near the mill"];
const TIMES = ["before noon", "in the rain", "after supper", "that winter", "at first light", "on the last day"];
const COLOURS = ["amber", "azure", "coral", "indigo", "jade", "olive"];
const OBJECTS = ["anchor", "beacon", "compass", "lantern", "orchard"];

const pick = (list) => list[Math.floor(Math.random() * list.length)];
const digits = () => String(Math.floor(Math.random() * 10000)).padStart(4, "0");

export function needlePrompt(characters) {
  // Without a blank at its end: in most vocabularies a blank is the beginning of the token after it.
  const question = `The secret code for the ${pick(COLOURS)} ${pick(OBJECTS)} is`;
  const needle = `${question} ${digits()}-${String.fromCharCode(...Array.from({ length: 3 }, () => 65 + Math.floor(Math.random() * 26)))}.`;
  const at = characters * (0.15 + 0.7 * Math.random());
  let text = "";
  let hidden = false;
  while (text.length < characters) {
    if (!hidden && text.length >= at) {
      text += `\n${needle}\n`;
      hidden = true;
    }
    const sentence = `${pick(PEOPLE)} ${pick(ACTS)} ${pick(THINGS)} ${pick(PLACES)} ${pick(TIMES)}`;
    text += `${sentence[0].toUpperCase()}${sentence.slice(1)}.${Math.random() < 0.15 ? "\n" : " "}`;
  }
  return `${text.trimEnd()}\n${question}`;
}
