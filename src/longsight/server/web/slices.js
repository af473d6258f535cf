// Long work in short pieces, so that typing and scrolling go on between them.

const SLICE = 8; // milliseconds

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export class Slices {
  #until = 0;

  /** Await this before each piece of work: at once while the slice lasts, then after the page had its turn. */
  async turn() {
    if (performance.now() < this.#until) return;
    await pause(0);
    this.#until = performance.now() + SLICE;
  }
}
