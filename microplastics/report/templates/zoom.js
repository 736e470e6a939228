"use strict";
// Photographs are enlarged by buttons, and to the particle that a picture of the gallery leads to.
const views = new Map();
for (const view of document.querySelectorAll(".overlay .view")) {
  const svg = view.querySelector("svg");
  const [width, height] = svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
  const set = (zoom, x, y) => {
    // Up to 4 px of the screen for a px of the image.
    const most = Math.max(4, (4 * width) / view.clientWidth);
    state.zoom = Math.min(Math.max(zoom, 1), most);
    svg.style.width = `${100 * state.zoom}%`;
    view.scrollLeft = (x / width) * svg.clientWidth - view.clientWidth / 2;
    view.scrollTop = (y / height) * svg.clientHeight - view.clientHeight / 2;
  };
  const center = () => [
    ((view.scrollLeft + view.clientWidth / 2) / svg.clientWidth) * width,
    ((view.scrollTop + view.clientHeight / 2) / svg.clientHeight) * height,
  ];
  const state = { zoom: 1, set, width };
  views.set(view, state);
  const buttons = document.createElement("p");
  buttons.className = "zoom";
  for (const [text, label, zoom] of [["+", "Enlarge", () => state.zoom * 1.6], ["\u2212", "Make smaller", () => state.zoom / 1.6], ["1", "Whole picture", () => 1]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", `${label}: ${view.getAttribute("aria-label")}`);
    button.title = label;
    button.addEventListener("click", () => set(zoom(), ...center()));
    buttons.append(button);
  }
  view.before(buttons);
}
const show = () => {
  const found = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const view = found && found.closest(".view");
  if (!view) return;
  const box = found.getBBox();
  const state = views.get(view);
  state.set(state.width / Math.max(8 * Math.max(box.width, box.height), 1), box.x + box.width / 2, box.y + box.height / 2);
  view.scrollIntoView({ block: "center" });
};
addEventListener("hashchange", show);
show();
