"use strict";
// The page as a whole: which pairs are shown, which is selected or open, and what keys and controls do.

class Review {
  constructor(data) {
    this.dataset = new Dataset(data);
    this.decisions = new Decisions(this.dataset);
    this.filters = new Filters(this.dataset, this.decisions);
    this.list = []; // the indices that are shown, in order
    this.at = 0; // the position in the list that is selected
    this.current = null; // the index that is selected, also while it is open and no longer in the list
    this.open = false;
    this.viewer = new Viewer(this.dataset, (text) => this.say(text));
    this.facts = new Facts(this.dataset, this.decisions);
    this.dialogs = new Dialogs(this.dataset, this.decisions, (index, tags) => {
      this.decided(this.decisions.setTags(index, tags));
    });
    this.grid = new Grid(byId("grid"), byId("cells"), {
      dataset: this.dataset,
      decisions: this.decisions,
      caption: (index) => this.caption(index),
      chosen: (at) => this.select(at),
      opened: () => this.openPair(),
    });
    this.histograms = this.dataset.measures.map((measure) => new Histogram(measure, (low, high) => {
      this.filters.setRange(measure.name, low, high);
      this.filterSoon();
    }));
    byId("histograms").append(...this.histograms.map(({box}) => box));
    this.fillChoices();
    this.listen();
    this.arrive();
  }

  // What is shown

  /** Filter anew. The selected pair stays selected if it is still there; otherwise what has taken its place is. */
  filter() {
    this.list = this.filters.shown();
    const found = this.list.indexOf(this.current);
    this.gone = found < 0 && this.open;
    this.at = Math.max(0, Math.min(found < 0 ? this.at : found, this.list.length - 1));
    if (!this.open) this.current = this.list[this.at] ?? null;
    this.grid.show(this.list, this.at);
    this.showHistograms();
    this.showCounts();
    this.showWhich();
    this.keepAddress();
  }

  /** Filter with the next frame; of many changes in a frame, as when a pointer drags, once. */
  filterSoon() {
    this.soon ??= requestAnimationFrame(() => {
      this.soon = null;
      this.filter();
    });
  }

  showHistograms() {
    const style = getComputedStyle(document.body);
    for (const histogram of this.histograms) {
      const {measure} = histogram;
      const range = this.filters.ranges.get(measure.name) ?? [null, null];
      histogram.show(this.dataset.values(measure, this.filters.field), this.list, range, style);
    }
  }

  showCounts() {
    const number = (count) => count.toLocaleString("en");
    const {count, unfinished} = this.dataset;
    const rejected = this.decisions.rejectedCount();
    const parts = [`${number(this.list.length)} of ${number(count)} pairs shown`, `${number(rejected)} rejected`];
    if (unfinished) parts.push(`${number(unfinished)} not made yet`);
    byId("counts").textContent = parts.join(", ");
    byId("nothing").hidden = this.list.length > 0;
    byId("clear").disabled = this.filters.isClear();
    byId("undo").disabled = !this.decisions.canUndo();
    byId("warning").textContent = this.decisions.trouble;
    byId("warning").hidden = !this.decisions.trouble;
  }

  showWhich() {
    if (!this.open) return;
    const rejected = this.decisions.isRejected(this.current);
    const [at, count] = [this.at + 1, this.list.length].map((number) => number.toLocaleString("en"));
    const place = this.gone ? "not among those shown" : `${at} of ${count}`;
    byId("which").textContent = `${capital(this.dataset.title(this.current))} (${place})`;
    byId("reject").firstChild.textContent = rejected ? "Keep again " : "Reject ";
    byId("previous").disabled = this.at <= 0;
    byId("next").disabled = this.neighbour(1) === null;
  }

  /** The number that stands under a pair's picture: {label, text} of the measure of the order, or of the first one. */
  caption(index) {
    const measure = this.dataset.measure(this.filters.order) ?? this.dataset.measures[0];
    if (!measure) return {label: "", text: ""};
    return {label: measure.label, text: written(measure, this.dataset.values(measure, this.filters.field)[index])};
  }

  say(text) {
    byId("said").textContent = text;
  }

  // Moving

  select(at) {
    if (!this.list.length) return;
    this.at = at;
    this.current = this.list[at];
    this.gone = false;
    this.say("");
    this.grid.select(at);
    this.keepAddress();
  }

  /** The position before (-1) or after (1) the current pair; null at the ends. */
  neighbour(step) {
    // What is no longer in the list has been at `at`, where the next one now is.
    const at = this.gone && step > 0 ? Math.min(this.at, this.list.length) : this.at + step;
    return at >= 0 && at < this.list.length ? at : null;
  }

  move(step) {
    const at = this.neighbour(step);
    if (at === null) {
      this.say(step > 0 ? "This is the last pair." : "This is the first pair.");
      return;
    }
    this.select(at);
    if (!this.open) return;
    this.showPair();
    const rejected = this.decisions.isRejected(this.current) ? ", rejected" : "";
    const {label, text} = this.caption(this.current);
    this.say(`${capital(this.dataset.title(this.current))}: ${label} ${text}${rejected}.`);
  }

  openPair(keepsHistory = true) {
    if (this.current === null) return;
    this.open = true;
    byId("all").hidden = true;
    byId("one").hidden = false;
    byId("show-filters").hidden = true;
    this.showPair();
    this.keepAddress(keepsHistory);
    byId("stage").focus();
  }

  showPair() {
    const soon = [this.neighbour(1), this.neighbour(-1)].filter((at) => at !== null).map((at) => this.list[at]);
    this.viewer.open(this.current, soon);
    this.facts.show(this.current);
    this.showWhich();
    byId("facts").scrollTop = 0;
  }

  closePair() {
    if (!this.open) return;
    this.open = false;
    this.viewer.close();
    byId("one").hidden = true;
    byId("all").hidden = false;
    byId("show-filters").hidden = false;
    this.filter();
    byId("grid").focus();
  }

  // Deciding

  reject() {
    if (this.current !== null) this.decided(this.decisions.toggle(this.current));
  }

  undo() {
    const undone = this.decisions.undo();
    const moves = undone && undone.index !== this.current;
    if (moves) this.current = undone.index; // what has changed is seen
    this.decided(undone ? undone.said : "There is nothing to undo.");
    if (moves && this.open) this.showPair();
  }

  decided(said) {
    this.fillTags();
    this.filter();
    if (this.open) this.facts.refresh();
    this.say(said);
  }

  save() {
    const file = this.decisions.file();
    const blob = new Blob([JSON.stringify(file, null, 1) + "\n"], {type: "application/json"});
    const link = element("a", {href: URL.createObjectURL(blob), download: "rejected.json"});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    const number = (count) => count.toLocaleString("en");
    const gone = file.pairs.length - this.decisions.rejectedCount();
    const earlier = gone ? ` This counts ${number(gone)} from an earlier review, which this dataset does not hold.` : "";
    const pairs = `${number(file.pairs.length)} rejected pairs are in rejected.json.${earlier}`;
    this.say(this.dataset.columns.start ? pairs : `${pairs} ${Review.NO_STARTS}`);
  }

  tag() {
    if (this.current !== null) this.dialogs.tags(this.current);
  }

  // Choices

  fillChoices() {
    const {dataset, filters} = this;
    document.title = `${dataset.name}: review`;
    byId("name").textContent = dataset.name;
    byId("about").textContent = `Curation toolkit ${dataset.version}`;
    if (!dataset.columns.start) byId("save").title = Review.NO_STARTS;
    fill("field", dataset.fields.map((label, index) => [index, label]));
    byId("field-choice").hidden = dataset.fields.length < 2;
    fill("order", [["", "pair number"], ...dataset.measures.map(({name, label}) => [name, label])]);
    const states = [...new Set(dataset.columns.state)].filter(Boolean).sort();
    fill("state", [["", "any"], [Filters.NO_STATE, "nothing special"], ...states.map((state) => [state, state])]);
    byId("state").closest("label").hidden = !states.length;
    this.fillTags();
    paintScale(byId("legend-scale"));
    const choices = {text: "text", field: "field", order: "order", decision: "decision", tag: "tag", state: "state"};
    for (const [id, name] of Object.entries(choices)) {
      byId(id).addEventListener("input", (event) => {
        filters[name] = name === "field" ? Number(event.target.value) : event.target.value;
        if (name === "order" || name === "field") this.current = null; // begin at the worst
        if (this.current === null) this.at = 0;
        this.nameDirections();
        this.filter();
      });
    }
    byId("direction").addEventListener("input", (event) => {
      filters.best = event.target.value !== "";
      Object.assign(this, {current: null, at: 0});
      this.filter();
    });
  }

  fillTags() {
    fill("tag", [["", "any"], [Filters.NO_TAG, "no tag"], ...this.decisions.allTags().map((tag) => [tag, tag])]);
    byId("tag").value = this.filters.tag;
  }

  /** The ends of an order: what is worst of some measures, and first or lowest of others. */
  nameDirections() {
    const measure = this.dataset.measure(this.filters.order);
    const names = measure?.worst ? ["the worst", "the best"] : ["the lowest", "the highest"];
    [...byId("direction").options].forEach((option, at) => (option.textContent = names[at]));
  }

  showChoices() {
    for (const name of ["text", "field", "order", "decision", "tag", "state"]) byId(name).value = this.filters[name];
    byId("direction").value = this.filters.best ? "1" : "";
    this.nameDirections();
  }

  clear() {
    this.filters.clear();
    this.showChoices();
    this.filter();
    byId("grid").focus();
  }

  toggleFilters(shown = byId("filters").hidden) {
    byId("filters").hidden = !shown;
    byId("show-filters").setAttribute("aria-expanded", String(shown));
    if (shown) this.showHistograms();
  }

  // The address: a reload, or a bookmark, comes back to the same place

  keepAddress(isNew = false) {
    const parameters = this.filters.toParameters();
    if (this.open) parameters.set("pair", this.dataset.columns.place[this.current]);
    const address = `#${parameters}`;
    if (address === location.hash) return;
    try {
      history[isNew ? "pushState" : "replaceState"](null, "", address);
    } catch {
      // A browser may refuse many changes in a short time; the address is a convenience.
    }
  }

  arrive() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    if (parameters.size) this.filters.takeParameters(parameters);
    this.showChoices();
    const index = this.dataset.indices.get(Number(parameters.get("pair") ?? -1));
    if (index !== undefined) this.current = index;
    if (index === undefined) {
      this.closePair();
      this.filter();
      byId("grid").focus();
      return;
    }
    this.open = true; // so that the pair stays, whether or not the filters show it
    this.filter();
    this.openPair(false);
  }

  // Keys and buttons

  listen() {
    const buttons = {
      "show-filters": () => this.toggleFilters(),
      undo: () => this.undo(),
      save: () => this.save(),
      help: () => this.dialogs.help(),
      clear: () => this.clear(),
      "clear-too": () => this.clear(),
      close: () => this.closePair(),
      previous: () => this.move(-1),
      next: () => this.move(1),
      reject: () => this.reject(),
      "add-tags": () => this.tag(),
    };
    for (const [id, pressed] of Object.entries(buttons)) byId(id).addEventListener("click", pressed);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => this.key(event));
    // A list that was opened with the pointer gives the keys back once something is chosen.
    let pointed = false;
    document.addEventListener("pointerdown", () => (pointed = true), true);
    document.addEventListener("keydown", () => (pointed = false), true);
    document.addEventListener("change", ({target}) => {
      if (pointed && target.matches("select")) byId(this.open ? "stage" : "grid").focus();
    });
    window.addEventListener("popstate", () => this.arrive());
    window.addEventListener("storage", (event) => {
      if (event.key !== this.decisions.name) return;
      this.decisions.read();
      this.decided("Another window has changed the decisions.");
    });
    window.addEventListener("resize", () => this.showHistograms());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.showHistograms());
    const narrow = matchMedia("(max-width: 800px)");
    narrow.addEventListener("change", () => this.toggleFilters(!narrow.matches));
    this.toggleFilters(!narrow.matches);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const {target, key} = event;
    if (target.matches("select, input:not([type=checkbox], [type=radio], [type=range])")) {
      // Letters belong to what is typed there.
      if (key === "Escape" || (key === "Enter" && target.matches("input"))) byId(this.open ? "stage" : "grid").focus();
      return;
    }
    const presses = [" ", "Enter"].includes(key) && target.matches("button, a, input, summary");
    const moves = key.startsWith("Arrow") && target.matches("input");
    if (!presses && !moves && this.answer(key, event)) event.preventDefault();
  }

  /** Do what a key says; false if it says nothing. */
  answer(key, event) {
    const keys = {
      j: () => this.move(1),
      k: () => this.move(-1),
      x: () => this.reject(),
      u: () => this.undo(),
      t: () => this.tag(),
      s: () => this.save(),
      "?": () => this.dialogs.help(),
      "/": () => this.search(),
    };
    if (keys[key]) keys[key]();
    else if (this.open && key === "Escape") this.closePair();
    else if (this.open) return this.viewer.key(event);
    else if (key === "Enter") this.openPair();
    else return this.moveInGrid(key, event.target);
    return true;
  }

  moveInGrid(key, target) {
    const at = this.grid.moved(key);
    // Beside the grid, these keys scroll.
    if (at === null || (target !== byId("grid") && target !== document.body)) return false;
    this.select(at);
    return true;
  }

  search() {
    this.closePair();
    this.toggleFilters(true);
    byId("text").focus();
    byId("text").select();
  }
}

Review.NO_STARTS =
  "The image file does not say where its pairs come from. So rejected.json names pairs by their place in this file, " +
  "and create_spec.py cannot leave them out.";

function fill(id, choices) {
  byId(id).replaceChildren(...choices.map(([value, textContent]) => element("option", {value, textContent})));
}

const app = review.data && new Review(review.data); // by this name in the browser's console

if (!app) {
  byId("warning").textContent =
    "The page cannot load data.js, which belongs beside it. Make the review again, or copy its whole folder.";
  byId("warning").hidden = false;
}
