"use strict";
// The pictures of the pairs that are shown. Only those near the view are elements, so that any number of pairs is quick.

const GAP = 10;
const TEXT_HEIGHT = 46;
const AHEAD = 300; // pixels above and below the view in which pictures are loaded already

class Grid {
  /** caption(index) gives the number under a picture; chosen(position) and opened(position) are told of clicks. */
  constructor(box, cells, {dataset, decisions, caption, chosen, opened}) {
    Object.assign(this, {box, cells, dataset, decisions, caption, opened});
    this.list = [];
    this.at = 0;
    this.made = new Map(); // position to element
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
    this._drop();
    this._layout();
  }

  select(at, scrolls = true) {
    this.made.get(this.at)?.setAttribute("aria-selected", "false");
    this.at = at;
    if (scrolls) this._reveal();
    this._fill();
    this._mark();
  }

  /** Decisions or the numbers' field have changed. */
  refresh() {
    this._drop();
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
    this._drop();
    this._reveal();
    this._fill();
    this._mark();
  }

  _fill() {
    if (!this.columns || !this.cells.clientWidth) return;
    const {scrollTop, clientHeight} = this.box;
    const first = Math.max(0, Math.floor((scrollTop - AHEAD) / this.rowHeight)) * this.columns;
    const rows = Math.ceil((scrollTop + clientHeight + AHEAD) / this.rowHeight);
    const end = Math.min(this.list.length, rows * this.columns);
    for (const [position, cell] of this.made) {
      if (position < first || position >= end) {
        cell.remove();
        this.made.delete(position);
      }
    }
    const added = document.createDocumentFragment();
    for (let position = first; position < end; position++) {
      if (this.made.has(position)) continue;
      const cell = this._cell(position);
      this.made.set(position, cell);
      added.append(cell);
    }
    this.cells.append(added);
  }

  _cell(position) {
    const index = this.list[position];
    const {dataset, decisions} = this;
    const rejected = decisions.isRejected(index);
    const title = dataset.title(index);
    const {label, text} = this.caption(index);
    const marks = [dataset.columns.state[index], ...decisions.tags(index)].filter(Boolean).join(", ");
    const picture = element("img", {src: `${dataset.folder(index)}/grid.webp`, alt: "", decoding: "async"});
    picture.draggable = false;
    picture.style.height = `${this.pictureHeight}px`;
    picture.addEventListener("error", () => cell.classList.add("broken"));
    const cell = element(
      "div",
      {id: `cell-${position}`, className: rejected ? "cell rejected" : "cell"},
      picture,
      element("div", {className: "line"}, element("b", {textContent: title}), element("span", {textContent: text})),
      element(
        "div",
        {className: "line marks"},
        ...(rejected ? [element("strong", {textContent: "✕ rejected"})] : []),
        element("span", {className: "clip", textContent: marks}),
      ),
    );
    const names = {role: "option", "aria-selected": String(position === this.at), "aria-posinset": position + 1};
    const said = [title, `${label} ${text}`, rejected ? "rejected" : "", marks].filter(Boolean).join(", ");
    const all = {...names, "aria-setsize": this.list.length, "aria-label": said, "data-position": position};
    for (const [name, value] of Object.entries(all)) cell.setAttribute(name, value);
    cell.style.width = `${this.cellWidth}px`;
    cell.style.height = `${this.rowHeight - GAP}px`;
    cell.style.left = `${(position % this.columns) * (this.cellWidth + GAP)}px`;
    cell.style.top = `${Math.floor(position / this.columns) * this.rowHeight}px`;
    return cell;
  }

  _mark() {
    const cell = this.made.get(this.at);
    cell?.setAttribute("aria-selected", "true");
    if (cell) this.box.setAttribute("aria-activedescendant", cell.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Scroll just so far that the selected cell is seen. */
  _reveal() {
    if (!this.columns || !this.cells.clientWidth) return;
    const top = Math.floor(this.at / this.columns) * this.rowHeight;
    const {scrollTop, clientHeight} = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + this.rowHeight > scrollTop + clientHeight) this.box.scrollTop = top + this.rowHeight - clientHeight + GAP;
  }

  _drop() {
    this.made.clear();
    this.cells.replaceChildren();
  }
}
