"use strict";
// The pictures of the pairs that are shown. Only those near the view are elements, so that many pairs are quick too.

const GAP = 10;
const TEXT_HEIGHT = 46;
const AHEAD = 300; // pixels above and below the view in which pictures are loaded already

class Grid {
  /** caption(index) gives the number under a picture; chosen(position) and opened(position) are told of clicks. */
  constructor(box, cells, {dataset, decisions, caption, chosen, opened}) {
    Object.assign(this, {box, cells, dataset, decisions, caption, opened});
    this.list = [];
    this.at = 0;
    this.made = new Map(); // index to element
    box.addEventListener("scroll", () => this._fill(), {passive: true});
    new ResizeObserver(() => this._layout()).observe(box);
    cells.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (!cell) return;
      chosen(Number(cell.dataset.position));
      opened(Number(cell.dataset.position));
    });
  }

  /** Show these indices, the one at position `at` selected. */
  show(list, at) {
    this.list = list;
    this.at = at;
    this._layout();
  }

  select(at) {
    this.made.get(this.list[this.at])?.setAttribute("aria-selected", "false");
    this.at = at;
    this._reveal();
    this._fill();
    this._mark();
  }

  /** Where a key leads from the selected cell; null for other keys. */
  moved(key) {
    const page = this.columns * Math.max(1, Math.floor(this.box.clientHeight / this.rowHeight));
    const last = this.list.length - 1;
    const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns};
    const leaps = {PageUp: -page, PageDown: page, Home: -this.at, End: last - this.at};
    const step = steps[key] ?? leaps[key];
    return step === undefined ? null : Math.max(0, Math.min(last, this.at + step));
  }

  _layout() {
    const width = this.cells.clientWidth;
    if (!width) return; // a pair is open, and the grid is hidden
    const least = width < 500 ? 150 : 176;
    this.columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    this.cellWidth = Math.floor((width - GAP * (this.columns - 1)) / this.columns);
    const [x, y] = this.dataset.size;
    this.pictureHeight = Math.round(this.cellWidth * Math.min(1.5, Math.max(0.4, y / x)));
    this.rowHeight = this.pictureHeight + TEXT_HEIGHT + GAP;
    this.cells.style.height = `${Math.ceil(this.list.length / this.columns) * this.rowHeight}px`;
    this._reveal();
    this._fill(true);
    this._mark();
  }

  /** Make the cells near the view, and take the others away. A cell that stays keeps its picture. */
  _fill(anew = false) {
    if (!this.columns || !this.cells.clientWidth) return;
    const {scrollTop, clientHeight} = this.box;
    const first = Math.max(0, Math.floor((scrollTop - AHEAD) / this.rowHeight)) * this.columns;
    const end = Math.ceil((scrollTop + clientHeight + AHEAD) / this.rowHeight) * this.columns;
    const near = this.list.slice(first, end);
    const known = near.length === this.made.size && near.every((index) => this.made.has(index));
    if (known && !anew) return;
    const cells = near.map((index, at) => {
      const cell = this.made.get(index);
      return cell && !anew ? cell : this._write(cell ?? this._cell(index), index, first + at);
    });
    this.made = new Map(near.map((index, at) => [index, cells[at]]));
    this.cells.replaceChildren(...cells); // in their order, for those who hear the page
  }

  _cell(index) {
    const picture = element("img", {src: `${this.dataset.folder(index)}/grid.jpg`, alt: "", decoding: "async"});
    picture.draggable = false;
    const lines = ["line", "line marks"].map((className) => element("div", {className}));
    const cell = element("div", {}, picture, ...lines);
    picture.addEventListener("error", () => cell.classList.add("broken"));
    cell.setAttribute("role", "option");
    return cell;
  }

  /** What a cell says, and where it is. */
  _write(cell, index, position) {
    const {dataset, decisions} = this;
    const rejected = decisions.isRejected(index);
    const title = dataset.title(index);
    const {label, text} = this.caption(index);
    const marks = [dataset.columns.state[index], ...decisions.tags(index)].filter(Boolean).join(", ");
    const [picture, line, below] = cell.children;
    line.replaceChildren(element("b", {textContent: title}), element("span", {textContent: text}));
    below.replaceChildren(element("span", {className: "clip", textContent: marks}));
    if (rejected) below.prepend(element("strong", {textContent: "✕ rejected"}));
    cell.classList.add("cell");
    cell.classList.toggle("rejected", rejected);
    cell.id = `cell-${position}`;
    cell.dataset.position = position;
    const said = [title, `${label} ${text}`, rejected ? "rejected" : "", marks].filter(Boolean).join(", ");
    const names = {label: said, selected: position === this.at, posinset: position + 1, setsize: this.list.length};
    for (const [name, value] of Object.entries(names)) cell.setAttribute(`aria-${name}`, value);
    picture.style.height = `${this.pictureHeight}px`;
    const left = (position % this.columns) * (this.cellWidth + GAP);
    const top = Math.floor(position / this.columns) * this.rowHeight;
    const places = {left, top, width: this.cellWidth, height: this.rowHeight - GAP};
    for (const [name, value] of Object.entries(places)) cell.style[name] = `${value}px`;
    return cell;
  }

  _mark() {
    const cell = this.made.get(this.list[this.at]);
    cell?.setAttribute("aria-selected", "true");
    if (cell) this.box.setAttribute("aria-activedescendant", cell.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Scroll just so far that the selected cell is seen. */
  _reveal() {
    if (!this.columns || !this.cells.clientWidth) return;
    const top = Math.floor(this.at / this.columns) * this.rowHeight;
    const {scrollTop, clientHeight} = this.box;
    const least = top + this.rowHeight + GAP - clientHeight; // less would cut the cell off below
    if (top < scrollTop || least > scrollTop) this.box.scrollTop = Math.min(top, Math.max(scrollTop, least));
  }
}
