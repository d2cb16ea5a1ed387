"use strict";
// What is drawn on the stage. Nothing here reads a pixel: a page from a disk may draw its pictures, but not look at
// them, so that every picture is made by drawing others over one another.

const INVALID = "#4a63a8";
const LABEL_FONT = "12px system-ui, sans-serif";

// Viridis: one scale from dark to light, which colour-blind people read as well.
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

/** The colour of a correlation; what is below 0 looks like 0. */
function colourOf(value) {
  const place = Math.min(1, Math.max(0, value)) * (SCALE.length - 1);
  const stop = Math.min(SCALE.length - 2, Math.floor(place));
  const mixed = SCALE[stop].map((low, i) => Math.round(low + (place - stop) * (SCALE[stop + 1][i] - low)));
  return `rgb(${mixed.join()})`;
}

/** Where images lie on a stage: two panes, side by side or one above the other, as is larger; otherwise one. */
function panesOf(mode, width, height, size) {
  if (mode !== "side") return [{left: 0, top: 0, width, height}];
  const [wide, tall] = [(width - 2) / 2, (height - 2) / 2];
  const beside = [0, wide + 2].map((left) => ({left, top: 0, width: wide, height}));
  const above = [0, tall + 2].map((top) => ({left: 0, top, width, height: tall}));
  return fittingZoom(above[0], size) > fittingZoom(beside[0], size) ? above : beside;
}

/** The zoom, in CSS pixels for each pixel of the image, at which the whole image is seen in a pane. */
function fittingZoom(pane, size) {
  return Math.max(0.01, Math.min(pane.width / size[0], pane.height / size[1]));
}

/** How many times as long as they are arrows are drawn, so that the longest is about one step long. */
function arrowFactor(scale, step) {
  return [100, 50, 20, 10, 5, 3, 2].find((factor) => scale * factor <= 1.2 * step) ?? 1;
}

/**
 * Draw a stage of width x height CSS pixels, each of which is `ratio` pixels of the screen wide.
 *
 * view: mode, shows ("source" or "target"), wipe (0 to 1), zoom, x and y (the image's pixel in the middle of a pane),
 * layers, opacity. content: size, window, labels {source, target}, the images source, target, colours and folds or null
 * where they are not there, map (a correlation map or null), field (a field's details or null).
 */
function drawStage(context, width, height, ratio, view, content) {
  const panes = panesOf(view.mode, width, height, content.size);
  panes.forEach((pane, number) => {
    const frame = new Frame(context, pane, view, content, ratio);
    context.save();
    context.beginPath();
    context.rect(pane.left, pane.top, pane.width, pane.height);
    context.clip();
    if (view.mode === "wipe") drawWiped(frame, view, content);
    else if (view.mode === "overlay") drawImages(frame, ["source", "target"], view, content);
    else drawImages(frame, [view.mode === "side" ? ["source", "target"][number] : view.shows], view, content);
    drawMarks(frame, view, content);
    drawLabels(frame, number, view, content);
    context.restore();
  });
}

/** A pane, and where the image's pixels lie in it. */
class Frame {
  constructor(context, pane, view, content, ratio) {
    Object.assign(this, {context, pane, zoom: view.zoom, size: content.size, ratio});
    this.left = pane.left + pane.width / 2 - view.x * view.zoom;
    this.top = pane.top + pane.height / 2 - view.y * view.zoom;
  }

  x(x) {
    return this.left + x * this.zoom;
  }

  y(y) {
    return this.top + y * this.zoom;
  }

  /** Draw a picture over the whole image. Pixels are smoothed up to twice their size, and shown as they are beyond. */
  draw(picture) {
    const {context, zoom, size} = this;
    context.imageSmoothingEnabled = (zoom * this.ratio * size[0]) / picture.width <= 2;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, this.left, this.top, size[0] * zoom, size[1] * zoom);
  }
}

/** One image, or two laid over each other; then colours, and what is black or masked on top of them. */
function drawImages(frame, names, view, content) {
  const images = names.map((name) => content[name]);
  if (images.includes(null)) return; // not loaded yet
  const {context} = frame;
  const {layers} = view;
  frame.draw(images.length === 1 ? images[0] : overlayOf(...images));
  context.globalAlpha = view.opacity;
  if (layers.colours && content.colours) frame.draw(content.colours);
  if (layers.correlation && content.map) drawMap(frame, content.map, content.window);
  context.globalAlpha = 1;
  if (layers.invalid) images.forEach((image) => frame.draw(invalidOf(image)));
  if (layers.folds && content.folds) frame.draw(content.folds);
}

/** The source to the left of the divider, the target to its right. */
function drawWiped(frame, view, content) {
  const {context, pane} = frame;
  const divider = pane.left + view.wipe * pane.width;
  const sides = [["source", pane.left, divider], ["target", divider, pane.left + pane.width]];
  for (const [name, from, to] of sides) {
    context.save();
    context.beginPath();
    context.rect(from, pane.top, to - from, pane.height);
    context.clip();
    drawImages(frame, [name], view, content);
    context.restore();
  }
  context.fillStyle = "#000";
  context.fillRect(divider - 2, pane.top, 4, pane.height);
  context.fillStyle = "#fff";
  context.fillRect(divider - 1, pane.top, 2, pane.height);
}

/** Numbers of the map, frames about folds, and arrows. */
function drawMarks(frame, {layers}, {map, field, window: step}) {
  if (layers.correlation && map) writeMap(frame, map, step);
  if (layers.folds && field) drawFolds(frame, field.folds, step);
  if (layers.arrows && field) drawArrows(frame, field);
}

/** The windows of a map: [value, x, y, width, height] on the stage. A small image has one window, of its own size. */
function* windowsOf(frame, {nx, ny, values}, step) {
  const [width, height] = frame.size.map((size) => Math.min(size, step));
  for (let j = 0; j < ny; j++) {
    for (let i = 0; i < nx; i++) {
      const [x, y] = [frame.x(i * width), frame.y(j * height)];
      yield [values[j * nx + i], x, y, width * frame.zoom, height * frame.zoom];
    }
  }
}

function drawMap(frame, map, step) {
  for (const [value, x, y, width, height] of windowsOf(frame, map, step)) {
    if (value === null) continue;
    frame.context.fillStyle = colourOf(value);
    frame.context.fillRect(x, y, width - 1, height - 1);
  }
}

function writeMap(frame, map, step) {
  const {context} = frame;
  context.font = LABEL_FONT;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const [value, x, y, width, height] of windowsOf(frame, map, step)) {
    if (width < 34 || height < 16) return;
    outlined(context, value === null ? "–" : value.toFixed(2), x + width / 2, y + height / 2);
  }
}

function drawFolds(frame, folds, step) {
  const {context, zoom, size} = frame;
  context.lineWidth = 2;
  for (const [i, j] of folds) {
    const [wide, tall] = [i, j].map((at, axis) => Math.min(step, size[axis] - at * step) * zoom - 2);
    const box = [frame.x(i * step) + 1, frame.y(j * step) + 1, wide, tall];
    context.setLineDash([]);
    context.strokeStyle = "#000";
    context.strokeRect(...box);
    context.setLineDash([6, 5]);
    context.strokeStyle = "#fff";
    context.strokeRect(...box);
  }
  context.setLineDash([]);
}

/** From each point to where in the source its pixel is taken, with a white line on a dark one. */
function drawArrows(frame, {arrows, scale}) {
  const {context, zoom} = frame;
  const {nx, ny, step} = arrows;
  const factor = arrowFactor(scale, step) * zoom;
  const head = Math.min(5, Math.max(2, step * zoom * 0.22));
  const path = new Path2D();
  for (let at = 0; at < nx * ny; at++) {
    if (arrows.x[at] === null || arrows.y[at] === null) continue;
    const [x, y] = [frame.x(((at % nx) + 0.5) * step), frame.y((Math.floor(at / nx) + 0.5) * step)];
    const [dx, dy] = [arrows.x[at] * factor, arrows.y[at] * factor];
    const angle = Math.atan2(dy, dx);
    path.moveTo(x, y);
    path.lineTo(x + dx, y + dy);
    for (const turn of [2.6, -2.6]) {
      path.moveTo(x + dx, y + dy);
      path.lineTo(x + dx + head * Math.cos(angle + turn), y + dy + head * Math.sin(angle + turn));
    }
  }
  context.lineCap = "round";
  for (const [style, width] of [["rgba(0, 0, 0, 0.75)", 3.2], ["#fff", 1.4]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke(path);
  }
}

/** Say in a corner of the pane what is seen. */
function drawLabels(frame, number, view, {labels}) {
  const {context, pane} = frame;
  context.font = LABEL_FONT;
  context.textBaseline = "top";
  const [left, right] = [pane.left + 8, pane.left + pane.width - 8];
  const write = (text, x, align) => {
    context.textAlign = align;
    outlined(context, text, x, pane.top + 8);
  };
  if (view.mode === "side") write(labels[["source", "target"][number]], left, "left");
  if (view.mode === "blink") write(labels[view.shows], left, "left");
  if (view.mode === "overlay") write(`${labels.source}, and ${labels.target}`, left, "left");
  if (view.mode === "wipe") {
    write(labels.source, left, "left");
    write(labels.target, right, "right");
  }
}

function outlined(context, text, x, y) {
  context.lineJoin = "round";
  context.lineWidth = 3.5;
  context.strokeStyle = "rgba(0, 0, 0, 0.8)";
  context.strokeText(text, x, y);
  context.fillStyle = "#fff";
  context.fillText(text, x, y);
}

// Pictures made of others, kept as long as those are

const madeInvalid = new WeakMap();
const madeOverlays = new WeakMap();

/** Colour where a picture is transparent, and nothing elsewhere. */
function invalidOf(image) {
  if (!madeInvalid.has(image)) {
    const [canvas, context] = blank(image);
    context.fillStyle = INVALID;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(image, 0, 0);
    madeInvalid.set(image, canvas);
  }
  return madeInvalid.get(image);
}

/** The source in red and blue, the target in green: where they agree, that is grey. */
function overlayOf(source, target) {
  const made = madeOverlays.get(source);
  if (made?.target === target) return made.canvas;
  const [canvas, context] = only(source, "#f0f");
  context.globalCompositeOperation = "lighter";
  context.drawImage(only(target, "#0f0")[0], 0, 0, canvas.width, canvas.height);
  madeOverlays.set(source, {target, canvas});
  return canvas;
}

/** A picture on black, in some of the three colours only. */
function only(image, colour) {
  const [canvas, context] = blank(image);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  context.globalCompositeOperation = "multiply";
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return [canvas, context];
}

function blank(image) {
  const canvas = element("canvas", {width: image.width, height: image.height});
  return [canvas, canvas.getContext("2d")];
}
