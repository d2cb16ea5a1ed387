"use strict";
// Which pairs are rejected, which tags were given, and how to take a decision back. The browser keeps all of it by the
// starts of the pairs, so that it holds in a later review of the same dataset, in whatever order its pairs then are.

class Decisions {
  constructor(dataset) {
    this.dataset = dataset;
    this.trouble = ""; // what the page must say about keeping decisions
    this.name = `curation-review:${dataset.key}`; // in the browser's storage
    this._undo = [];
    this.read();
    this._write(); // finds out whether the browser keeps anything at all
  }

  /** Take what the browser keeps, from an earlier visit or from another tab. */
  read() {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(this.name)) ?? {};
    } catch (error) {
      this.trouble = error instanceof SyntaxError ? Decisions.DAMAGED : Decisions.NOT_KEPT;
    }
    const texts = (list) => (Array.isArray(list) ? list.filter((text) => typeof text === "string") : []);
    this._rejected = new Set(texts(kept.rejected));
    this._tags = new Map(Object.entries(kept.tags ?? {}).map(([pair, tags]) => [pair, texts(tags)]));
    const {dataset} = this;
    this.flags = Uint8Array.from({length: dataset.count}, (_, i) => this._rejected.has(dataset.eitherText(i)));
  }

  isRejected(index) {
    return this.flags[index] === 1;
  }

  rejectedCount() {
    return this.flags.reduce((sum, flag) => sum + flag, 0);
  }

  /** The tags given here. */
  ownTags(index) {
    return this._tags.get(this.dataset.pairText(index)) ?? [];
  }

  /** The tags of the annotation, and those given here. */
  tags(index) {
    const given = this.dataset.columns.tags[index];
    const own = this.ownTags(index);
    return own.length ? [...new Set([...given, ...own])] : given;
  }

  allTags() {
    const all = new Set(this.dataset.columns.tags.flat());
    for (const tags of this._tags.values()) for (const tag of tags) all.add(tag);
    return [...all].sort();
  }

  /** Reject a pair and its reverse, or take both back. */
  toggle(index) {
    const rejected = !this.isRejected(index);
    this._undo.push({index, rejected: !rejected});
    this._setRejected(index, rejected);
    return this._saidOfBoth(index, rejected ? "rejected" : "kept again");
  }

  setTags(index, tags) {
    this._undo.push({index, tags: this.ownTags(index)});
    this._setTags(index, tags);
    const list = this.tags(index).join(", ");
    return this._said(index, list ? `has the tags ${list}` : "has no tags");
  }

  canUndo() {
    return this._undo.length > 0;
  }

  /** Take the last decision back: {index, said}, or null where there is none. */
  undo() {
    const last = this._undo.pop();
    if (!last) return null;
    const {index} = last;
    if ("tags" in last) {
      this._setTags(index, last.tags);
      return {index, said: this._said(index, "has its earlier tags again")};
    }
    this._setRejected(index, last.rejected);
    return {index, said: this._saidOfBoth(index, last.rejected ? "rejected again" : "kept again")};
  }

  /**
   * What stands in rejected.json. The dataset may have been made without pairs that an earlier review rejected: these
   * stand there too, as they would otherwise come back when it is made again.
   */
  file() {
    const entries = Array.from({length: this.dataset.count}, (_, index) => index);
    const tagged = entries.filter((index) => !this.isRejected(index) && this.ownTags(index).length);
    return {
      from: this.dataset.name,
      pairs: [...entries.filter((index) => this.isRejected(index)).map((index) => this._entry(index)), ...this._gone()],
      tagged: tagged.map((index) => this._entry(index)),
    };
  }

  /** Rejected pairs that this dataset does not hold. Which direction they had does not matter. */
  _gone() {
    const texts = [...this._rejected].filter((text) => !this.dataset.holds(text) && Decisions.STARTS.test(text));
    return texts.map((text) => {
      const [src, tgt] = text.split(" and ").map((start) => this._box(start.split(",").map(Number)));
      return {src, tgt, tags: []};
    });
  }

  _box([x, y, z]) {
    return {x_start: x, y_start: y, z_start: z};
  }

  _entry(index) {
    const {place, pair} = this.dataset.columns;
    const start = this.dataset.start(index);
    const tags = this.ownTags(index);
    if (!start) return {pair: place[index], tags};
    const [src, tgt] = start.map(this._box);
    return {src, tgt, pair: pair[index], tags};
  }

  _setRejected(index, rejected) {
    this._rejected[rejected ? "add" : "delete"](this.dataset.eitherText(index));
    for (const other of this.dataset.together(index)) this.flags[other] = rejected ? 1 : 0;
    this._write();
  }

  _setTags(index, tags) {
    const text = this.dataset.pairText(index);
    if (tags.length) this._tags.set(text, tags);
    else this._tags.delete(text);
    this._write();
  }

  _write() {
    try {
      const kept = {rejected: [...this._rejected], tags: Object.fromEntries(this._tags)};
      localStorage.setItem(this.name, JSON.stringify(kept));
    } catch {
      this.trouble = Decisions.NOT_KEPT;
    }
  }

  _said(index, what) {
    return `${capital(this.dataset.title(index))} ${what}.`;
  }

  /** "Pair 6 is rejected; also rejected: pair 7, the reverse." */
  _saidOfBoth(index, what) {
    const {dataset} = this;
    const own = dataset.pairText(index);
    const kind = (other) => (dataset.pairText(other) === own ? "which has the same boxes" : "the reverse");
    const others = dataset.together(index).filter((other) => other !== index);
    const also = others.map((other) => `${dataset.title(other)}, ${kind(other)}`).join(", ");
    return this._said(index, `is ${what}${also && `; also ${what}: ${also}`}`);
  }
}

Decisions.STARTS = /^-?\d+,-?\d+,-?\d+ and -?\d+,-?\d+,-?\d+$/;
Decisions.NOT_KEPT =
  "This browser does not keep your decisions. Save rejected.json before you close or reload this page.";
Decisions.DAMAGED = "The decisions that this browser had kept could not be read. The review begins anew.";

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
