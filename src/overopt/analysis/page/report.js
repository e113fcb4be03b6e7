// The report's page: sorts and filters its tables, and tells which checkpoint a dot of a figure is.
"use strict";
(() => {
  const collator = new Intl.Collator("en", { sensitivity: "base" });
  const MISSING = "-";
  const ROWS_AT_A_GLANCE = 12;

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // Sorting: a button in each header; missing values stay last either way, equal rows keep their order.

  function sortKey(cell, numeric) {
    const text = cell.dataset.sort ?? cell.textContent.trim();
    if (text === "" || text === MISSING) return null;
    return numeric ? Number(text) : text;
  }

  // Numbers inside a text count as numbers: beta0.02 comes before beta0.1, 70M before 1400M.
  function compareTexts(a, b) {
    const [one, other] = [a, b].map((text) => text.split(/(\d+(?:\.\d+)?)/));
    for (let part = 0; part < Math.min(one.length, other.length); part++) {
      const order = part % 2 ? one[part] - other[part] : collator.compare(one[part], other[part]);
      if (order) return order;
    }
    return one.length - other.length;
  }

  function compareKeys(a, b, sign = 1) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "number" ? (a > b) - (a < b) : compareTexts(a, b));
  }

  function sortBy(table, header) {
    const descending = header.getAttribute("aria-sort") === "ascending";
    const numeric = "numeric" in header.dataset;
    const keyed = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[header.cellIndex], numeric), row]);
    keyed.sort(([a], [b]) => compareKeys(a, b, descending ? -1 : 1));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  }

  function makeSortable(table) {
    for (const header of table.tHead.rows[0].cells) {
      const button = element("button", { type: "button", title: "Sort" }, ...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header));
      header.append(button);
    }
  }

  // Filters: a box for each value of the columns that ask for it; none ticked in a column shows all of it.

  function makeFilterable(table) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length <= ROWS_AT_A_GLANCE) return;
    const wanted = new Map();
    const count = element("output");
    const filters = element("div", { className: "filters" });

    function apply() {
      let shown = 0;
      for (const row of rows) {
        row.hidden = ![...wanted].every(([column, values]) => !values.size || values.has(row.cells[column].textContent));
        shown += !row.hidden;
      }
      count.value = `${shown} of ${rows.length} rows`;
    }

    for (const header of table.tHead.rows[0].cells) {
      if (!("filterable" in header.dataset)) continue;
      const column = header.cellIndex;
      const values = [...new Set(rows.map((row) => row.cells[column].textContent))].sort(compareTexts);
      if (values.length < 2) continue;
      wanted.set(column, new Set());
      const name = header.textContent.trim();
      const boxes = values.map((value) => {
        const box = element("input", { type: "checkbox" });
        box.addEventListener("change", () => {
          wanted.get(column)[box.checked ? "add" : "delete"](value);
          apply();
        });
        return element("label", {}, box, value);
      });
      filters.append(element("fieldset", {}, element("legend", {}, `${name}:`), ...boxes));
    }
    if (!wanted.size) return;
    filters.append(count);
    table.closest(".scroll").before(filters);
    apply();
  }

  // Dots: a figure's groups with data-checkpoint="RUN_ID:EXAMPLES_SEEN".

  const dots = JSON.parse(document.getElementById("dots").textContent);
  const runs = new Map(Object.entries(dots.runs));
  const checkpoints = new Map(Object.entries(dots.checkpoints));
  const tooltip = element("dl", { id: "tooltip", hidden: true });
  tooltip.setAttribute("aria-hidden", "true"); // a dot's own label says the same
  const alike = new Map(); // checkpoint -> its dots in all figures
  let told = null;

  function place() {
    if (!told) return;
    const dot = told.getBoundingClientRect();
    const { width, height } = tooltip.getBoundingClientRect();
    const left = Math.min(Math.max(8, dot.left + dot.width / 2 - width / 2), window.innerWidth - width - 8);
    const above = dot.top - height - 8;
    tooltip.style.left = `${Math.max(8, left)}px`;
    tooltip.style.top = `${above < 8 ? dot.bottom + 8 : above}px`;
  }

  function tell(dot, key, facts) {
    hush();
    told = dot;
    tooltip.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    tooltip.hidden = false;
    for (const same of alike.get(key)) same.classList.add("told");
    place();
  }

  function hush() {
    for (const lit of document.querySelectorAll(".dot.told")) lit.classList.remove("told");
    tooltip.hidden = true;
    told = null;
  }

  function makeDot(group) {
    const key = group.dataset.checkpoint;
    if (!checkpoints.has(key)) return null;
    const { url, facts: run } = runs.get(key.slice(0, key.lastIndexOf(":")));
    const facts = [...run, ...checkpoints.get(key)];
    let dot = group;
    if (url) {
      dot = document.createElementNS("http://www.w3.org/2000/svg", "a");
      dot.setAttribute("href", url);
      dot.setAttribute("target", "_blank");
      dot.setAttribute("rel", "noopener noreferrer");
      group.replaceWith(dot);
      dot.append(group);
    } else {
      dot.setAttribute("role", "img");
    }
    dot.classList.add("dot");
    dot.setAttribute("tabindex", "-1");
    dot.setAttribute("aria-label", facts.map((fact) => fact.join(" ")).join(", "));
    alike.set(key, [...(alike.get(key) ?? []), dot]);

    let toldBefore = false;
    dot.addEventListener("pointerdown", () => (toldBefore = told === dot));
    dot.addEventListener("click", (event) => {
      // A finger cannot hover: its first tap tells, its second opens.
      if (event.pointerType === "touch" && !toldBefore) event.preventDefault();
    });
    for (const event of ["pointerenter", "focus"]) dot.addEventListener(event, () => tell(dot, key, facts));
    for (const event of ["pointerleave", "blur"]) dot.addEventListener(event, hush);
    return dot;
  }

  // One stop of the Tab key a figure; arrows move among its dots.
  function makeFigure(svg) {
    const members = [...svg.querySelectorAll("g[data-checkpoint]")].map(makeDot).filter(Boolean);
    if (!members.length) return false;
    svg.setAttribute("role", "group"); // what is inside an "img" is hidden from screen readers
    members[0].setAttribute("tabindex", "0");
    svg.addEventListener("keydown", (event) => {
      const here = members.indexOf(document.activeElement);
      const steps = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1 };
      const next = { ...steps, Home: 0, End: members.length - 1 }[event.key];
      if (here < 0 || !members[next]) return;
      event.preventDefault();
      members[here].setAttribute("tabindex", "-1");
      members[next].setAttribute("tabindex", "0");
      members[next].focus();
    });
    return true;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    makeFilterable(table);
    makeSortable(table);
  }
  document.body.append(tooltip);
  const figures = [...document.querySelectorAll("figure svg")].map(makeFigure);
  document.getElementById("dots-hint").hidden = !figures.some(Boolean);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hush());
  document.addEventListener("scroll", place, { capture: true, passive: true });
})();
