// The texts of a run's blocks: asked for when somebody looks, kept while the run is shown.

import { getJson } from "./api.js";

export class BlockTexts {
  constructor(run) {
    this.run = run;
    this.known = new Map();
  }

  /** {start, end, text} of a block. Throws ApiError. */
  get(block) {
    if (!this.known.has(block)) {
      const path = `v1/longsight/microscope/${encodeURIComponent(this.run)}/blocks?ids=${block}`;
      const found = getJson(path).then((list) => list.data[0]);
      found.catch(() => this.known.delete(block));
      this.known.set(block, found);
    }
    return this.known.get(block);
  }

  /** Texts near the end change while the answer grows. */
  forget(block) {
    this.known.delete(block);
  }
}
