"use strict";
// Which pairs are shown, and in which order. The choices are plain texts and numbers, which also stand in the address.

class Filters {
  constructor(dataset, decisions) {
    this.dataset = dataset;
    this.decisions = decisions;
    this.clear();
    this.field = dataset.fields.length - 1;
    this.order = this._firstOrder();
    this.best = false; // begin with the best end
    this._sorted = {key: "", order: []};
  }

  /** Show all pairs; field and order stay. */
  clear() {
    Object.assign(this, {text: "", tag: "", state: "", decision: "", ranges: new Map()});
  }

  isClear() {
    return !(this.text || this.tag || this.state || this.decision || this.ranges.size);
  }

  /** The first measure of the field that has numbers and a worst end; without one, the pair's number. */
  _firstOrder() {
    const known = (measure) => this.dataset.values(measure, this.field).some((value) => !Number.isNaN(value));
    const of_field = this.dataset.measures.filter((measure) => measure.of_field && measure.worst);
    return of_field.find(known)?.name ?? "";
  }

  /** Keep what lies within low and high only; null for both takes the filter away. */
  setRange(name, low, high) {
    if (low === null && high === null) this.ranges.delete(name);
    else this.ranges.set(name, [low, high]);
  }

  /** The indices of the pairs that are shown, in order. */
  shown() {
    const {dataset, decisions} = this;
    const wanted = this.text.trim().toLowerCase();
    const limits = [...this.ranges].map(([name, [low, high]]) => {
      return [dataset.values(dataset.measure(name), this.field), low ?? -Infinity, high ?? Infinity];
    });
    const rejected = this.decision === "rejected" ? 1 : 0;
    return this._inOrder().filter((i) => {
      if (this.decision && decisions.flags[i] !== rejected) return false;
      for (const [values, low, high] of limits) if (!(values[i] >= low && values[i] <= high)) return false;
      if (this.state && (dataset.columns.state[i] || Filters.NO_STATE) !== this.state) return false;
      if (this.tag && !this._hasTag(i)) return false;
      return !wanted || dataset.searched[i].includes(wanted);
    });
  }

  _hasTag(index) {
    const tags = this.decisions.tags(index);
    return this.tag === Filters.NO_TAG ? !tags.length : tags.includes(this.tag);
  }

  /** All indices in order; unknown numbers stand at the worst end, as nothing could be measured there. */
  _inOrder() {
    const key = `${this.order} ${this.field} ${this.best}`;
    if (this._sorted.key === key) return this._sorted.order;
    const order = Array.from({length: this.dataset.count}, (_, index) => index);
    const measure = this.dataset.measure(this.order);
    if (measure) {
      const sign = measure.worst === "high" ? -1 : 1;
      const badness = this.dataset.values(measure, this.field).map((v) => (Number.isNaN(v) ? -Infinity : sign * v));
      order.sort((i, j) => (badness[i] === badness[j] ? i - j : badness[i] - badness[j]));
    }
    if (this.best) order.reverse();
    this._sorted = {key, order};
    return order;
  }

  /** For the address: only what differs from nothing chosen. */
  toParameters() {
    const texts = {q: this.text, tag: this.tag, state: this.state, decision: this.decision};
    const parameters = new URLSearchParams(Object.entries(texts).filter(([, value]) => value));
    if (this.dataset.fields.length > 1) parameters.set("field", this.field);
    parameters.set("order", this.order);
    if (this.best) parameters.set("best", "1");
    for (const [name, [low, high]] of this.ranges) parameters.set(`range.${name}`, `${low ?? ""}..${high ?? ""}`);
    return parameters;
  }

  /** Take what an address says, as far as this dataset knows it. */
  takeParameters(parameters) {
    this.clear();
    this.text = parameters.get("q") ?? "";
    this.tag = parameters.get("tag") ?? "";
    this.state = parameters.get("state") ?? "";
    this.decision = ["kept", "rejected"].find((value) => value === parameters.get("decision")) ?? "";
    const field = Number(parameters.get("field") ?? -1);
    if (this.dataset.fields[field] !== undefined) this.field = field;
    const order = parameters.get("order");
    if (order === "" || this.dataset.measure(order)) this.order = order;
    this.best = parameters.has("best");
    for (const measure of this.dataset.measures) {
      const found = (parameters.get(`range.${measure.name}`) ?? "..").split("..");
      const [low, high] = found.map((text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text)));
      this.setRange(measure.name, low, high ?? null);
    }
  }
}

// Values of the choices "tag" and "state" that are not a tag or a state; a tag never begins with a space.
Filters.NO_TAG = " none";
Filters.NO_STATE = " none";
