"use strict";
// Sorting and filtering of the tables, the dialog of provenance, light and dark.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  function sortable(table) {
    const body = table.tBodies[0], original = [...body.rows];
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const label = head.querySelector("span");
      if (!label) return;
      const button = document.createElement("button");
      button.type = "button";
      button.innerHTML = label.innerHTML;
      label.replaceWith(button);
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") || "none"];
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        if (next !== "none") head.setAttribute("aria-sort", next);
        body.append(...(next === "none" ? original : sorted(original, column, next === "descending")));
      });
    });
  }

  function sorted(rows, column, down) {
    const numeric = rows.some((row) => row.cells[column].dataset.v !== undefined);
    const keys = new Map(rows.map((row) => {
      const cell = row.cells[column];
      return [row, numeric ? (cell.dataset.v === undefined ? null : Number(cell.dataset.v)) : cell.textContent];
    }));
    const order = new Intl.Collator("en", { numeric: true }).compare;
    return [...rows].sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (x === null || y === null) return (x === null) - (y === null);      // what has no number stays at the end
      return (numeric ? x - y : order(x, y)) * (down ? -1 : 1);
    });
  }

  function filterable(controls) {
    const rows = [...document.getElementById(controls.dataset.for).tBodies[0].rows];
    const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const search = controls.querySelector("input"), menus = all("select", controls), said = controls.querySelector("output");
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, at) => {
        const keep = words.every((word) => texts[at].includes(word))
          && menus.every((menu) => !menu.value || row.cells[menu.dataset.column].textContent === menu.value);
        row.hidden = !keep;
        shown += keep;
      });
      said.textContent = shown === rows.length ? `${rows.length} lines` : `${shown} of ${rows.length} lines`;
    };
    controls.hidden = false;
    search.addEventListener("input", apply);
    menus.forEach((menu) => menu.addEventListener("change", apply));
    apply();
  }

  let records = null;
  const dialog = document.getElementById("provenance");
  const element = (name, text, inside = []) => {
    const made = document.createElement(name);
    if (text !== null) made.textContent = text;
    made.append(...inside);
    return made;
  };
  const pairs = (entries) => element("table", null, entries.map(([name, value]) => {
    const head = element("th", name);
    head.scope = "row";
    return element("tr", null, [head, element("td", value !== null && typeof value === "object" ? JSON.stringify(value) : String(value))]);
  }));

  function show(ids, metric) {
    records = records || JSON.parse(document.getElementById("records").textContent);
    const body = document.getElementById("provenance-body");
    body.replaceChildren();
    for (const id of ids.filter((one) => records[one])) {
      const record = records[id];
      const link = element("a", record.place);
      link.href = record.path;
      body.append(element("h3", record.fields.key), element("p", null, ["Record ", link]));
      for (const [name, entry] of Object.entries(record.metrics)) {
        if (metric && name !== metric) continue;
        const part = element("details", null, [element("summary", `${name} = ${entry.value}`), pairs(Object.entries(entry))]);
        part.open = name === metric;
        part.classList.toggle("asked", name === metric);
        body.append(part);
      }
      if (record.flags.length) body.append(element("p", `Flags: ${record.flags.join("; ")}`));
      if (Object.keys(record.missing).length) body.append(pairs(Object.entries(record.missing)));
      const fields = pairs(Object.entries(record.fields).sort((a, b) => (b[0] === metric) - (a[0] === metric)));
      if (metric) all("tr", fields).filter((row) => row.cells[0].textContent === metric).forEach((row) => row.classList.add("asked"));
      body.append(fields);
    }
    dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.records"), cell = event.target.closest("td[data-r]");
    if (button) show(button.dataset.ids.split(" "), "");
    else if (cell) show([cell.dataset.r], cell.dataset.m);
    else if (event.target === dialog) dialog.close();
  });
  addEventListener("beforeprint", () => all("details").forEach((one) => { one.open = true; }));
  all("table.sortable").forEach(sortable);
  all(".controls[data-for]").forEach(filterable);
})();
