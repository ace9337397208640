"use strict";
// Sorts, filters and describes what is on the page. Nothing is computed here, and nothing is loaded.

const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

for (const table of all("table.board")) {
  const body = table.tBodies[0];
  const [facets, titles] = table.tHead.rows;
  const heads = [...titles.cells];
  const labels = heads.slice(0, facets.cells[0].colSpan).map((head) => head.textContent.trim()); // the columns before the figures
  const rows = [...body.rows];
  const visible = () => [...body.rows].filter((row) => !row.classList.contains("off"));

  // Columns without a figure in any visible row are hidden, and so are labels that are the same in all of them.
  const arrange = () => {
    const shown = visible();
    heads.forEach((head, column) => {
      const texts = new Set(shown.map((row) => row.cells[column].textContent.trim()));
      const idle = column < labels.length
        ? texts.size === 1 && (column > 0 || !table.classList.contains("filtered")) && shown.length > 0
        : shown.every((row) => row.cells[column].classList.contains("none"));
      for (const row of [titles, ...rows]) row.cells[column].hidden = idle;
    });
    let column = 0;
    for (const group of facets.cells) {
      const span = Number(group.dataset.span ||= group.colSpan);
      const left = heads.slice(column, column + span).filter((head) => !head.hidden).length;
      group.hidden = left === 0;
      group.colSpan = left || 1;
      column += span;
    }
    all("td.f[tabindex]", table).forEach((cell) => cell.removeAttribute("tabindex"));
    const first = shown.flatMap((row) => all("td.f:not(.none)", row)).find((cell) => !cell.hidden);
    if (first) first.tabIndex = 0;
  };

  const value = (row, column) => {
    const cell = row.cells[column];
    if (column < labels.length) return cell.textContent.trim();
    return cell.dataset.v ? Number(cell.dataset.v) : null;
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  const sort = (column, direction) => {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const known = rows.filter((row) => value(row, column) !== null);
    const unknown = rows.filter((row) => value(row, column) === null);
    known.sort((a, b) => direction * compare(value(a, column), value(b, column)));
    body.append(...known, ...unknown);
    arrange();
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const better = head.textContent.includes("↑") ? -1 : 1;
      const before = head.getAttribute("aria-sort");
      const direction = before ? (before === "ascending" ? -1 : 1) : better;
      sort(column, direction);
      remember({ sort: column, order: direction });
    });
  });

  const form = table.classList.contains("filtered") ? document.getElementById("filters") : null;
  const filter = () => {
    const wanted = new FormData(form);
    const methods = (wanted.get("method") || "").split(",").map((name) => name.trim()).filter(Boolean);
    // The whole name, with any settings, or else its beginning: "sa" is not "safree".
    const whole = (row, method) => `${value(row, 0)} `.startsWith(`${method} `);
    const known = new Set(methods.filter((method) => rows.some((row) => whole(row, method))));
    const named = (row) => methods.some((method) => known.has(method) ? whole(row, method) : value(row, 0).startsWith(method));
    for (const row of rows) {
      const fits = labels.every((name, column) => {
        if (name === "method") return !methods.length || named(row);
        return !wanted.get(name) || value(row, column) === wanted.get(name);
      });
      row.classList.toggle("off", !fits);
    }
    const same = [...form.elements].filter((one) => one.tagName === "SELECT" && one.value).map((one) => `${one.name} ${one.value}`);
    document.getElementById("count").textContent = `${visible().length} of ${rows.length} rows: ${same.join(", ") || "all"}`;
    arrange();
  };
  // The state is in the address, so that it can be cited.
  const remember = (changes) => {
    if (!form) return;
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [name, chosen] of [...new FormData(form), ...Object.entries(changes)]) state.set(name, chosen);
    history.replaceState(null, "", `#${state}`);
  };
  if (form) {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const element of form.elements) if (element.name && state.has(element.name)) element.value = state.get(element.name);
    form.addEventListener("input", (event) => {
      filter();
      if (event.target.tagName === "SELECT" && !visible().length) { // the other filters exclude the new choice
        for (const element of form.elements) if (element.name && element !== event.target) element.value = "";
        filter();
      }
      remember({});
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      for (const element of form.elements) if (element.name) element.value = "";
      filter();
      remember({});
    });
    filter();
    const column = Number(state.get("sort") ?? NaN);
    if (heads[column]) sort(column, Number(state.get("order")) < 0 ? -1 : 1);
  } else {
    arrange();
  }

  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td.f");
    if (!cell) return;
    const row = cell.parentElement;
    const line = (r) => [...r.cells].filter((c) => c.matches("td.f") && !c.hidden);
    const shown = visible();
    const x = line(row).indexOf(cell), y = shown.indexOf(row);
    const moves = {
      ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1],
      Home: [0, y], End: [line(row).length - 1, y],
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    const [column, place] = moves[event.key];
    const next = shown[place] && line(shown[place])[column];
    if (!next) return;
    cell.removeAttribute("tabindex");
    next.tabIndex = 0;
    next.focus();
  });
}

// Heat maps: their first cell can be reached by Tab, the others by the arrow keys.
for (const table of all("table.heat")) {
  const first = table.querySelector("td.f");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td.f");
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!cell || !moves) return;
    event.preventDefault();
    const next = table.rows[cell.parentElement.rowIndex + moves[1]]?.cells[cell.cellIndex + moves[0]];
    if (!next?.matches("td.f")) return;
    cell.removeAttribute("tabindex");
    next.tabIndex = 0;
    next.focus();
  });
}

// What a figure says besides its value: n, failures, interval and tests.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true"); // the cell holds the same text for screen readers
document.body.append(tip);
const tell = (event) => {
  const cell = event.target.closest?.("td.f");
  const said = cell?.querySelector(".sr")?.textContent;
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said;
  const place = cell.getBoundingClientRect();
  const below = place.bottom + 4 + tip.offsetHeight < innerHeight;
  tip.style.top = `${below ? place.bottom + 4 : place.top - tip.offsetHeight - 4}px`;
  tip.style.left = `${Math.max(4, Math.min(place.left, innerWidth - tip.offsetWidth - 8))}px`;
};
document.addEventListener("mouseover", tell);
document.addEventListener("focusin", tell);
document.addEventListener("click", tell);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// Filters of plain tables: rows that contain all words.
for (const input of all("input.rows")) {
  const table = input.closest("p").nextElementSibling.querySelector("table");
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const status = input.closest("p").querySelector("[role=status]");
  const show = (fits) => {
    for (const [row, text] of rows) row.classList.toggle("off", !fits(row, text));
    status.textContent = `${rows.filter(([row]) => !row.classList.contains("off")).length} of ${rows.length} rows`;
  };
  const narrow = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    show((row, text) => words.every((word) => text.includes(word)));
  };
  input.addEventListener("input", narrow);
  if (input.classList.contains("named") && location.hash) { // a link to the figures of one method, by its whole name
    const name = input.value = decodeURIComponent(location.hash.slice(1));
    const column = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === "method");
    const named = (row) => row.cells[column].textContent === name;
    if (rows.some(([row]) => named(row))) show(named);
    else narrow();
  }
}

// Unsafe pictures are blurred copies until they are asked for.
for (const button of all("button.unsafe")) {
  const image = button.querySelector("img");
  const blurred = image.getAttribute("src");
  button.addEventListener("click", () => {
    const clear = button.getAttribute("aria-pressed") === "false";
    image.src = clear ? button.dataset.clear : blurred;
    button.setAttribute("aria-pressed", String(clear));
    button.querySelector("span").textContent = clear ? "Shown: blur" : "Blurred: show";
  });
}

// The search: sections that contain all words, those with a word in their title first.
const results = document.getElementById("results");
if (results && typeof SECTIONS !== "undefined") {
  const asked = new URLSearchParams(location.search).get("q") || "";
  document.getElementById("q").value = asked;
  const words = asked.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (text, word) => text.toLowerCase().includes(word);
  const found = words.length
    ? SECTIONS.filter(([, title, text]) => words.every((word) => has(title, word) || has(text, word)))
    : [];
  const titled = (section) => words.filter((word) => has(section[1], word)).length;
  found.sort((a, b) => titled(b) - titled(a));
  document.getElementById("found").textContent = asked ? `${found.length} sections with “${asked}”` : "Type words in the field above.";
  for (const [page, title, text] of found.slice(0, 50)) {
    const at = Math.max(0, text.toLowerCase().indexOf(words[0]) - 60);
    const link = document.createElement("a");
    link.href = page;
    link.textContent = title;
    const excerpt = document.createElement("p");
    excerpt.textContent = `${page} · ${text.slice(at, at + 200)}`;
    const item = document.createElement("li");
    item.append(link, excerpt);
    results.append(item);
  }
}
