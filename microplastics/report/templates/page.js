"use strict";
// Tables: a click on a column sorts by it, words above a long one leave the rows that have them all.
for (const box of document.querySelectorAll(".table")) {
  const body = box.querySelector("tbody");
  const rows = [...body.rows];
  const key = (row, column) => JSON.parse(row.cells[column].dataset.key);
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const heads = [...box.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    if (rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map((row) => [key(row, column), row]);
      // What is not known stays at the end.
      keyed.sort(([a], [b]) => (down && a !== null && b !== null ? compare(b, a) : compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
  if (rows.length > 5) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("output");
    input.type = "search";
    label.append("Show rows with", input, " ", count);
    box.prepend(label);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += !row.hidden;
      });
      count.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  }
}
