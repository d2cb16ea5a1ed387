"use strict";
// A histogram for each measure: pale bars for all pairs, strong bars for those shown. A range is chosen by dragging
// over the bars, or by the two numbers below them.

const BINS = 40;

class Histogram {
  /** changed(low, high) is called with numbers, or with null where there is no limit. */
  constructor(measure, changed) {
    this.measure = measure;
    this.changed = changed;
    this.canvas = element("canvas", {className: "bars", title: "Drag to choose a range. Click to take it away."});
    this.canvas.setAttribute("aria-hidden", "true"); // the two numbers below say and do the same
    [this.low, this.high] = ["from", "to"].map((end) => {
      const input = element("input", {type: "number", step: 10 ** -measure.digits});
      input.setAttribute("aria-label", `${measure.label}, ${end}`);
      input.addEventListener("input", () => changed(...this._typed()));
      input.addEventListener("keydown", ({key}) => {
        // Arrows begin at the end of the histogram, and not at 0.
        if (input.value === "" && ["ArrowUp", "ArrowDown"].includes(key)) input.value = input.placeholder;
      });
      return input;
    });
    this.any = element("button", {type: "button", textContent: "Any", hidden: true});
    this.any.setAttribute("aria-label", `${measure.label}: any value`);
    this.any.addEventListener("click", () => {
      changed(null, null);
      this.low.focus(); // the button is about to vanish
    });
    const label = measure.label + (measure.unit && `, ${measure.unit}`);
    const legend = element("legend", {textContent: capital(label), title: measure.about});
    this.unknown = element("span", {className: "small unknown"});
    const ends = element("div", {className: "ends"}, this.low, "–", this.high, this.any);
    this.box = element("fieldset", {className: "histogram"}, legend, this.canvas, ends, this.unknown);
    this._listen();
  }

  /** All values, the indices that are shown, the range that is chosen, and the page's colours. */
  show(values, shown, [low, high], style) {
    this._bin(values);
    const counts = this._counts(shown);
    this.range = [low, high];
    for (const [input, value, end] of [[this.low, low, this.ends[0]], [this.high, high, this.ends[1]]]) {
      if (document.activeElement !== input) input.value = value ?? ""; // half a number is being typed
      input.placeholder = Number.isFinite(end) ? fixed(this.measure, end) : "";
      input.disabled = !Number.isFinite(end) && value === null;
    }
    this.any.hidden = low === null && high === null;
    this.unknown.textContent = this.missing ? `${this.missing.toLocaleString("en")} not known` : "";
    this._draw(counts, style);
  }

  /** In which bin each pair lies, and how many all pairs are; -1 where the number is not known. */
  _bin(values) {
    if (this._values === values) return;
    this._values = values;
    let [least, most] = [Infinity, -Infinity];
    for (const value of values) {
      if (value < least) least = value;
      if (value > most) most = value;
    }
    this.ends = [least, most];
    const width = most - least || 1;
    this.bins = Int16Array.from(values, (value) =>
      Number.isNaN(value) ? -1 : Math.min(BINS - 1, Math.floor(((value - least) / width) * BINS)),
    );
    this.missing = this.bins.reduce((sum, bin) => sum + (bin < 0 ? 1 : 0), 0);
    this.total = this._counts(values.keys());
  }

  _counts(indices) {
    const counts = new Uint32Array(BINS);
    for (const index of indices) if (this.bins[index] >= 0) counts[this.bins[index]]++;
    return counts;
  }

  _draw(counts, style) {
    const {canvas} = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    const context = fitted(canvas, width, height, ratio);
    const most = Math.max(1, ...this.total);
    const bar = (count, bin) => {
      // The square root: a bin of one pair is still seen beside one of thousands, and single pairs matter here.
      const tall = count ? Math.max(1.5, Math.sqrt(count / most) * height) : 0;
      context.fillRect((bin * width) / BINS, height - tall, width / BINS - 1, tall);
    };
    if (this.range[0] !== null || this.range[1] !== null) {
      const [from, to] = this._places(width);
      context.fillStyle = style.getPropertyValue("--chosen");
      context.fillRect(from, 0, Math.max(2, to - from), height);
    }
    context.fillStyle = style.getPropertyValue("--bar-all");
    this.total.forEach(bar);
    context.fillStyle = style.getPropertyValue("--bar-shown");
    counts.forEach(bar);
  }

  /** Where the range begins and ends, in pixels of the canvas. */
  _places(width) {
    const [least, most] = this.ends;
    const place = (value) => Math.min(1, Math.max(0, (value - least) / (most - least || 1))) * width;
    return [place(this.range[0] ?? least), place(this.range[1] ?? most)];
  }

  _typed() {
    const number = (input) => (input.value === "" || Number.isNaN(input.valueAsNumber) ? null : input.valueAsNumber);
    return [number(this.low), number(this.high)];
  }

  _listen() {
    let from = null;
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !Number.isFinite(this.ends[0])) return;
      from = at(event);
      this.canvas.setPointerCapture(event.pointerId);
      event.preventDefault(); // no text is selected
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (from !== null && Math.abs(at(event) - from) > 0.01) this._brush(from, at(event));
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (from !== null && Math.abs(at(event) - from) <= 0.01) this.changed(null, null);
      from = null;
    });
    this.canvas.addEventListener("pointercancel", () => (from = null));
  }

  /** Two places between 0 and 1, in either order. The range is rounded outwards, so that no bar is cut. */
  _brush(one, other) {
    const [least, most] = this.ends;
    const unit = 10 ** this.measure.digits;
    const value = (place) => (least + place * (most - least)) * unit;
    const [low, high] = [Math.min(one, other), Math.max(one, other)];
    this.changed(
      low === 0 ? null : Math.floor(value(low)) / unit,
      high === 1 ? null : Math.ceil(value(high)) / unit,
    );
  }
}
