"use strict";
// The two dialogs. The browser keeps the focus within a dialog, and gives it back when the dialog closes.

const KEYS = [
  ["j  k", "next pair, previous pair, in the order shown"],
  ["← → ↑ ↓  Page Up  Page Down  Home  End", "move among the pictures"],
  ["Enter", "open the selected pair"],
  ["Esc", "go back to all pairs"],
  ["x", "reject the pair and its reverse, or keep them again"],
  ["u", "undo the last decision"],
  ["t", "tags of the pair"],
  ["/", "go to the search in the notes"],
  ["s", "save rejected.json"],
  ["Space", "swap source and target"],
  ["b", "blink by itself, or stop"],
  ["v", "the source as it is, or through the next field"],
  ["1  2  3  4", "blink, side by side, overlay, wipe"],
  ["f", "field colours"],
  ["a", "arrows of the field"],
  ["c", "correlation in windows"],
  ["d", "folds"],
  ["i", "black or masked pixels"],
  ["+  -  0", "zoom in, zoom out, fit"],
  ["← → ↑ ↓ on the image", "move the image"],
  ["?", "this help"],
];

class Dialogs {
  /** tagged(index, tags) is called with the tags that a pair is to have. */
  constructor(dataset, decisions, tagged) {
    Object.assign(this, {dataset, decisions, tagged});
    const head = (keys) => element("th", {scope: "row"}, ...keyCaps(keys));
    const row = ([keys, what]) => element("tr", {}, head(keys), ...each("td", [what]));
    byId("keys").append(element("tbody", {}, ...KEYS.map(row)));
    for (const {label, about} of dataset.measures) {
      byId("abouts").append(element("dt", {textContent: capital(label)}), element("dd", {textContent: about}));
    }
    byId("help-close").addEventListener("click", () => byId("help-dialog").close());
    byId("tag-cancel").addEventListener("click", () => byId("tag-dialog").close());
    byId("tag-form").addEventListener("submit", () => this._keep());
  }

  help() {
    byId("help-dialog").showModal();
    byId("help-dialog").scrollTop = 0; // the focus is on the button at its end
  }

  tags(index) {
    const {dataset, decisions} = this;
    this.index = index;
    const given = dataset.columns.tags[index];
    const own = decisions.ownTags(index);
    byId("tag-title").textContent = `Tags of ${dataset.title(index)}`;
    byId("tag-given").textContent = given.length ? `The annotation gave: ${given.join(", ")}.` : "";
    const known = decisions.allTags().filter((tag) => !given.includes(tag));
    const boxes = known.map((tag) => {
      const box = element("input", {type: "checkbox", value: tag, checked: own.includes(tag)});
      return element("label", {}, box, ` ${tag}`);
    });
    byId("tag-known").replaceChildren(byId("tag-known").firstElementChild, ...boxes);
    byId("tag-known").hidden = !boxes.length;
    byId("tag-new").value = "";
    byId("tag-dialog").showModal();
    byId("tag-new").focus();
  }

  _keep() {
    const given = this.dataset.columns.tags[this.index];
    const ticked = [...byId("tag-known").querySelectorAll("input:checked")].map((input) => input.value);
    const typed = byId("tag-new").value.split(",").map((tag) => tag.trim());
    const tags = [...new Set([...ticked, ...typed])].filter((tag) => tag && !given.includes(tag));
    this.tagged(this.index, tags);
  }
}

/** "j  k" as two keys; words after a key stay text. */
function keyCaps(keys) {
  return keys.split("  ").flatMap((key) => {
    const [name, ...rest] = key.split(" on ");
    const caps = /^[←→↑↓ ]+$/.test(name) ? name.split(" ") : [name];
    const made = caps.flatMap((textContent) => [element("kbd", {textContent}), " "]);
    return rest.length ? [...made, `on ${rest.join(" on ")}`] : made;
  });
}
