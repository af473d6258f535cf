// The grid of blocks on a canvas: a row for each layer and group, a column for each block of the context. Blocks that the
// chosen token read stand out; those that other tokens of the answer read show faintly. Drag to zoom.

import { eachFrame, grouped } from "./dom.js";

const AXIS = 24;
const MIN_BAR = 3; // pixels: a block of 128 tokens in a million would be a tenth of one
const REACH = 4; // pixels beside a bar that still count as on it

export class Grid {
  /** swatches: elements whose background colours are used, so that the legend and the theme's style sheet decide.
      onPoint(place | null, event) while the pointer moves or keys move the cursor, onPick(place) for a click or Enter;
      a place is {lane, block}. onZoom(from, to) in blocks. */
  constructor(canvas, swatches, { onPoint, onPick, onZoom }) {
    Object.assign(this, { canvas, swatches, onPoint, onPick, onZoom });
    this.draw = eachFrame(() => this.drawNow());
    this.clear();
    new ResizeObserver(this.draw).observe(canvas.parentElement);
    canvas.addEventListener("pointerdown", (event) => this.pointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.pointerMove(event));
    canvas.addEventListener("pointerup", (event) => this.pointerUp(event));
    canvas.addEventListener("pointercancel", () => this.endDrag());
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("dblclick", () => this.zoom(0, this.blocks));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.point(null));
  }

  clear() {
    this.lanes = []; // {layer, group}, in the order of rows
    this.read = []; // of the chosen token: sorted blocks, row by row
    this.counts = []; // row by row: a Map of block -> how many tokens of the answer read it
    this.marked = []; // blocks to point out, whoever reads them
    this.blocks = this.blockSize = 1;
    this.from = 0;
    this.to = 1;
    this.cursor = null;
    this.drag = null;
  }

  /** blocks: how many the context has, answer included. */
  setSize(blocks, blockSize) {
    const whole = this.to === this.blocks && this.from === 0;
    Object.assign(this, { blocks, blockSize });
    if (whole) this.to = blocks;
    this.draw();
  }

  /** One more token of the answer was generated. selections: [{layer, blocks: [group][block]}]. */
  addToken(selections) {
    if (!this.lanes.length) {
      this.lanes = selections.flatMap((s) => s.blocks.map((_, group) => ({ layer: s.layer, group })));
      this.counts = this.lanes.map(() => new Map());
    }
    rows(selections).forEach((blocks, lane) => {
      const counts = this.counts[lane];
      for (const block of blocks) counts.set(block, (counts.get(block) ?? 0) + 1);
    });
    this.draw();
  }

  mark(blocks) {
    this.marked = blocks;
    this.draw();
  }

  choose(selections) {
    this.read = rows(selections);
    this.draw();
  }

  zoom(from, to) {
    const width = Math.min(Math.max(to - from, 4), this.blocks);
    this.from = Math.min(Math.max(from, 0), this.blocks - width);
    this.to = this.from + width;
    this.onZoom(this.from, this.to);
    this.draw();
  }

  zoomBy(factor, at = (this.from + this.to) / 2) {
    this.zoom(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }

  /** How often the answer so far read `block`, over all rows. */
  timesRead(block) {
    return this.counts.reduce((sum, counts) => sum + (counts.get(block) ?? 0), 0);
  }

  /** Which rows of the chosen token read `block`. */
  lanesOf(block) {
    return this.lanes.filter((_, lane) => this.read[lane]?.includes(block));
  }

  // Geometry, in CSS pixels.

  get rowHeight() {
    const n = this.lanes.length || 2;
    return n <= 4 ? 34 : n <= 12 ? 24 : n <= 40 ? 14 : 7;
  }

  measure() {
    this.width = this.canvas.parentElement.clientWidth;
    this.gutter = this.width < 500 ? 44 : 92;
    this.height = Math.max(this.lanes.length, 2) * this.rowHeight + AXIS;
    this.canvas.dataset.gutter = this.gutter; // for tests and scripts that point at blocks
    this.canvas.dataset.rowHeight = this.rowHeight;
  }

  x(block) {
    return this.gutter + ((block - this.from) / (this.to - this.from)) * (this.width - this.gutter);
  }

  blockAt(x) {
    return this.from + ((x - this.gutter) / (this.width - this.gutter)) * (this.to - this.from);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const lane = Math.floor((event.clientY - box.top) / this.rowHeight);
    if (x < this.gutter || lane < 0 || lane >= this.lanes.length) return null;
    const exact = this.blockAt(x);
    const reach = (REACH * (this.to - this.from)) / (this.width - this.gutter);
    const near = (blocks) => nearest(blocks, exact, reach);
    const block = near(this.read[lane] ?? []) ?? near([...this.counts[lane].keys()]) ?? Math.floor(exact);
    return { lane, block: Math.min(Math.max(block, 0), this.blocks - 1) };
  }

  // Pointer and keys.

  pointerDown(event) {
    if (event.button !== 0) return;
    this.drag = { start: event.clientX, now: event.clientX };
    this.canvas.setPointerCapture(event.pointerId);
  }

  pointerMove(event) {
    if (this.drag) {
      this.drag.now = event.clientX;
      this.draw();
    }
    this.point(this.place(event), event);
  }

  pointerUp(event) {
    const { start, now } = this.drag ?? { start: 0, now: 0 };
    if (!this.drag) return;
    this.endDrag();
    if (Math.abs(now - start) < 5) {
      const place = this.place(event);
      if (place) this.onPick(place);
      return;
    }
    const left = this.canvas.getBoundingClientRect().left;
    const [a, b] = [start, now].sort((p, q) => p - q).map((x) => this.blockAt(Math.max(x - left, this.gutter)));
    this.zoom(Math.floor(a), Math.ceil(b));
  }

  endDrag() {
    this.drag = null;
    this.draw();
  }

  point(place, event) {
    this.cursor = place;
    this.onPoint(place, event);
    this.draw();
  }

  key(event) {
    if (!this.lanes.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const { lane, block } = this.cursor ?? { lane: 0, block: -1 };
    const read = this.read[lane] ?? [];
    const step = {
      ArrowRight: () => ({ lane, block: read.find((b) => b > block) ?? block }),
      ArrowLeft: () => ({ lane, block: read.findLast((b) => b < block) ?? block }),
      ArrowDown: () => ({ lane: Math.min(lane + 1, this.lanes.length - 1), block }),
      ArrowUp: () => ({ lane: Math.max(lane - 1, 0), block }),
      Home: () => ({ lane, block: read[0] ?? block }),
      End: () => ({ lane, block: read.at(-1) ?? block }),
    }[event.key];
    const centre = this.cursor ? block + 0.5 : undefined;
    if (step) this.moveTo(step());
    else if (event.key === "+" || event.key === "=") this.zoomBy(0.5, centre);
    else if (event.key === "-") this.zoomBy(2, centre);
    else if (event.key === "0") this.zoom(0, this.blocks);
    else if (event.key === "Escape") this.point(null);
    else if (event.key === "Enter" && this.cursor) this.onPick(this.cursor);
    else return;
    event.preventDefault();
  }

  moveTo(place) {
    if (place.block < 0) place.block = this.read[place.lane]?.[0] ?? 0;
    const width = this.to - this.from;
    if (place.block < this.from || place.block >= this.to) this.zoom(place.block - width / 2, place.block + width / 2);
    const box = this.canvas.getBoundingClientRect();
    const at = { clientX: box.left + this.x(place.block + 0.5), clientY: box.top + (place.lane + 1) * this.rowHeight };
    this.point(place, at);
  }

  // Drawing.

  drawNow() {
    this.measure();
    const { canvas, width, height, gutter } = this;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    const colours = {};
    for (const [name, element] of Object.entries(this.swatches)) colours[name] = getComputedStyle(element).backgroundColor;
    const style = getComputedStyle(canvas);
    g.font = `12px ${style.fontFamily}`;
    g.textBaseline = "middle";
    this.lanes.forEach((_, lane) => this.drawLane(g, lane, colours, style.color));
    this.drawAxis(g, style.color);
    this.drawMarks(g, style.color);
    g.save();
    g.globalAlpha = 0.8;
    g.strokeStyle = style.color;
    if (this.cursor) {
      const x = this.x(this.cursor.block);
      const w = Math.max(this.x(this.cursor.block + 1) - x, MIN_BAR + 2);
      g.strokeRect(Math.max(x - 1, gutter), this.cursor.lane * this.rowHeight + 0.5, w + 1, this.rowHeight - 1);
    }
    if (this.drag && Math.abs(this.drag.now - this.drag.start) >= 5) {
      const left = canvas.getBoundingClientRect().left;
      g.globalAlpha = 0.15;
      g.fillStyle = style.color;
      g.fillRect(this.drag.start - left, 0, this.drag.now - this.drag.start, height - AXIS);
    }
    g.restore();
  }

  drawLane(g, lane, colours, text) {
    const y = lane * this.rowHeight;
    const pad = this.rowHeight > 10 ? 3 : 1;
    const tall = this.rowHeight - 2 * pad;
    g.fillStyle = colours.unread;
    g.fillRect(this.gutter, y + pad, this.width - this.gutter, tall);
    const most = Math.max(...this.counts[lane].values(), 1);
    const bars = (blocks, colour, strength = () => 1) => {
      g.fillStyle = colour;
      for (const block of blocks) {
        g.globalAlpha = strength(block);
        if (block + 1 < this.from || block > this.to) continue;
        const [a, b] = [this.x(block), this.x(block + 1)];
        const w = b - a > 6 ? b - a - 1 : Math.max(b - a, MIN_BAR);
        const left = Math.max((a + b - w) / 2, this.gutter);
        g.fillRect(left, y + pad, Math.max(Math.min((a + b + w) / 2, this.width) - left, 1), tall);
      }
    };
    bars(this.counts[lane].keys(), colours.others, (block) => 0.35 + (0.65 * this.counts[lane].get(block)) / most);
    bars(this.read[lane] ?? [], colours.read);
    g.globalAlpha = 1;
    const { layer, group } = this.lanes[lane];
    const label = this.gutter > 60 ? `layer ${layer}, group ${group}` : `L${layer} g${group}`;
    if (this.rowHeight >= 14 || group === 0) {
      g.fillStyle = text;
      g.fillText(label, 0, y + this.rowHeight / 2, this.gutter - 6);
    }
  }

  /** A frame around each marked block, over all rows, and an arrow below it. */
  drawMarks(g, colour) {
    const bottom = this.lanes.length * this.rowHeight;
    g.strokeStyle = g.fillStyle = colour;
    g.lineWidth = 1.5;
    for (const block of this.marked) {
      const [a, b] = [this.x(block), this.x(block + 1)];
      if (b < this.gutter || a > this.width) continue;
      const half = Math.max(b - a, MIN_BAR + 2) / 2 + 1;
      const middle = (a + b) / 2;
      g.strokeRect(middle - half, 1, 2 * half, bottom - 2);
      g.beginPath();
      g.moveTo(middle, bottom);
      g.lineTo(middle - 5, bottom + 8);
      g.lineTo(middle + 5, bottom + 8);
      g.fill();
    }
  }

  drawAxis(g, colour) {
    const tokens = (this.to - this.from) * this.blockSize;
    const wanted = Math.max((this.width - this.gutter) / 90, 2);
    const step = [1, 2, 5].flatMap((m) => [...Array(10).keys()].map((e) => m * 10 ** e)).sort((a, b) => a - b);
    const each = step.find((s) => tokens / s <= wanted) ?? tokens;
    g.fillStyle = colour;
    const y = this.lanes.length * this.rowHeight;
    for (let t = Math.ceil((this.from * this.blockSize) / each) * each; t <= this.to * this.blockSize; t += each) {
      const x = this.x(t / this.blockSize);
      const words = grouped(t);
      const room = g.measureText(words).width;
      g.fillRect(Math.min(x, this.width - 1), y, 1, 4);
      g.fillText(words, Math.min(Math.max(x - room / 2, this.gutter), this.width - room), y + 14);
    }
  }
}

const rows = (selections) => selections.flatMap((s) => s.blocks);

/** The block of the list that lies at `exact`, or else the one whose middle is nearest and within `reach`. */
function nearest(blocks, exact, reach) {
  let best;
  let distance = Math.max(reach, 0.5);
  for (const block of blocks) {
    const d = Math.abs(block + 0.5 - exact);
    if (d <= distance) [best, distance] = [block, d];
  }
  return best;
}
