// A page that is only to look at: annotations, training samples, and predictions beside annotations.
"use strict";

const looking = {
  sides: ["both", "true", "found"],

  only() { return state.readOnly && state.version === 0; },
  compares() { return state.kinds.length > 0; },
  isTrue(record) { return !record.outcome || record.outcome === "missed"; },
  color(record) { return state.kinds.find((each) => each.name === record.outcome)?.color; },
  partner(record) { return state.particles.get(record?.partner); },
  errors({outcomes}) { return state.kinds.reduce((sum, {name}) => sum + (["correct", "ignored"].includes(name) ? 0 : outcomes[name] ?? 0), 0); },

  says(about) {
    const count = this.compares() ? this.errors(about) : about.counts.unseen ?? 0;
    return `${count} ${this.compares() ? "error" : "particle"}${count === 1 ? "" : "s"}`;
  },
  summary() {
    const total = {counts: {unseen: 0}, outcomes: {}};
    for (const {counts, outcomes} of state.images) {
      total.counts.unseen += counts.unseen ?? 0;
      for (const name in outcomes) total.outcomes[name] = (total.outcomes[name] ?? 0) + outcomes[name];
    }
    return `${this.compares() ? `${total.outcomes.correct ?? 0} correct, ` : ""}${this.says(total)} on ${state.images.length} images`;
  },

  begin() {
    document.body.classList.toggle("view", this.only());
    document.body.classList.toggle("compares", this.compares());
    if (!this.only()) return;
    const [first, ...gone] = this.compares() ? ["rank", "run"] : ["id", "doubt", "run", "state"];
    state.order = first;
    for (const each of gone) $("order").querySelector(`[value=${each}]`)?.remove();
    if (!this.compares()) return;
    for (const [old, value, text] of [["doubt", "rank", "worst first"], ["state", "outcome", "outcome"]]) {
      Object.assign($("order").querySelector(`[value=${old}]`), {value, textContent: text});
    }
    $("heads").replaceChildren(...["No.", "Found", "Score", "True", "IoU", "Outcome"].map((each) => make("th", {scope: "col"}, each)));
    const all = (name) => state.images.reduce((sum, {outcomes}) => sum + (outcomes[name] ?? 0), 0);
    state.kinds = state.kinds.filter(({name}) => name !== "ignored" || all(name));
    $("outcomes").replaceChildren(...state.kinds.map(({name, color, meaning}) => {
      const sign = make("span", {class: "swatch"});
      sign.style.background = color;
      const box = make("input", {type: "checkbox", onchange: (event) => { this.hide(name, !event.target.checked); draw(); }});
      return make("tr", {title: meaning}, make("th", {scope: "row"}, make("label", {}, box, sign, name)), make("td"), make("td", {}, String(all(name))));
    }));
  },

  hide(name, hidden) { state.hiddenStates[hidden ? "add" : "delete"](name); },
  isOnly(name) { return state.kinds.every((each) => state.hiddenStates.has(each.name) !== (each.name === name)); },

  // Only one kind; once more, all of them. Then the first one, on the next image if there is none here.
  onlyKind(name) {
    const back = this.isOnly(name);
    for (const each of state.kinds) this.hide(each.name, !back && each.name !== name);
    state.selected = null;
    draw();
    this.next(true);
  },

  actions() {
    return [
      ["N", "Next", () => this.next(), [" "], "Go"],
      ["K", "Previous", () => step(-1), [], "Go"],
      ["Page Down", "Next image", () => open(state.index + 1), ["pagedown"], "Go"],
      ["H", "Outlines", () => { state.outlines = !state.outlines; draw(); }, [], "Look"],
      ...(this.compares() ? [["T", "True or found", () => this.turn(), [], "Look"], ["gap"]] : []),
      ...state.kinds.map(({name}, number) => [String(number + 1), name, () => this.onlyKind(name), [], "Show only"]),
    ];
  },

  keeps([name]) { return ["J", "Page Up", "0", "+", "−", "← → ↑ ↓", "Escape", "?"].includes(name); },

  // Runs what a key does here; whether it is for nothing else, either.
  press(name) {
    const has = ([key, , , others = []]) => key.toLowerCase() === name || others.includes(name);
    const found = this.actions().find(has);
    if (found) found[2]();
    else if (MORE.some((each) => this.keeps(each) && has(each)) || !(KEYS.has(name) || /^[1-9]$/.test(name))) return false;
    else hint("This page is only to look at.");
    return true;
  },

  turn() {
    this.sides.push(this.sides.shift());
    hint({both: "", true: "Only what is annotated.", found: "Only what was found."}[this.sides[0]]);
    draw();
  },

  // Numbers of the outlines in the picture: what passes the filter, with the true particles that it is about.
  drawn() {
    const both = state.shown.flatMap((each) => [each, this.partner(each) ?? []]).flat();
    return both.filter((each) => !this.compares() || this.sides[0] === "both" || this.isTrue(each) === (this.sides[0] === "true")).map((each) => each.id);
  },

  layer(record) {
    const outline = (style) => L.polygon(points(record.outline), {interactive: false, smoothFactor: 0.7, ...style});
    if (!this.isTrue(record)) return outline({color: this.color(record), weight: 2, fill: false});
    const missed = record.outcome ? {fill: true, fillColor: this.color(record), fillOpacity: 0.22} : {fill: false};
    return L.layerGroup([outline({color: "#ffffff", weight: 3, ...missed}), outline({color: "#000000", weight: 3, dashArray: "6 6", lineCap: "butt", fill: false})]);
  },

  first() { if (this.compares() && state.shown.length) select(state.shown[0].id); },

  // One after another: an image may have to be loaded first.
  next(round = false) { queue = queue.then(() => this.go(round)).catch((error) => complain(error.message)); },

  async go(round) {
    if (!state.known.has(state.index)) return; // not loaded yet
    const at = state.shown.findIndex((each) => each.id === state.selected);
    if (at + 1 < state.shown.length) return select(state.shown[at + 1].id);
    const there = ({counts, outcomes}) => (this.compares() ? state.kinds.some(({name}) => outcomes[name] && !state.hiddenStates.has(name)) : counts.unseen);
    const index = [...state.images.keys(), ...state.images.keys()].slice(state.index + 1, round ? undefined : state.images.length).find((each) => there(state.images[each]));
    if (index == null) return hint(round ? "No particle is of this kind." : "This was the last one. Page Up goes back.");
    await open(index);
    if (state.selected == null && state.shown.length) select(state.shown[0].id);
  },

  facts(record, add, size) {
    const partner = this.partner(record), kind = state.kinds.find((each) => each.name === record.outcome);
    const name = make("b", {}, kind?.name ?? "found");
    add("Outcome", make("span", {}, name, kind ? `: ${kind.meaning}` : ""), true);
    const found = this.isTrue(record) ? null : record, truth = found ? partner : record;
    const pair = (title, of) => {
      add(title, found ? of(found) : "–");
      add("True", truth ? of(truth) : "–");
    };
    pair("Class", (each) => each.class);
    pair("Size", (each) => size(each, "feret_max"));
    pair("Length", (each) => size(each, "length"));
    pair("Area", (each) => `${short(each.area)} ${unit()}²`);
    add("Score", found?.score == null ? "–" : short(found.score));
    add("IoU", record.iou == null ? "–" : record.iou.toFixed(2));
  },

  counts() {
    state.kinds.forEach(({name}, number) => {
      const row = $("outcomes").children[number];
      row.querySelector("input").checked = !state.hiddenStates.has(name);
      row.children[1].textContent = image().outcomes[name] ?? 0;
    });
  },

  cells(record) {
    const found = !this.isTrue(record), truth = found ? record.true_class : record.class;
    const mark = make("span", {class: "swatch"});
    mark.style.background = this.color(record);
    return [record.label.split(" ").at(-1), found ? record.class : "–", record.score == null ? "–" : record.score.toFixed(2),
      truth || "–", record.iou == null ? "–" : record.iou.toFixed(2), make("span", {}, mark, record.outcome)].map((each) => make("td", {}, each));
  },
};
