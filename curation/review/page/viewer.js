"use strict";
// One pair in full: what is chosen on its bars, and zoom and pan, which both images share.

const MODES = ["blink", "side", "overlay", "wipe"];
const LAYERS = {f: "colours", a: "arrows", c: "correlation", d: "folds", i: "invalid"};
const BLINK_MS = 600;
const MOST_ZOOM = 40; // CSS pixels for each pixel of the image

class Viewer {
  /** said(text) tells what happened. */
  constructor(dataset, said) {
    Object.assign(this, {dataset, said, index: null, detail: null});
    this.stage = byId("stage");
    this.canvas = byId("canvas");
    this.view = {mode: "blink", shows: "source", wipe: 0.5, zoom: 1, x: 0, y: 0, opacity: 0.7};
    this.view.layers = {colours: false, arrows: false, correlation: false, folds: true, invalid: true};
    this.through = dataset.fields.length - 1; // -1: before any field
    this.fitted = true;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.calm.addEventListener("change", () => this._blink(false));
    new ResizeObserver(() => this._resized()).observe(this.stage);
    this._fillThrough();
    this._listenToBars();
    this._listenToStage();
  }

  /** Show a pair; those of `soon` are likely to be next. */
  open(index, soon) {
    this.index = index;
    this.detail = null;
    this.view.shows = "source";
    this.fitted = true;
    this._resized();
    this._load(soon);
  }

  close() {
    this.index = null;
    this._blink(false);
  }

  /** Answer a key; false if it is none of the viewer's. */
  key(event) {
    const {key} = event;
    if (key === " ") this.swap();
    else if (key === "b") this._blink(!this.timer);
    else if (key === "v") this._setThrough(this.through + 1);
    else if (MODES[key - 1]) this._setMode(MODES[key - 1]);
    else if (LAYERS[key]) this._setLayer(LAYERS[key], !this.view.layers[LAYERS[key]]);
    else if (key === "+" || key === "=") this._zoomBy(1.25);
    else if (key === "-") this._zoomBy(0.8);
    else if (key === "0") this._fit();
    else if (document.activeElement === this.stage && this._panKey(key)) return true;
    else return false;
    return true;
  }

  /** Show the other image, in the mode that shows one at a time. */
  swap() {
    if (this.view.mode !== "blink") this._setMode("blink");
    this.view.shows = this.view.shows === "source" ? "target" : "source";
    if (!this.timer) this.said(`This is the ${this._labels()[this.view.shows]}.`);
    this.draw();
  }

  // Loading

  /** The pictures of a pair by their names: {url, mask} each. */
  _pictures(index, detail) {
    const folder = this.dataset.folder(index);
    const [number, field] = [this._field(), detail.fields[this._field()]];
    const grey = (name, isMasked) => ({url: `${folder}/${name}.jpg`, mask: isMasked && `${folder}/${name}_invalid.png`});
    const found = {target: grey("target", detail.invalid[1])};
    if (this.through < 0) found.source = grey("source", detail.invalid[0]);
    else if (field) found.source = grey(`pulled_${number}`, field.invalid);
    if (field) found.colours = {url: `${folder}/field_${number}.jpg`};
    if (field?.folds.length) found.folds = {url: `${folder}/folds_${number}.png`};
    return found;
  }

  /** The field whose vectors are shown: before any field, it is the last. */
  _field() {
    return this.through < 0 ? this.dataset.fields.length - 1 : this.through;
  }

  async _load(soon) {
    const {index, dataset} = this;
    this.draw();
    const detail = await details.of(dataset.columns.place[index], dataset.folder(index));
    if (index !== this.index) return; // another pair has been opened meanwhile
    this.detail = detail;
    this.draw();
    for (const other of soon) {
      const next = await details.of(dataset.columns.place[other], dataset.folder(other));
      if (next) for (const picture of Object.values(this._pictures(other, next))) pictures.of(picture);
    }
  }

  // Drawing

  /** Draw soon; several changes before the next frame are drawn once. */
  draw() {
    if (this.index === null || this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      if (this.index !== null) this._draw();
    });
  }

  _draw() {
    const ratio = window.devicePixelRatio || 1;
    const {clientWidth: width, clientHeight: height} = this.stage;
    const context = fitted(this.canvas, width, height, ratio);
    drawStage(context, width, height, ratio, this.view, this._content());
    this._showBars();
  }

  _content() {
    const {dataset, detail, through} = this;
    const field = detail?.fields[this._field()] ?? null;
    const map = through < 0 ? detail?.before : field?.after;
    const content = {size: dataset.size, window: dataset.window, labels: this._labels(), map: map ?? null, field};
    Object.assign(content, {source: null, target: null, colours: null, folds: null});
    const broken = [];
    for (const [name, picture] of Object.entries(detail ? this._pictures(this.index, detail) : {})) {
      const {image, state} = pictures.of(picture, () => this.draw());
      content[name] = state === "ready" ? image : null;
      if (state === "broken") broken.push(picture.url);
    }
    const label = dataset.fields[this._field()];
    const none = detail && label && !field; // the field file does not hold every pair
    byId("broken").hidden = !(none || broken.length);
    byId("broken").textContent = none
      ? `This pair has no field in ${label}.`
      : `The page cannot load ${broken.join(", ")}. Copy the whole folder of the review.`;
    return content;
  }

  _labels() {
    const {fields} = this.dataset;
    return {source: this.through < 0 ? "source as it is" : `source, through ${fields[this.through]}`, target: "target"};
  }

  /** Bring the bars and legends to what is shown. */
  _showBars() {
    const {view, dataset} = this;
    const {layers, mode} = view;
    const field = this.detail?.fields[this._field()];
    const label = dataset.fields[this._field()];
    for (const input of document.getElementsByName("mode")) input.checked = input.value === mode;
    for (const [name, on] of Object.entries(layers)) byId(`layer-${name}`).checked = on;
    byId("through").value = this.through;
    byId("wipe").value = Math.round(view.wipe * 100);
    byId("wipe-choice").hidden = mode !== "wipe";
    byId("opacity-choice").hidden = !(layers.colours || layers.correlation);
    byId("auto").checked = Boolean(this.timer);
    byId("zoom").textContent = `${Math.round(view.zoom * 100)} %`;
    const seen = mode === "blink" ? this._labels()[view.shows] : `${this._labels().source}, and target`;
    this.stage.setAttribute("aria-label", `${capital(dataset.title(this.index))}: ${seen}`);
    const legend = (name, shown, text) => {
      byId(`legend-${name}`).hidden = !shown;
      if (shown && text) byId(`legend-${name}-text`).textContent = text;
    };
    const scale = field && `${field.scale} px`;
    legend("colours", layers.colours && field,
      `These are the colours of ${label}. They tell where in the source a pixel is taken from; ` +
      `the rim of the disc stands for ${scale}.`);
    const factor = field && arrowFactor(field.scale, field.arrows.step);
    legend("arrows", layers.arrows && field,
      `The arrows of ${label} point to where in the source a pixel is taken from. They are drawn ` +
      (factor === 1 ? "in their true length." : `${factor} times as long as they are.`));
    legend("correlation", layers.correlation && this.detail,
      `These are the correlations in windows of ${dataset.window} px, ` +
      (this.through < 0 ? "before any field." : `after ${label}.`));
    legend("overlay", mode === "overlay");
    legend("folds", layers.folds && field?.folds.length);
    legend("invalid", layers.invalid);
  }

  // Bars

  _fillThrough() {
    const {fields} = this.dataset;
    const names = ["as it is", ...fields.map((label) => `through ${label}`)];
    byId("through").append(...names.map((textContent, i) => element("option", {value: i - 1, textContent})));
    if (fields.length) return;
    for (const name of ["colours", "arrows", "folds"]) byId(`layer-${name}`).closest("label").hidden = true;
    for (const key of ["f", "a", "d"]) delete LAYERS[key];
  }

  _listenToBars() {
    for (const input of document.getElementsByName("mode")) {
      input.addEventListener("change", () => this._setMode(input.value));
    }
    for (const name of Object.values(LAYERS)) {
      byId(`layer-${name}`).addEventListener("change", (event) => this._setLayer(name, event.target.checked));
    }
    byId("through").addEventListener("change", (event) => this._setThrough(Number(event.target.value)));
    byId("wipe").addEventListener("input", (event) => this._setWipe(event.target.value / 100));
    byId("opacity").addEventListener("input", (event) => {
      this.view.opacity = event.target.value / 100;
      this.draw();
    });
    byId("swap").addEventListener("click", () => this.swap());
    byId("auto").addEventListener("change", (event) => this._blink(event.target.checked));
    byId("zoom-in").addEventListener("click", () => this._zoomBy(1.25));
    byId("zoom-out").addEventListener("click", () => this._zoomBy(0.8));
    byId("zoom-fit").addEventListener("click", () => this._fit());
    // After a click of the mouse, the space bar goes on to swap the images; after a key, the focus stays where it is.
    byId("one").addEventListener("click", (event) => {
      const label = event.target.closest(".look label");
      const pressed = label ? !label.querySelector("select, [type=range]") : event.target.closest(".look button");
      if (event.detail && pressed) this.stage.focus({preventScroll: true});
    });
  }

  _setMode(mode) {
    if (mode !== "blink") this._blink(false);
    this.view.mode = mode;
    if (this.fitted) this._fit();
    this.draw();
  }

  _setLayer(name, on) {
    this.view.layers[name] = on;
    this.draw();
  }

  /** Show the source through a field; after the last one, as it is. */
  _setThrough(field) {
    this.through = field < this.dataset.fields.length ? field : -1;
    this.said(`${capital(this._labels().source)}.`);
    this.draw();
  }

  _setWipe(part) {
    this.view.wipe = Math.min(1, Math.max(0, part));
    this.draw();
  }

  _blink(wanted) {
    clearInterval(this.timer);
    this.timer = null;
    if (wanted && this.calm.matches) {
      this.said("Your system asks for little motion, so nothing blinks by itself. The space bar still swaps images.");
    } else if (wanted) {
      this._setMode("blink");
      this.timer = setInterval(() => this.swap(), BLINK_MS);
    }
    this.draw();
    byId("auto").checked = Boolean(this.timer);
  }

  // Zoom and pan

  _panes() {
    return panesOf(this.view.mode, this.stage.clientWidth, this.stage.clientHeight, this.dataset.size);
  }

  _fit() {
    const [x, y] = this.dataset.size;
    Object.assign(this.view, {zoom: fittingZoom(this._panes()[0], [x, y]), x: x / 2, y: y / 2});
    this.fitted = true;
    this.draw();
  }

  _resized() {
    if (this.fitted) this._fit();
    this.draw();
  }

  /** Zoom about a point of the stage, which stays where it is; about the middle where none is given. */
  _zoomBy(factor, x, y) {
    const {view} = this;
    const panes = this._panes();
    const inside = (p) => x >= p.left && x <= p.left + p.width && y >= p.top && y <= p.top + p.height;
    const pane = panes.find(inside) ?? panes[0];
    const [dx, dy] = [(x ?? pane.left + pane.width / 2) - pane.left - pane.width / 2,
      (y ?? pane.top + pane.height / 2) - pane.top - pane.height / 2];
    const least = Math.min(1, fittingZoom(panes[0], this.dataset.size)) / 2;
    const zoom = Math.min(MOST_ZOOM, Math.max(least, view.zoom * factor));
    view.x += dx / view.zoom - dx / zoom;
    view.y += dy / view.zoom - dy / zoom;
    view.zoom = zoom;
    this._pan(0, 0);
  }

  /** Move the image by CSS pixels; its middle stays within the stage. */
  _pan(dx, dy) {
    const {view} = this;
    const [x, y] = this.dataset.size;
    view.x = Math.min(x, Math.max(0, view.x - dx / view.zoom));
    view.y = Math.min(y, Math.max(0, view.y - dy / view.zoom));
    this.fitted = false;
    this.draw();
  }

  _panKey(key) {
    const [dx, dy] = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]}[key] ?? [];
    if (dx === undefined) return false;
    this._pan(dx, dy);
    return true;
  }

  _listenToStage() {
    const {stage} = this;
    const pointers = new Map(); // those that are down: where each was last
    let moved = 0;
    let wiping = false;
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const apart = () => {
      const [one, other] = [...pointers.values()];
      return Math.hypot(one[0] - other[0], one[1] - other[1]);
    };
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this._zoomBy(Math.exp(-Math.sign(event.deltaY) * Math.min(0.25, Math.abs(event.deltaY) / 400)), ...at(event));
    }, {passive: false});
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      moved = 0;
      wiping = this.view.mode === "wipe" && Math.abs(at(event)[0] - this.view.wipe * stage.clientWidth) < 14;
    });
    stage.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const [[x, y], [oldX, oldY]] = [at(event), pointers.get(event.pointerId)];
      const before = pointers.size === 2 ? apart() : 0;
      pointers.set(event.pointerId, [x, y]);
      moved += Math.abs(x - oldX) + Math.abs(y - oldY);
      if (wiping) this._setWipe(x / stage.clientWidth);
      else if (pointers.size === 2) this._zoomBy(apart() / Math.max(1, before), x, y);
      else if (moved > 3) this._pan(x - oldX, y - oldY);
    });
    const ended = (event) => {
      const clicked = pointers.delete(event.pointerId) && event.type === "pointerup" && moved <= 3;
      if (clicked && this.view.mode === "blink") this.swap();
    };
    stage.addEventListener("pointerup", ended);
    stage.addEventListener("pointercancel", ended);
  }
}

/** Paint the scale of the correlations once. */
function paintScale(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = colourOf(x / (canvas.width - 1));
    context.fillRect(x, 0, 1, canvas.height);
  }
}
