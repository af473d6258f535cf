// About how many tokens a text has. Exact numbers need the model's tokenizer: they come with the answer, and teach this.

const FIRST = 3; // characters a token, before anything is known
const rates = new Map(); // model -> characters a token

export const tokensIn = (model, characters) => Math.ceil(characters / (rates.get(model) ?? FIRST));

/** A prompt of so many characters had so many tokens. Short ones are mostly markup, and teach nothing. */
export function learn(model, characters, tokens) {
  if (characters > 500 && tokens > 0) rates.set(model, characters / tokens);
}
