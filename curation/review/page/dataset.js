"use strict";
// What Python wrote: all pairs in columns (data.js), and one file for each pair (detail.js), loaded when it is wanted.
// Pairs go by their index in the columns everywhere; only folders and detail.js go by `place`.

const byId = (id) => document.getElementById(id);

/** A new element. Text is always set as text, so that a note can never become HTML. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** The context of an empty canvas of width x height CSS pixels, drawn as sharp as the screen is. */
function fitted(canvas, width, height, ratio) {
  const [wide, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, {width: wide, height: tall});
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Elements of the same name, one for each text. */
const each = (name, texts, properties = {}) => texts.map((textContent) => element(name, {...properties, textContent}));

class Dataset {
  constructor(data) {
    Object.assign(this, {name: data.name, key: data.key, version: data.version, unfinished: data.unfinished});
    Object.assign(this, {size: data.size, fields: data.fields, window: data.window, measures: data.measures});
    Object.assign(this, {mip: data.mip, no_link: data.no_link, serve: data.serve});
    this.columns = data.columns;
    this.count = data.columns.place.length;
    this.indices = new Map(data.columns.place.map((place, index) => [place, index]));
    this.searched = data.columns.note.map((note) => note.toLowerCase());
    this._values = new Map();
    this._data = data;
    this._pairs = this._gathered();
  }

  /** The numbers of a measure for all pairs, NaN where they are not known. Field -1 stands for the only one. */
  values(measure, field) {
    const key = measure.of_field ? `${measure.name} ${field}` : measure.name;
    if (!this._values.has(key)) {
      const {general, numbers} = this._data;
      const found = (measure.of_field ? numbers[Math.max(0, field)] : general)[measure.name];
      this._values.set(key, Float64Array.from({length: this.count}, (_, i) => found?.[i] ?? NaN));
    }
    return this._values.get(key);
  }

  measure(name) {
    return this.measures.find((measure) => measure.name === name);
  }

  /** [source, target], each [x, y, z]; null where the file does not tell. */
  start(index) {
    return this.columns.start?.[index] ?? null;
  }

  /** A text that stands for the pair in any review of this dataset. */
  pairText(index) {
    const start = this.start(index);
    return start ? start.join(" > ") : `pair ${this.columns.place[index]}`;
  }

  /** A text that stands for the pair and its reverse alike. */
  eitherText(index) {
    const start = this.start(index);
    return start ? start.map(String).sort().join(" and ") : this.pairText(index);
  }

  /** The pairs of the same two boxes, in either direction, this one among them. */
  together(index) {
    return this._pairs.get(this.eitherText(index));
  }

  /** Whether there is a pair of two boxes, as `eitherText` tells them. */
  holds(text) {
    return this._pairs.has(text);
  }

  _gathered() {
    const pairs = new Map();
    for (let index = 0; index < this.count; index++) {
      const text = this.eitherText(index);
      pairs.get(text)?.push(index) ?? pairs.set(text, [index]);
    }
    return pairs;
  }

  title(index) {
    return `pair ${this.columns.pair[index].toLocaleString("en")}`;
  }

  folder(index) {
    return `pairs/${String(this.columns.place[index]).padStart(6, "0")}`;
  }
}

/** A number as people read it, with its unit. */
function written(measure, value) {
  if (Number.isNaN(value)) return "not known";
  return fixed(measure, value) + (measure.unit && `\u202f${measure.unit}`);
}

/** A number with as many digits as its measure has, and no minus before a 0. */
function fixed(measure, value) {
  return value.toFixed(measure.digits).replace(/^-(?=[0.]*$)/, "");
}

/** What data.js and detail.js call. */
const review = {
  data: null,
  load(data) {
    review.data = data;
  },
  detail(place, detail) {
    details.arrived(place, detail);
  },
};

/** The details of pairs: a browser runs a script from a disk, but lets no page fetch a file from there. */
const details = {
  _kept: new Map(), // place to a promise; the latest are at the end
  _waiting: new Map(),

  of(place, folder) {
    const found = this._kept.get(place) ?? new Promise((resolve) => this._load(place, folder, resolve));
    this._kept.delete(place);
    this._kept.set(place, found);
    if (this._kept.size > 50) this._kept.delete(this._kept.keys().next().value);
    return found;
  },

  _load(place, folder, resolve) {
    this._waiting.set(place, resolve);
    const script = element("script", {src: `${folder}/detail.js`});
    const ended = () => {
      script.remove();
      this.arrived(place, null); // nothing happens if the script has told the details
    };
    script.onload = script.onerror = ended;
    document.head.append(script);
  },

  arrived(place, detail) {
    this._waiting.get(place)?.(detail);
    this._waiting.delete(place);
  },
};

/** Pictures, kept as long as few others were wanted since. */
const pictures = {
  _kept: new Map(),

  /** {image, state} of a picture {url, mask}: state becomes "ready" or "broken". What the mask covers is transparent. */
  of({url, mask}, changed) {
    let found = this._kept.get(url);
    if (!found) {
      found = {image: null, state: "loading", listeners: new Set()};
      const ended = (state) => {
        found.state = state;
        for (const listener of found.listeners) listener();
        found.listeners.clear();
      };
      Promise.all([url, mask].filter(Boolean).map(loaded)).then(
        (images) => {
          found.image = mask ? withoutMasked(...images) : images[0];
          ended("ready");
        },
        () => ended("broken"),
      );
    }
    if (changed && found.state === "loading") found.listeners.add(changed);
    this._kept.delete(url);
    this._kept.set(url, found);
    if (this._kept.size > 80) this._kept.delete(this._kept.keys().next().value);
    return found;
  },
};

function loaded(url) {
  return new Promise((resolve, reject) => {
    const image = Object.assign(new Image(), {decoding: "async"});
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = url;
  });
}

/** A picture that is transparent where a mask is not. */
function withoutMasked(image, mask) {
  const canvas = element("canvas", {width: image.width, height: image.height});
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(mask, 0, 0);
  return canvas;
}
