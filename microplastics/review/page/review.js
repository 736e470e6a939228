// The page of a review: state from the server, keys, the picture (Leaflet), filters, histogram, table.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = ["unseen", "accepted", "rejected"];
const MODES = {draw: "drawing", cut: "drawing"};
const ROW = 26, HANDLES = 60, GRAB = 8; // px; points of an outline; px of the screen

const state = {
  version: 0, images: [], classes: [], index: -1, particles: new Map(), known: new Map(),
  selected: null, marked: new Set(), mode: "look", canUndo: false, canRedo: false,
  hiddenClasses: new Set(), hiddenStates: new Set(), order: "doubt", turned: false,
  drawClass: "", shown: [], outlines: true, kinds: [],
};
let queue = Promise.resolve();

// ---- small helpers

function make(tag, attributes = {}, ...children) {
  const svg = ["rect", "text", "line", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const key = (name) => make("kbd", {}, name);
const color = (name) => state.classes.find((each) => each.name === name)?.color ?? "#888888";
function swatch(name) {
  const node = make("span", {class: "swatch"});
  node.style.background = color(name);
  return node;
}
const short = (value) => (value == null ? "" : Number(value.toPrecision(3)).toLocaleString("en", {maximumSignificantDigits: 3, useGrouping: false}));
const image = () => state.images[state.index];
const unit = () => (image().scale ? "µm" : "px");
const selected = () => state.particles.get(state.selected);
const hint = (text) => { $("hint").textContent = text; };
function complain(text) {
  $("problem").textContent = text;
  $("alert").hidden = !text;
}

// ---- server

async function ask(path, order) {
  let answer;
  try {
    answer = await fetch(path, order && {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(order)});
  } catch {
    throw new Error("The server does not answer. What was decided is kept: start microplastics review again and open the address that it prints.");
  }
  const data = await answer.json().catch(() => ({error: `The server cannot answer (${answer.status}); its terminal says why.`}));
  if (!answer.ok) throw Object.assign(new Error(data.error), {code: data.code});
  return data;
}

// Orders go one after another, so that each names the version that the one before led to.
function act(op, fields = {}) {
  if (state.readOnly) return hint("This page is only to look at.");
  const index = state.index;
  queue = queue.then(async () => {
    try {
      const found = await ask("api/do", {op, image: index, reviewer: $("reviewer").value.trim(), version: state.version, ...fields});
      complain("");
      learn(found);
      if (op === "undo" || op === "redo") await showAgain(op, found);
      else if (["draw", "merge", "cut", "split"].includes(op)) show(found.changed.filter((id) => state.particles.has(id)).slice(-1)[0]);
    } catch (error) {
      complain(error.message);
      if (fields.ids?.length && state.index === index) select(fields.ids[0]);
      if (error.code) await follow(); // somebody was faster: show what it is now
    }
  });
  return queue;
}

function show(id) {
  if (id != null && state.particles.has(id)) select(id);
}

// What was taken back may be on another image.
async function showAgain(op, {on, changed}) {
  if (on != null && on !== state.index) await open(on);
  show(changed.find((id) => state.particles.has(id)));
  hint(op === "undo" ? "Taken back. Y does it again." : "Done again.");
}

function learn(found) {
  if (found.version < state.version) return;
  state.version = found.version;
  state.classes = found.classes;
  Object.assign(state, {canUndo: found.canUndo, canRedo: found.canRedo});
  for (const [index, about] of Object.entries(found.images)) state.images[index] = about;
  for (const [index, records] of Object.entries(found.particles)) {
    const map = state.known.get(Number(index));
    if (!map) continue; // loaded when it is looked at
    for (const record of records) {
      if (record.state === "gone") map.delete(record.id); else map.set(record.id, record);
      if (Number(index) === state.index) picture.update(record.id);
    }
  }
  if (state.selected != null && !state.particles.has(state.selected)) state.selected = null;
  for (const id of state.marked) if (!state.particles.has(id)) state.marked.delete(id);
  draw();
}

const follow = () => ask(`api/changes?since=${state.version}&reviewer=${encodeURIComponent($("reviewer").value.trim())}`).then(learn);

async function poll() {
  try {
    await queue;
    await follow();
    if ($("problem").textContent.startsWith("The server")) complain("");
  } catch (error) {
    complain(error.message);
  }
  setTimeout(poll, document.hidden ? 5000 : 1000);
}

// ---- filters and order

const limit = (id) => ($(id).value === "" ? null : Number($(id).value));

function passes(record, but = "") {
  const between = (value, low, high) => (low == null || value >= low) && (high == null || value <= high);
  const classes = [record.class, record.true_class || record.class]; // wrong classes are of both
  return !classes.every((name) => state.hiddenClasses.has(name)) && record.outcome !== ""
    && !state.hiddenStates.has(looking.compares() ? record.outcome : record.state)
    && (record.score == null || between(record.score, limit("score0"), limit("score1")))
    && (but === "size" || between(record.feret_max, limit("size0"), limit("size1")));
}

function compare(one, other) {
  const name = state.order === "run" ? "doubt" : state.order, sign = state.turned ? -1 : 1;
  const [a, b] = [one[name], other[name]];
  if (a == null || b == null) return (a == null) - (b == null) || one.id - other.id;
  return (typeof a === "string" ? a.localeCompare(b) : a - b) * sign || one.id - other.id;
}

// ---- choosing a particle or image

function select(id, look = true) {
  state.selected = id;
  if (id != null && look) picture.lookAt(state.particles.get(id));
  draw();
}

function step(direction) {
  const ids = state.shown.map((each) => each.id), at = ids.indexOf(state.selected);
  if (ids.length) select(ids[at < 0 ? 0 : (at + direction + ids.length) % ids.length]);
}

// The next particle that nobody has decided on: of the whole run, or in the order of the table.
const next = (without) => (state.order === "run" ? run.next(without) : nextHere(without));

function nextHere(without = []) {
  const at = state.shown.findIndex((each) => each.id === state.selected);
  const ring = [...state.shown.slice(at + 1), ...state.shown.slice(0, at + 1)];
  if (looking.only()) return looking.first();
  const found = ring.find((each) => each.state === "unseen" && !without.includes(each.id));
  if (found) {
    hint("");
    return select(found.id);
  }
  select(null);
  const hidden = [...state.particles.values()].some((each) => each.state === "unseen" && !passes(each));
  hint(hidden ? "All that is shown is checked; others are hidden by the filter."
    : image().finished ? "This image is finished. Page Down shows the next one."
      : `${state.particles.size ? "All particles here are checked" : "Nothing was found here"}. Was one missed? D draws it. F finishes the image and goes on.`);
}

// The particles of an image by number, asked for once.
async function load(index) {
  if (!state.known.has(index)) {
    const found = await ask(`api/images/${index}`);
    if (!state.known.has(index)) state.known.set(index, new Map(found.particles.map((each) => [each.id, each])));
    // What changed between the two is asked for once more.
    state.version = Math.min(state.version, found.version);
  }
  return state.known.get(index);
}

async function open(index, choose = nextHere) {
  if (index < 0 || index >= state.images.length) return hint(index < 0 ? "This is the first image." : "This is the last image.");
  leave();
  Object.assign(state, {index, particles: new Map(), selected: null, marked: new Set()});
  $("image").value = String(index);
  picture.open();
  hint("Loading …");
  const particles = await load(index);
  if (state.index !== index) return; // another one was chosen meanwhile
  state.particles = particles;
  for (const id of state.particles.keys()) picture.update(id);
  hint("");
  draw();
  choose();
}

async function openNext() {
  const after = [...state.images.keys()].map((number) => (state.index + 1 + number) % state.images.length);
  const index = after.find((number) => !state.images[number].finished);
  if (index == null) hint("All images are finished. Download the table, or close this page: all is written.");
  else await open(index);
}

// ---- the whole run, the most uncertain particle first

const run = {
  at: [0, 0], key: "", page: null, turn: 0,

  // What comes after a particle, as the server knows it; asked for ahead, and again when something changes.
  ahead([image, id]) {
    const query = new URLSearchParams({image, id, low: $("score0").value, high: $("score1").value});
    for (const name of state.hiddenClasses) query.append("hide", name);
    const key = `${state.version} ${query}`;
    if (key !== this.key) {
      this.key = key;
      this.page = ask(`api/uncertain?${query}`);
    }
    return this.page;
  },
  tell({left, images}) {
    const most = limit("size0") == null && limit("size1") == null ? "" : "at most ";
    $("left").textContent = state.hiddenStates.has("unseen") ? "Unseen particles are hidden by the filter."
      : left ? `${most}${left} left on ${images} of ${state.images.length} images` : "None is left on any image.";
  },
  draw() {
    const all = state.order === "run";
    $("left").hidden = !all;
    $("turn").disabled = all;
    if (!all) return;
    const page = this.ahead(this.here());
    page.then((found) => page === this.page && this.tell(found), (error) => complain(error.message));
  },
  here() { return state.selected == null ? this.at : [state.index, state.selected]; },

  begin() {
    Object.assign(state, {selected: null, turned: false});
    this.at = [0, 0];
    return this.next();
  },
  // Whether there is one.
  async next(without = []) {
    const turn = ++this.turn, begun = state.index, goes = () => turn === this.turn && state.order === "run";
    let at = this.here(), tried = 0, found;
    if (without.length) state.selected = null; // a key pressed meanwhile is not for this one
    this.at = at;
    do {
      found = await this.ahead(at);
      for (const [index, id] of found.next) {
        const record = (await load(index)).get(id);
        if (!goes()) return false;
        if (record?.state !== "unseen" || !passes(record) || (index === begun && without.includes(id))) continue;
        this.at = [index, id];
        hint("");
        if (index === state.index) select(id); else await open(index, () => select(id));
        return true;
      }
      tried += found.next.length;
      at = found.next.at(-1);
    } while (at && tried < found.left && goes());
    select(null);
    hint(found.left > without.length ? "All particles of the run that the filter shows are checked." : "All particles of the run are checked. Look at each whole image for missed ones; F finishes it and goes on.");
    return false;
  },
};

const targets = () => [...new Set([...state.marked, ...(state.selected == null ? [] : [state.selected])])];

function decide(op, fields = {}) {
  const ids = targets();
  if (!ids.length) return hint(state.particles.size ? "Select a particle: N, J, K, or a click." : "Nothing was found here. D draws a particle, F finishes the image.");
  state.marked.clear();
  act(op, {ids, ...fields});
  if (op !== "reset") next(ids);
}

function chooseClass(number) {
  const chosen = state.classes[number];
  if (!chosen) return;
  state.drawClass = chosen.name;
  if (state.mode === "draw") return tellDrawing();
  decide("class", {class: chosen.name});
}

// ---- the picture

const picture = {
  map: null, tiles: null, layers: new Map(), halo: null, extra: null,

  start() {
    const map = this.map = L.map("picture", {
      crs: L.CRS.Simple, preferCanvas: true, zoomSnap: 0.1, zoomDelta: 1, wheelPxPerZoomLevel: 90,
      attributionControl: false, doubleClickZoom: false, boxZoom: false, keyboard: false, zoomControl: false,
    });
    this.group = L.layerGroup().addTo(map);
    this.extra = L.layerGroup().addTo(map);
    map.on("zoomend moveend", () => this.scale());
    map.on("zoomend", () => {
      $("picture").classList.toggle("near", map.getZoom() > 1.5);
      if (state.mode === "edit") editing.handles();
    });
    map.on("click", (event) => this.click(event));
    for (const type of ["mousedown", "mousemove", "dblclick"]) map.on(type, (event) => drawing[type](event));
    document.addEventListener("mouseup", (event) => drawing.mouseup(event));
  },

  open() {
    const {width, height, photograph} = image(), side = Math.max(width, height), map = this.map;
    const bounds = [[-height, 0], [0, width]];
    this.tiles?.remove();
    this.layers.clear();
    this.group.clearLayers();
    this.extra.clearLayers();
    map.setMinZoom(Math.min(0, -Math.ceil(Math.log2(side / 256)))).setMaxZoom(5);
    map.setMaxBounds(L.latLngBounds(bounds).pad(0.05));
    map.invalidateSize({animate: false});
    map.fitBounds(bounds, {animate: false});
    if (photograph) {
      const index = state.index, coarsest = Math.max(0, Math.ceil(Math.log2(side / state.side)));
      this.tiles = L.tileLayer("", {
        tileSize: state.side, bounds, minZoom: -20, maxZoom: 5, minNativeZoom: -coarsest, maxNativeZoom: 0, keepBuffer: 3,
      });
      // Those at the right and lower border are smaller, and not to be stretched; half a px more hides the seams.
      this.tiles.on("tileloadstart", ({tile, coords: {x, y, z}}) => {
        const scale = this.tiles.getTileSize().x / state.side, left = (length, at) => Math.min(state.side, Math.ceil(length * 2 ** z) - at * state.side);
        tile.style.width = `${left(width, x) * scale + 0.5}px`;
        tile.style.height = `${left(height, y) * scale + 0.5}px`;
      });
      this.tiles.getTileUrl = ({x, y, z}) => `api/images/${index}/${-z}/${x}/${y}`;
      this.tiles.on("tileerror", ({tile}) => ask(tile.src).catch((error) => complain(error.message))); // says why
      this.tiles.addTo(map);
    }
  },

  update(id) {
    this.layers.get(id)?.remove();
    this.layers.delete(id);
    const record = state.particles.get(id);
    if (!record) return;
    this.layers.set(id, looking.compares() ? looking.layer(record) : L.polygon(points(record.outline), {interactive: false, smoothFactor: 0.7, ...style(record)}));
  },

  // Outlines of what passes the filter, and the selected one on top of them.
  draw() {
    const shown = new Set(state.outlines ? looking.drawn() : []);
    for (const [id, layer] of this.layers) {
      if (shown.has(id)) this.group.addLayer(layer); else this.group.removeLayer(layer);
    }
    if (state.mode !== "look") return;
    this.extra.clearLayers();
    for (const id of targets()) {
      const record = state.particles.get(id), rings = points(record.outline), main = id === state.selected;
      L.polygon(rings, {interactive: false, fill: false, color: main ? "#ffffff" : "#ffe14d", weight: 6, opacity: 0.95}).addTo(this.extra);
      if (!looking.compares()) L.polygon(rings, {interactive: false, fill: false, color: color(record.class), weight: 3}).addTo(this.extra);
      else for (const each of [looking.partner(record), record]) if (each) looking.layer(each).addTo(this.extra);
    }
  },

  lookAt(record) {
    const [x, y, width, height] = record.box, map = this.map;
    const bounds = L.latLngBounds([-y - height, x], [-y, x + width]);
    const size = Math.max(width, height) * 2 ** map.getZoom();
    const view = Math.min(map.getSize().x, map.getSize().y);
    if (size < 40 || size > view) {
      const whole = map.getBoundsZoom([[-image().height, 0], [0, image().width]]);
      const zoom = Math.min(Math.log2(view / (6 * Math.max(width, height))), Math.max(2, whole));
      map.setView(bounds.getCenter(), Math.max(zoom, map.getMinZoom()), {animate: false});
    } else if (!map.getBounds().pad(-0.08).contains(bounds)) map.setView(bounds.getCenter(), map.getZoom(), {animate: false});
  },

  whole() { this.map.fitBounds([[-image().height, 0], [0, image().width]]); },

  click(event) {
    if (state.mode !== "look") return;
    const found = hit(event.latlng.lng, -event.latlng.lat, GRAB / 2 ** this.map.getZoom());
    if (!event.originalEvent.shiftKey) select(found, false);
    else if (found != null) mark(found);
  },

  scale() {
    const about = image();
    if (!about) return;
    const perPx = (about.scale ?? 1) / 2 ** this.map.getZoom(), most = 160 * perPx;
    const power = 10 ** Math.floor(Math.log10(most)), length = [5, 2, 1].find((each) => each * power <= most) * power;
    const [text, bar] = $("scale").children;
    text.textContent = unit() === "µm" && length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} ${unit()}`;
    bar.style.width = `${length / perPx}px`;
  },
};

const points = (polygons) => polygons.map((rings) => rings.map((flat) => {
  const found = [];
  for (let i = 0; i < flat.length; i += 2) found.push([-flat[i + 1], flat[i]]);
  return found;
}));

function style(record) {
  const gone = record.state === "rejected" || !record.inside;
  return {
    color: color(record.class), weight: 2, opacity: gone ? 0.8 : 1, dashArray: gone ? "3 5" : null,
    fill: record.state === "accepted", fillOpacity: 0.22,
  };
}

// The smallest particle at a point of the image, or the nearest within reach.
function hit(x, y, reach) {
  let best = null, least = Infinity;
  for (const {id, box, outline} of state.shown) {
    if (x < box[0] - reach || y < box[1] - reach || x > box[0] + box[2] + reach || y > box[1] + box[3] + reach) continue;
    let inside = false, near = Infinity;
    for (const rings of outline) for (const flat of rings) {
      for (let i = 0, j = flat.length - 2; i < flat.length; j = i, i += 2) {
        const [x0, y0, x1, y1] = [flat[j], flat[j + 1], flat[i], flat[i + 1]];
        if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) inside = !inside;
        const t = Math.max(0, Math.min(1, ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2 || 1)));
        near = Math.min(near, Math.hypot(x0 + t * (x1 - x0) - x, y0 + t * (y1 - y0) - y));
      }
    }
    const rank = inside ? box[2] * box[3] : near <= reach ? 1e12 + near : Infinity;
    if (rank < least) [best, least] = [id, rank];
  }
  return best;
}

// ---- drawing an outline or a cut

const drawing = {
  line: [], layer: null, down: false, dragged: false,

  begin(mode) {
    leave();
    state.mode = mode;
    this.line = [];
    picture.map.dragging.disable();
    $("picture").classList.add("drawing");
    draw();
  },
  mousedown(event) {
    if (!MODES[state.mode] || event.originalEvent.button) return;
    if (state.mode === "cut") this.line = [];
    this.down = true;
    this.dragged = false;
    this.add(event.latlng);
  },
  mousemove(event) {
    if (!this.down) return;
    const last = picture.map.latLngToContainerPoint(this.line.at(-1));
    if (last.distanceTo(event.containerPoint) < 4) return;
    this.dragged = true;
    this.add(event.latlng);
  },
  // Also outside of the picture.
  mouseup(event) {
    if (!this.down) return;
    this.down = false;
    if (this.dragged) this.add(picture.map.mouseEventToLatLng(event));
    if (this.dragged && (state.mode === "cut" || this.line.length > 7)) this.end();
  },
  dblclick() { if (MODES[state.mode]) this.end(); },
  add(place) {
    this.line.push(place);
    this.layer?.remove();
    this.layer = L.polyline(this.line, {interactive: false, color: "#ffe14d", weight: 3}).addTo(picture.extra);
  },
  back() {
    this.line.pop();
    const last = this.line.pop();
    if (last) this.add(last); else this.layer?.remove();
  },
  end() {
    const line = this.line.map((place) => [place.lng, -place.lat]), {mode} = state, id = state.selected;
    if (mode === "cut" && line.length < 2 && splitting.pieces?.length > 1) {
      leave();
      return act("split", {ids: [id], pieces: splitting.pieces});
    }
    if (line.length < (mode === "cut" ? 2 : 3)) return hint(mode === "cut" ? "Draw a line right across the particle; Escape stops." : "An outline has at least three points; Escape stops.");
    leave();
    if (mode === "cut") act("cut", {ids: [id], line});
    else act("draw", {polygons: [[line]], class: state.drawClass});
  },
};

function tellDrawing() {
  const keys = state.classes.slice(0, 9).map((each, number) => `${number + 1} ${each.name}`).join(", ");
  hint(`Draw a ${state.drawClass}: hold the mouse button and go round it, or click its corners, then Enter. Another class: ${keys}. Escape stops.`);
}

function startDrawing() {
  if (state.readOnly) return hint("This page is only to look at.");
  drawing.begin("draw");
  state.drawClass ||= selected()?.class ?? state.classes[0]?.name ?? "";
  tellDrawing();
}

const splitting = {
  pieces: null,

  async start() {
    const record = selected();
    if (!record || state.readOnly) return hint(state.readOnly ? "This page is only to look at." : "Select the particle to split.");
    picture.lookAt(record);
    drawing.begin("cut");
    this.pieces = null;
    hint("Draw a line right across it. Escape stops.");
    const {pieces} = await ask(`api/images/${state.index}/particles/${record.id}?split=1`);
    if (state.mode !== "cut" || state.selected !== record.id || pieces.length < 2) return;
    this.pieces = pieces;
    pieces.forEach((piece, number) => L.polygon(points(piece.map((rings) => rings.map((ring) => ring.flat()))), {
      interactive: false, color: number % 2 ? "#ffe14d" : "#ffffff", weight: 3, fillOpacity: 0.15,
    }).addTo(picture.extra));
    hint(`Enter splits it into these ${pieces.length}; or draw a line right across it. Escape stops.`);
  },
};

// ---- editing an outline: a handle moved replaces the outline between its neighbours

const editing = {
  polygons: [], layer: null, changed: false,

  async start() {
    const record = selected();
    if (!record || state.readOnly) return hint(state.readOnly ? "This page is only to look at." : "Select the particle to edit.");
    leave();
    const {polygons} = await ask(`api/images/${state.index}/particles/${record.id}`);
    if (state.selected !== record.id) return;
    picture.lookAt(record);
    state.mode = "edit";
    this.changed = false;
    this.polygons = polygons.map((rings) => rings.map((ring) => ring.map(([x, y]) => ({x, y}))));
    hint("Move the points; zoom in for more of them. Enter keeps the new outline, Escape the old one.");
    this.handles();
  },
  handles() {
    const zoom = 2 ** picture.map.getZoom();
    picture.extra.clearLayers();
    this.layer = L.polygon(this.shape(), {interactive: false, color: "#ffe14d", weight: 3, fillOpacity: 0.1}).addTo(picture.extra);
    for (const rings of this.polygons) for (const ring of rings) {
      let tolerance = Math.max(0.6, 4 / zoom), chosen;
      do {
        chosen = L.LineUtil.simplify([...ring, ring[0]].map((point, i) => Object.assign(L.point(point.x, point.y), {i: i % ring.length})), tolerance).slice(0, -1);
        tolerance *= 1.5;
      } while (chosen.length > HANDLES);
      const objects = chosen.map(({i}) => ring[i]);
      objects.forEach((point, number) => this.handle(ring, objects, point, number));
    }
  },
  handle(ring, chosen, point, number) {
    const marker = L.marker([-point.y, point.x], {draggable: true, keyboard: false, icon: L.divIcon({className: "handle", iconSize: [12, 12]})});
    marker.on("dragstart", () => {
      // What lies between this point and its two neighbours becomes straight.
      const before = chosen.at(number - 1), after = chosen[(number + 1) % chosen.length];
      if (chosen.length < 3) return;
      const start = ring.indexOf(before), turned = [...ring.slice(start), ...ring.slice(0, start)];
      ring.splice(0, ring.length, before, point, ...turned.slice(turned.indexOf(after)).filter((each) => each !== before));
    });
    marker.on("drag", () => {
      const {lat, lng} = marker.getLatLng();
      Object.assign(point, {x: lng, y: -lat});
      this.changed = true;
      this.layer.setLatLngs(this.shape());
    });
    marker.addTo(picture.extra);
  },
  shape() { return this.polygons.map((rings) => rings.map((ring) => ring.map(({x, y}) => [-y, x]))); },
  end() {
    const polygons = this.polygons.map((rings) => rings.map((ring) => ring.map(({x, y}) => [x, y])));
    const {changed} = this, id = state.selected;
    leave();
    if (changed) act("outline", {ids: [id], polygons});
  },
};

function leave() {
  if (state.mode === "look") return;
  state.mode = "look";
  drawing.down = false;
  picture.map.dragging.enable();
  $("picture").classList.remove("drawing");
  picture.extra.clearLayers();
  hint("");
  draw();
}

function mark(id) {
  if (state.marked.has(id)) state.marked.delete(id); else state.marked.add(id);
  hint(state.marked.size ? `${state.marked.size} marked. M merges them with the selected one; Escape forgets the marks.` : "");
  draw();
}

async function merge() {
  const ids = targets();
  if (ids.length < 2) return hint("Mark the pieces first: V on each, or Shift and click; then M.");
  const area = ids.reduce((sum, id) => sum + state.particles.get(id).area, 0);
  state.marked.clear();
  await act("merge", {ids});
  const record = selected();
  if (record?.origin !== "merged") return;
  if (record.area > area) hint("Merged, and the gaps filled as thick as the fibre. Z takes it back.");
  else if (record.pieces > 1) hint("Merged. It lies in pieces: sizes span the gaps, the area does not.");
}

async function finish() {
  const unseen = image().counts.unseen ?? 0, index = state.index;
  if (image().finished) {
    await act("reopen");
    return hint("The image is open again.");
  }
  await act("finish");
  if (state.index !== index || !image().finished) return;
  if (state.order !== "run" || !await run.next()) await openNext();
  if (unseen) hint(`${unseen === 1 ? "1 particle that nobody had looked at was" : `${unseen} particles that nobody had looked at were`} accepted with the image. Z takes it back. ${$("hint").textContent}`);
}

async function write() {
  if (state.readOnly) return hint("This page is only to look at.");
  await queue;
  await writing.watch(ask("api/export", {}));
}

// How far the results are written, whichever tab has begun it.
const writing = {
  watched: false,

  async watch(answer) {
    try {
      let found = await answer;
      if (this.watched) return;
      this.watched = true;
      while (found.running) {
        this.show(`Writing: ${found.what}. You may go on.`, found);
        await new Promise((resolve) => setTimeout(resolve, 300));
        found = await ask("api/export");
      }
      this.show(found.folder && `The corrected tables and annotations are in ${found.folder}.${found.unfinished ? ` Particles of unfinished images (${found.unfinished}) count; annotations.json leaves these images out.` : ""}`);
      if (found.error || found.problem) complain(found.error ?? found.problem);
    } catch (error) {
      this.show("");
      complain(error.message);
    }
    this.watched = false;
  },
  show(text, {done, of} = {}) {
    const [bar, words, close] = $("writing").children;
    $("writing").hidden = !text;
    bar.hidden = of == null;
    close.hidden = of != null;
    if (of != null) Object.assign(bar, {max: of, value: done});
    words.textContent = text ?? "";
    if (text && of == null) hint(""); // read out when it has ended
  },
};

// The table of what is decided until now; measuring it may take a while.
async function download(event) {
  event.preventDefault();
  hint("The table is being made …");
  try {
    await queue;
    const answer = await fetch($("download").href);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const address = URL.createObjectURL(await answer.blob());
    make("a", {href: address, download: "particles.csv"}).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000); // some browsers read it later
    hint("");
  } catch (error) {
    hint("");
    complain(`The table cannot be made: ${error.message}`);
  }
}

// ---- keys and buttons: [key, words, what it does, further keys, group in the help]

const ACTIONS = [
  ["A", "Accept", () => decide("accept"), [], "Decide"],
  ["R", "Reject", () => decide("reject"), ["x", "delete"], "Decide"],
  ["classes"],
  ["gap"],
  ["E", "Edit", () => editing.start(), [], "Correct"],
  ["D", "Draw", startDrawing, [], "Correct"],
  ["M", "Merge", merge, [], "Correct"],
  ["S", "Split", () => splitting.start(), [], "Correct"],
  ["gap"],
  ["Z", "Undo", () => act("undo"), [], "Decide"],
  ["Y", "Redo", () => act("redo"), [], "Decide"],
  ["gap"],
  ["N", "Next", () => next(), [" "], "Go"],
  ["F", "Finish image", finish, [], "Go"],
  ["W", "Write results", write, [], "Go"],
];
const MORE = [
  ["U", "Unseen again", () => decide("reset"), [], "Decide"],
  ["V", "Mark, to decide on or merge several", () => state.selected != null && mark(state.selected), [], "Correct"],
  ["C", "Comment", () => $("comment").focus(), [], "Decide"],
  ["G", "All images, uncertain first, or this one again", () => order(state.order === "run" ? "doubt" : "run"), [], "Go"],
  ["J", "Next in the table", () => step(1), [], "Go"],
  ["K", "Previous in the table", () => step(-1), [], "Go"],
  ["Page Down", "Next image", () => open(state.index + 1), ["pagedown"], "Go"],
  ["Page Up", "Previous image", () => open(state.index - 1), ["pageup"], "Go"],
  ["+", "Nearer", () => picture.map.zoomIn(), ["="], "Look"],
  ["−", "Farther", () => picture.map.zoomOut(), ["-"], "Look"],
  ["0", "Whole image", () => picture.whole(), [], "Look"],
  ["← → ↑ ↓", "Move the picture", null, [], "Look"],
  ["H", "Hide or show outlines", () => { state.outlines = !state.outlines; draw(); }, [], "Look"],
  ["Enter", "End drawing, editing or splitting", () => (state.mode === "edit" ? editing.end() : MODES[state.mode] && drawing.end()), ["enter"], "Correct"],
  ["Backspace", "Take the last point back", () => MODES[state.mode] && drawing.back(), ["backspace"], "Correct"],
  ["Escape", "Stop", () => { leave(); state.marked.clear(); hint(""); complain(""); draw(); }, ["escape"], "Correct"],
  ["?", "These keys", () => help(), [], "Look"],
];
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const KEYS = new Map();
for (const [name, , run, others] of [...ACTIONS, ...MORE]) {
  if (run) for (const each of [name.toLowerCase(), ...others]) KEYS.set(each, run);
}

function press(event) {
  const typing = event.target.closest("input:not([type=checkbox]), select, dialog");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.altKey) return;
  const command = event.ctrlKey || event.metaKey, name = event.key.toLowerCase();
  if (command && !["z", "y"].includes(name)) return;
  if (["Enter", " "].includes(event.key) && event.target.closest("button, a, input")) return;
  if (looking.only() && !event.key.startsWith("Arrow") && looking.press(name)) return event.preventDefault();
  if (event.key.startsWith("Arrow") && !event.target.closest("#scroll")) picture.map.panBy(ARROWS[event.key].map((each) => each * 120), {duration: 0.15});
  else if (command && name === "z" && event.shiftKey) act("redo");
  else if (/^[1-9]$/.test(event.key)) chooseClass(Number(event.key) - 1);
  else if (KEYS.has(name)) KEYS.get(name)();
  else return;
  event.preventDefault();
}

function order(name) {
  $("order").value = state.order = name;
  if (name === "run") run.begin(); else draw();
}

function help() {
  const used = looking.only() ? [...looking.actions(), ...MORE.filter((each) => looking.keeps(each))] : [...ACTIONS, ...MORE];
  const groups = Map.groupBy(used.filter((each) => each[4]), (each) => each[4]);
  const classes = state.classes.slice(0, 9).map((each, number) => [String(number + 1), each.name]);
  $("keys-list").replaceChildren(...[...groups].map(([title, found]) => make("table", {}, make("caption", {}, make("b", {}, title)),
    make("tbody", {}, ...[...found, ...(title === "Decide" ? classes : [])].map(([name, words]) => make("tr", {}, make("td", {}, key(name)), make("td", {}, words)))))));
  $("keys").showModal();
}

// ---- what is shown beside the picture

function draw() {
  if (state.index < 0) return;
  state.shown = [...state.particles.values()].filter((each) => passes(each)).sort(compare);
  picture.draw();
  drawHead();
  drawParticle();
  drawChecks();
  drawHistogram();
  drawRows(true);
  run.draw();
}

function drawHead() {
  const total = {};
  for (const {counts} of state.images) for (const name of STATES) total[name] = (total[name] ?? 0) + (counts[name] ?? 0);
  const all = total.unseen + total.accepted + total.rejected, finished = state.images.filter((each) => each.finished).length;
  $("progress").max = Math.max(1, all);
  $("progress").value = all - total.unseen;
  $("checked").textContent = `${all - total.unseen} of ${all} checked, ${finished} of ${state.images.length} images finished`;
  if (looking.only()) $("checked").textContent = looking.summary();
  state.images.forEach((each, index) => {
    const text = `${each.finished ? "✓ " : ""}${index + 1}. ${each.name} (${looking.only() ? looking.says(each) : `${each.counts.unseen ?? 0} unseen`})`;
    const option = $("image").options[index];
    if (option.textContent !== text) option.textContent = text;
  });
  drawActions();
}

function drawActions() {
  const actions = looking.only() ? looking.actions() : ACTIONS;
  const classes = state.classes.slice(0, 9).map((each, number) => [String(number + 1), each.name, () => chooseClass(number), [], "class"]);
  const wanted = JSON.stringify([actions, classes].map((each) => each.map((action) => action[1])));
  if ($("actions").dataset.wanted !== wanted) {
    $("actions").dataset.wanted = wanted;
    $("actions").replaceChildren(...actions.flatMap((each) => (each[0] === "classes" ? classes : [each])).map(([name, words, run, , group]) => (name === "gap"
      ? make("span", {class: "gap"})
      : make("button", {type: "button", "data-key": name, onclick: run}, key(name), " ", ...(group === "class" ? [swatch(words)] : []), words))));
  }
  const busy = {E: state.mode === "edit", D: state.mode === "draw", S: state.mode === "cut"};
  for (const button of looking.only() ? [] : $("actions").querySelectorAll("button")) {
    const name = button.dataset.key;
    const lacks = ["A", "R", "E", "S"].includes(name) || (/\d/.test(name) && state.mode !== "draw") ? state.selected == null : name === "M" ? targets().length < 2
      : name === "Z" ? !state.canUndo : name === "Y" ? !state.canRedo : false;
    button.disabled = lacks || (state.readOnly && name !== "N");
    if (name in busy) button.setAttribute("aria-pressed", String(busy[name]));
    if (name === "F") button.lastChild.textContent = image()?.finished ? "Open image again" : "Finish image";
  }
}

function drawParticle() {
  const record = selected();
  $("name").textContent = record ? record.label ?? `Particle ${record.id}` : "No particle selected";
  const facts = [];
  const add = (name, value, wide) => value && facts.push(make("dt", {}, name), make("dd", wide ? {class: "wide"} : {}, value));
  if (record && looking.compares()) looking.facts(record, add, (each, name) => `${short(each[name])} ${unit()}`);
  else if (record) {
    const size = (name) => `${short(record[name])} ${unit()}`;
    add("Class", record.class);
    if (!looking.only()) add("State", make("span", {class: record.state}, record.state));
    add("Score", record.score == null ? "none" : short(record.score));
    add("Size", size("feret_max"));
    add("Length", size("length"));
    add("Width", size("width"));
    add("Area", `${short(record.area)} ${unit()}²`);
    add("Circle of its area", size("equivalent_diameter"));
    if (!record.inside) add("Note", "outside of the region: not counted", true);
    else if (record.edge) add("Note", "cut off by the border of the image", true);
    else if (record.pieces > 1) add("Note", `in ${record.pieces} pieces: sizes span the gaps, the area does not`, true);
    const how = record.origin !== "model" ? `, ${record.origin}` : record.changed ? ", changed" : "";
    if (record.reviewer) add("Decided", `${record.reviewer}, ${new Date(record.time).toLocaleString()}${how}`, true);
  }
  $("facts").replaceChildren(...facts);
  $("comment").disabled = !record || state.readOnly;
  if (document.activeElement !== $("comment")) $("comment").value = record?.comment ?? "";
}

function drawChecks() {
  const counted = (name) => {
    const found = new Map();
    for (const each of state.particles.values()) found.set(each[name], (found.get(each[name]) ?? 0) + 1);
    return found;
  };
  const row = (place, names, hidden, count, sign) => {
    const wanted = JSON.stringify(names);
    if (place.dataset.wanted !== wanted) {
      place.dataset.wanted = wanted;
      place.replaceChildren(...names.map((name) => make("label", {}, make("input", {type: "checkbox", onchange: (event) => {
        if (event.target.checked) hidden.delete(name); else hidden.add(name);
        draw();
      }}), sign ? swatch(name) : " ", name, " ", make("span"))));
    }
    names.forEach((name, number) => {
      const label = place.children[number];
      label.firstChild.checked = !hidden.has(name);
      label.lastChild.textContent = `(${count.get(name) ?? 0})`;
    });
  };
  row($("classes"), state.classes.map((each) => each.name), state.hiddenClasses, counted("class"), true);
  row($("states"), STATES, state.hiddenStates, counted("state"), false);
  looking.counts();
  for (const node of document.querySelectorAll(".unit")) node.textContent = unit();
}

const histogram = {bins: 24, left: 6, right: 354, low: 0, step: 1, from: null};

function drawHistogram() {
  const all = [...state.particles.values()].filter((each) => each.feret_max > 0), svg = $("histogram");
  const {bins, left, right} = histogram, wide = (right - left) / bins;
  if (!all.length) return svg.replaceChildren(make("text", {x: left, y: 40}, "No particles on this image"));
  const sizes = all.map((each) => Math.log10(each.feret_max));
  histogram.low = Math.min(...sizes) - 0.001;
  histogram.step = Math.max(0.01, (Math.max(...sizes) + 0.001 - histogram.low) / bins);
  const bin = (record) => Math.min(bins - 1, Math.floor((Math.log10(record.feret_max) - histogram.low) / histogram.step));
  const names = state.classes.map((each) => each.name), heights = Array.from({length: bins}, () => names.map(() => 0));
  for (const each of all) if (passes(each, "size")) heights[bin(each)][names.indexOf(each.class)]++;
  const most = Math.max(1, ...heights.map((each) => each.reduce((a, b) => a + b, 0))), parts = [];
  heights.forEach((counts, number) => {
    let y = 64;
    counts.forEach((count, which) => {
      const height = (count / most) * 58, at = 10 ** (histogram.low + (number + 0.5) * histogram.step);
      const out = (limit("size0") ?? 0) > at || (limit("size1") ?? Infinity) < at;
      y -= height;
      if (count) parts.push(make("rect", {x: left + number * wide, y, width: wide - 1, height, fill: state.classes[which].color, opacity: out ? 0.25 : 1}));
    });
  });
  const text = (x, anchor, value) => make("text", {x, y: 80, "text-anchor": anchor}, value);
  const at = (fraction) => short(10 ** (histogram.low + fraction * bins * histogram.step));
  parts.push(text(left, "start", `${at(0)} ${unit()}`), text((left + right) / 2, "middle", at(0.5)), text(right, "end", `${at(1)} ${unit()}`));
  const record = selected();
  if (record) parts.push(make("rect", {x: left + bin(record) * wide, y: 65, width: wide - 1, height: 3, fill: "currentColor"}));
  svg.replaceChildren(...parts);
}

function dragHistogram(event) {
  const place = $("histogram").getBoundingClientRect(), {left, right, low, step, bins} = histogram;
  const fraction = (((event.clientX - place.left) / place.width) * 360 - left) / (right - left);
  const size = 10 ** (low + Math.max(0, Math.min(1, fraction)) * bins * step);
  if (event.type === "pointerdown") {
    histogram.from = size;
    $("histogram").setPointerCapture(event.pointerId);
  } else if (event.type === "pointermove" && histogram.from != null) {
    const [low0, high0] = [Math.min(size, histogram.from), Math.max(size, histogram.from)];
    $("size0").value = Number(low0.toPrecision(3));
    $("size1").value = Number(high0.toPrecision(3));
    draw();
  } else if (event.type === "pointerup") {
    if (histogram.from === size) $("size0").value = $("size1").value = "";
    histogram.from = null;
    draw();
  }
}

// Only the rows in view are made.
function drawRows(follow) {
  const box = $("scroll"), rows = state.shown, at = rows.findIndex((each) => each.id === state.selected);
  $("count").textContent = `${rows.length} of ${[...state.particles.values()].filter((each) => each.outcome !== "").length} particles`;
  const room = Math.max(ROW, box.clientHeight - ROW);
  if (follow && at >= 0 && at !== drawRows.at) {
    if (at * ROW < box.scrollTop) box.scrollTop = at * ROW;
    else if ((at + 1) * ROW > box.scrollTop + room) box.scrollTop = (at + 1) * ROW - room;
  }
  drawRows.at = at;
  const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 5), last = Math.min(rows.length, first + Math.ceil(room / ROW) + 12);
  const space = (count) => {
    const cell = make("td", {colspan: 6});
    const row = make("tr", {"aria-hidden": "true"}, cell);
    row.style.height = `${count * ROW}px`;
    return count ? [row] : [];
  };
  $("rows").replaceChildren(...space(first), ...rows.slice(first, last).map((each) => make("tr", {class: each.id === state.selected ? "selected" : "", "data-id": each.id},
    ...(looking.compares() ? looking.cells(each) : [make("td", {}, String(each.id), state.marked.has(each.id) ? " ●" : ""), make("td", {}, swatch(each.class), each.class), make("td", {}, each.score == null ? "–" : each.score.toFixed(2)),
    make("td", {}, short(each.feret_max)), make("td", {}, short(each.width)), make("td", {class: each.state}, each.state)]))), ...space(rows.length - last));
}

// ---- begin

async function begin() {
  const found = await ask("api/state");
  Object.assign(state, found);
  looking.begin();
  document.title = `${looking.only() ? "View" : "Review"} of ${found.title}`;
  $("title").textContent = found.title;
  $("title").title = found.title;
  $("reviewer").value = found.reviewer;
  $("image").replaceChildren(...state.images.map((each, index) => make("option", {value: index})));
  // The bars take their room first: the picture is fitted into what is left.
  drawHead();
  complain(found.messages.join(" "));
  picture.start();
  const first = state.images.findIndex((each) => !each.finished);
  await open(Math.max(0, first));
  poll();
  const written = await ask("api/export");
  if (written.running) writing.watch(written); // another tab has begun it
}

function listen() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    localStorage.setItem("theme", document.documentElement.dataset.theme = dark ? "light" : "dark");
  };
  document.addEventListener("keydown", press);
  $("help").onclick = help;
  $("previous").onclick = () => open(state.index - 1);
  $("following").onclick = () => open(state.index + 1);
  $("image").onchange = (event) => { event.target.blur(); open(Number(event.target.value)); };
  $("dismiss").onclick = () => complain("");
  $("order").onchange = (event) => { event.target.blur(); order(event.target.value); };
  $("download").onclick = download;
  $("writing").lastChild.onclick = () => writing.show("");
  $("turn").onclick = () => { state.turned = !state.turned; draw(); };
  $("all").onclick = () => {
    state.hiddenClasses.clear();
    state.hiddenStates.clear();
    for (const id of ["score0", "score1", "size0", "size1"]) $(id).value = "";
    draw();
  };
  for (const id of ["score0", "score1", "size0", "size1"]) $(id).oninput = draw;
  for (const type of ["pointerdown", "pointermove", "pointerup"]) $("histogram").addEventListener(type, dragHistogram);
  $("comment").onkeydown = (event) => {
    if (event.key !== "Enter" || state.selected == null) return;
    act("comment", {ids: [state.selected], text: event.target.value});
    event.target.blur();
  };
  $("scroll").onscroll = () => drawRows(false);
  $("rows").onclick = (event) => {
    const id = Number(event.target.closest("tr")?.dataset.id);
    if (!id) return;
    if (event.shiftKey) mark(id); else select(id);
  };
  new ResizeObserver(() => {
    picture.map?.invalidateSize();
    drawRows(false);
  }).observe($("picture"));
}

listen();
begin().catch((error) => complain(error.message));
