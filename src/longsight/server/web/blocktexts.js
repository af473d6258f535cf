// The texts of a run's blocks: asked for when somebody looks, kept while the run is shown.

import { getJson } from "./api.js";

const PER_REQUEST = 64;

export class BlockTexts {
  constructor(run) {
    this.run = run;
    this.known = new Map();
  }

  /** {start, end, text} of a block. Throws ApiError. */
  get(block) {
    if (!this.known.has(block)) {
      const found = this.ask([block]).then(([only]) => only);
      found.catch(() => this.known.delete(block));
      this.known.set(block, found);
    }
    return this.known.get(block);
  }

  async ask(blocks) {
    return (await getJson(`v1/longsight/microscope/${encodeURIComponent(this.run)}/blocks?ids=${blocks.join(",")}`)).data;
  }

  /** Texts near the end change while the answer grows. */
  forget(block) {
    this.known.delete(block);
  }

  /** The blocks, out of `count`, that hold the first occurrence of `wanted`, looked for around block `guess` first; none
      if it is nowhere. Throws ApiError. */
  async find(wanted, guess, count) {
    for (const [from, to] of windows(guess, count)) {
      const blocks = await this.ask(range(from, to));
      const at = blocks.map(({ text }) => text).join("").indexOf(wanted);
      if (at < 0) continue;
      let end = 0;
      return blocks
        .filter(({ text }) => (end += text.length) > at && end - text.length < at + wanted.length)
        .map(({ block }) => block);
    }
    return [];
  }
}

const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** [from, to) of as many blocks as one request may name, outwards from `guess`, each a little into the one before. */
function* windows(guess, count) {
  const step = PER_REQUEST - 8;
  let low = Math.max(Math.min(guess - PER_REQUEST / 2, count - PER_REQUEST), 0);
  let high = Math.min(low + PER_REQUEST, count);
  yield [low, high];
  while (low > 0 || high < count) {
    if (low > 0) {
      yield [Math.max(low - step, 0), Math.min(low + 8, count)];
      low = Math.max(low - step, 0);
    }
    if (high < count) {
      yield [Math.max(high - 8, 0), Math.min(high + step, count)];
      high = Math.min(high + step, count);
    }
  }
}
