"use strict";
// Sorts, filters and describes what is on the page. Nothing is computed here, and nothing is loaded.

const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// The skip link moves the focus; the address keeps the filters.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("content").focus();
});

for (const table of all("table.board")) {
  const body = table.tBodies[0];
  const [facets, titles] = table.tHead.rows;
  const heads = [...titles.cells];
  const names = heads.map((head) => head.textContent.replace(/[↑↓]|→ 0/g, "").trim());
  const count = all("td", facets).reduce((sum, cell) => sum + cell.colSpan, 0); // the columns before the figures
  const rows = [...body.rows];
  const texts = new Map(rows.map((row) => [row, [...row.cells].slice(0, count).map((cell) => cell.textContent.trim())]));
  const empty = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.classList.contains("none"))]));
  const hidden = heads.map(() => false);
  const visible = () => [...body.rows].filter((row) => !row.classList.contains("off"));

  // Columns without a figure in any visible row are hidden, and so are labels that are the same in all of them.
  const arrange = () => {
    const shown = visible();
    heads.forEach((head, column) => {
      const idle = column < count
        ? new Set(shown.map((row) => texts.get(row)[column])).size === 1 && (column > 0 || !table.classList.contains("filtered"))
        : shown.every((row) => empty.get(row)[column]);
      if (idle === hidden[column]) return;
      hidden[column] = idle;
      for (const row of [titles, ...rows]) row.cells[column].hidden = idle;
    });
    let column = 0;
    for (const group of facets.cells) {
      const span = Number(group.dataset.span ||= group.colSpan);
      const left = hidden.slice(column, column + span).filter((idle) => !idle).length;
      group.hidden = left === 0;
      group.colSpan = left || 1;
      column += span;
    }
    all("td.f[tabindex]", table).forEach((cell) => cell.removeAttribute("tabindex"));
    for (const row of shown) {
      const first = all("td.f:not(.none)", row).find((cell) => !cell.hidden);
      if (!first) continue;
      first.tabIndex = 0;
      break;
    }
  };

  const value = (row, column) => {
    if (column < count) return texts.get(row)[column];
    const given = row.cells[column].dataset.v;
    return given ? Number(given) : null;
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
      remember({ sort: names[column], order: direction });
    });
  });

  const form = table.classList.contains("filtered") ? document.getElementById("filters") : null;
  const fields = form ? [...form.elements].filter((field) => field.name) : [];
  const selects = fields.filter((field) => field.tagName === "SELECT");
  // Names of methods: the whole label, with any settings, or else its beginning ("sa" is not "safree").
  const whole = (row, name) => `${texts.get(row)[0]} `.toLowerCase().startsWith(`${name} `);
  const begins = (row, name) => texts.get(row)[0].toLowerCase().startsWith(name);
  const asked = (text) => text.toLowerCase().split(",").map((name) => name.trim()).filter(Boolean)
    .flatMap((name) => (rows.some((row) => begins(row, name)) ? [name] : name.split(/\s+/)));
  const filter = (said = "") => {
    const methods = asked(form.elements.method.value);
    const known = new Set(methods.filter((name) => rows.some((row) => whole(row, name))));
    const wanted = selects.filter((field) => field.value).map((field) => [names.indexOf(field.name), field.value]);
    for (const row of rows) {
      const fits = (!methods.length || methods.some((name) => (known.has(name) ? whole : begins)(row, name)))
        && wanted.every(([column, text]) => texts.get(row)[column] === text);
      row.classList.toggle("off", !fits);
    }
    const same = fields.filter((field) => field.value).map((field) => `${field.name} ${field.value}`);
    document.getElementById("count").textContent = `${visible().length} of ${rows.length} rows: ${same.join(", ") || "all"}${said}`;
    arrange();
  };
  // A new choice clears the filters that exclude it, and says which.
  const choose = (chosen) => {
    const clear = (others) => {
      for (const field of others) field.value = "";
      return others.length ? `; cleared: ${others.map((field) => field.name).join(", ")}` : "";
    };
    const others = selects.filter((field) => field !== chosen && field.value);
    const fits = (row, field) => texts.get(row)[names.indexOf(field.name)] === field.value;
    const own = rows.filter((row) => fits(row, chosen));
    filter(clear(others.filter((field) => !own.some((row) => fits(row, field)))));
    if (!visible().length) filter(clear(others));
  };
  // The state is in the address, so that it can be cited.
  const remember = (changes = {}) => {
    if (!form) return;
    const state = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) state.set(field.name, field.value);
    for (const [name, chosen] of Object.entries(changes)) state.set(name, chosen);
    history.replaceState(null, "", `#${state}`);
  };
  const restore = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    const unknown = [];
    if (fields.some((field) => state.has(field.name))) { // filters that the address does not name are off
      for (const field of fields) {
        const given = state.get(field.name) ?? "";
        field.value = given;
        if (field.value === given) continue;
        field.value = "";
        unknown.push(`${field.name} ${given}`);
      }
    }
    filter(unknown.length ? `; not here: ${unknown.join(", ")}` : "");
    const column = names.indexOf(state.get("sort"));
    if (column >= 0) sort(column, Number(state.get("order")) < 0 ? -1 : 1);
  };
  if (form) {
    form.addEventListener("input", (event) => {
      if (event.target.tagName === "SELECT" && event.target.value) choose(event.target);
      else filter();
      remember();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      for (const field of fields) field.value = "";
      filter();
      remember();
    });
    addEventListener("hashchange", restore);
    restore();
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
    let [row, column] = [cell.parentElement.rowIndex, cell.cellIndex];
    let next;
    do { // past the cells that were not measured
      [row, column] = [row + moves[1], column + moves[0]];
      next = table.rows[row]?.cells[column];
    } while (next?.matches("td.none"));
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
const tell = (cell) => {
  const said = cell?.querySelector(".sr")?.textContent;
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said;
  const place = cell.getBoundingClientRect();
  const below = place.bottom + 4 + tip.offsetHeight < innerHeight;
  tip.style.top = `${below ? place.bottom + 4 : place.top - tip.offsetHeight - 4}px`;
  tip.style.left = `${Math.max(4, Math.min(place.left, innerWidth - tip.offsetWidth - 8))}px`;
};
for (const kind of ["mouseover", "focusin", "click"]) {
  document.addEventListener(kind, (event) => tell(event.target.closest?.("td.f")));
}
// After scrolling, also of a table, the tip is that of the cell with the focus.
document.addEventListener("scroll", () => { if (!tip.hidden) tell(document.activeElement?.closest("td.f")); }, { passive: true, capture: true });
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
  if (input.classList.contains("named") && location.hash.startsWith("#method=")) { // a link to the figures of one method, by its whole name
    const name = input.value = new URLSearchParams(location.hash.slice(1)).get("method") ?? "";
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
  const about = image.alt;
  button.addEventListener("click", () => {
    const clear = image.getAttribute("src") === blurred;
    image.src = clear ? button.dataset.clear : blurred;
    image.alt = clear ? about.replace("Blurred contact", "Contact") : about;
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
  const MOST = 50;
  const several = found.length > MOST ? `The first ${MOST} of ${found.length} sections` : found.length === 1 ? "1 section" : `${found.length} sections`;
  document.getElementById("found").textContent = asked ? `${several} with “${asked}”` : "Type words in the field above.";
  for (const [page, title, text] of found.slice(0, MOST)) {
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
