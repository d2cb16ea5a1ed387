"use strict";
// What stands beside a pair: its boxes, numbers, tags and note. All of it is text, whatever an annotator typed.

class Facts {
  constructor(dataset, decisions) {
    Object.assign(this, {dataset, decisions});
  }

  /** Show a pair; its details are filled in when they arrive. */
  async show(index) {
    this.index = index;
    const {dataset} = this;
    this._showNumbers(index);
    this.refresh();
    byId("note").textContent = dataset.columns.note[index] || "This pair has no note.";
    byId("rows").replaceChildren();
    byId("link").replaceChildren();
    const detail = await details.of(dataset.columns.place[index], dataset.folder(index));
    if (index === this.index) this._showDetail(detail, dataset.folder(index));
  }

  /** Decisions have changed. */
  refresh() {
    const {dataset, decisions, index} = this;
    const rejected = decisions.isRejected(index);
    const state = dataset.columns.state[index];
    const others = dataset.together(index).filter((other) => other !== index).map((other) => dataset.title(other));
    const lines = [];
    if (rejected) lines.push("✕ This pair is rejected.");
    if (rejected && others.length) lines.push(`Also rejected: ${others.join(", ")}, of the same two boxes.`);
    if (state) lines.push(`${capital(state)}.`);
    byId("mark").textContent = lines.join(" ");
    byId("mark").hidden = !lines.length;
    byId("mark").classList.toggle("rejected", rejected);
    byId("tags").replaceChildren(...each("span", decisions.tags(index), {className: "tag"}));
    if (!decisions.tags(index).length) byId("tags").textContent = "This pair has no tags.";
  }

  _showDetail(detail, folder) {
    if (!detail) {
      byId("link").textContent = `The page cannot load ${folder}/detail.js. Copy the whole folder of the review.`;
      return;
    }
    const {size, mip} = this.dataset;
    const caption = `${size.join(" x ")} pixels${mip === null ? "" : ` at MIP ${mip}`}`;
    const head = ["source", "target"].map((textContent) => element("th", {scope: "col", textContent}));
    const rows = detail.rows.map(([label, ...of]) => element("tr", {},
      element("th", {scope: "row", textContent: capital(label)}), ...of.map((textContent) => element("td", {textContent}))));
    byId("rows").replaceChildren(element("thead", {}, element("tr", {}, element("th", {scope: "col", textContent: caption}), ...head)),
      element("tbody", {}, ...rows));
    byId("note").textContent = detail.note || "This pair has no note.";
    // Only an address of the web becomes a link: anything else might run as code.
    const isLink = /^https?:\/\//.test(detail.link ?? "");
    const link = {href: detail.link, target: "_blank", rel: "noreferrer noopener", textContent: "Open in Neuroglancer"};
    byId("link").replaceChildren(isLink ? element("a", link) : `There is no link to Neuroglancer: ${this.dataset.no_link}.`);
    if (!isLink || !this.dataset.serve.length) return;
    const why = "The volumes are on the machine that made this review. Run each of these commands there, in a terminal of its own:";
    byId("link").append(element("details", {}, element("summary", {textContent: "Before you open it"}), why,
      ...this.dataset.serve.map((textContent) => element("code", {textContent}))));
  }

  /** A row for each measure, a column for each field. */
  _showNumbers(index) {
    const {dataset} = this;
    const fields = Math.max(1, dataset.fields.length);
    const head = each("th", fields === dataset.fields.length ? dataset.fields : ["value"], {scope: "col"});
    const table = byId("numbers");
    table.replaceChildren(element("thead", {}, element("tr", {}, element("td"), ...head)));
    const body = element("tbody");
    for (const measure of dataset.measures) {
      const row = element("tr", {}, ...each("th", [capital(measure.label)], {scope: "row", title: measure.about}));
      const columns = measure.of_field ? fields : 1;
      for (let field = 0; field < columns; field++) row.append(this._number(measure, field, index));
      row.lastChild.colSpan = fields / columns;
      body.append(row);
    }
    table.append(body);
  }

  _number(measure, field, index) {
    const values = this.dataset.values(measure, field);
    const cell = element("td", {textContent: written(measure, values[index])});
    if (measure.worst && !Number.isNaN(values[index])) {
      const place = rank(values, index, measure.worst).toLocaleString("en");
      cell.append(" ", ...each("span", [`#${place}`], {className: "rank"}));
    }
    return cell;
  }
}

/** One more than the number of pairs that are worse. */
function rank(values, index, worst) {
  const own = values[index];
  let worse = 0;
  for (const value of values) if (worst === "low" ? value < own : value > own) worse++;
  return worse + 1;
}
