"use strict";
// Sorting and filtering of tables, and a word where one is wider than the window. Nothing is loaded, and the page is whole without it.
(() => {
  const unknown = "\u2013";

  const valueOf = (cell, isText) => {
    const text = cell.textContent.trim();
    if (isText) return text;
    if (text === "" || text === unknown) return null;
    const digits = text.replace(/\u2212/g, "-").replace(/,/g, "").match(/[+-]?\d+(\.\d+)?/);
    if (!digits) return null;
    return text.startsWith("<") ? Number(digits[0]) / 2 : Number(digits[0]);
  };

  const compare = (one, other) =>
    typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;

  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const given = [...body.rows];
    const fixed = given.filter((row) => row.classList.contains("total"));
    const moved = given.filter((row) => !fixed.includes(row));
    if (moved.length < 3) return;
    heads.forEach((head, column) => {
      const isText = column === 0 || head.classList.contains("word");
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        // Largest first where there are numbers; a third click gives the order that the page came with.
        const turns = isText ? ["ascending", "descending"] : ["descending", "ascending"];
        const next = turns[turns.indexOf(head.getAttribute("aria-sort")) + 1];
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        let rows = moved;
        if (next) {
          head.setAttribute("aria-sort", next);
          const sign = next === "ascending" ? 1 : -1;
          const keyed = moved.map((row) => [valueOf(row.cells[column], isText), row]);
          const known = keyed.filter(([key]) => key !== null);
          known.sort(([one], [other]) => sign * compare(one, other));
          rows = [...known, ...keyed.filter(([key]) => key === null)].map(([, row]) => row);
        }
        body.append(...rows, ...fixed);
      });
    });
  };

  const filterable = (box, table) => {
    const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("total"));
    const kinds = [...new Set(rows.map((row) => row.dataset.kind).filter(Boolean))];
    const tools = document.createElement("div");
    tools.className = "tools";
    const labelled = (text, field) => {
      const label = document.createElement("label");
      label.append(text, field);
      tools.append(label);
      return field;
    };
    const words = labelled("Rows with", Object.assign(document.createElement("input"), { type: "search" }));
    let kind = null;
    if (kinds.length > 1) {
      kind = labelled("of", document.createElement("select"));
      kind.append(new Option("every kind", ""), ...kinds.map((name) => new Option(name, name)));
    }
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    tools.append(count);
    const apply = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const kept = wanted.every((word) => text.includes(word)) && (!kind || !kind.value || row.dataset.kind === kind.value);
        row.hidden = !kept;
        left += kept ? 1 : 0;
      }
      count.textContent = `${left} of ${rows.length} rows`;
    };
    tools.addEventListener("input", apply);
    apply();
    box.prepend(tools);
  };

  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    if (table.classList.contains("prose")) continue;
    sortable(table);
    if (table.tBodies[0].rows.length >= 12) filterable(box, table);
  }

  for (const scroll of document.querySelectorAll(".scroll")) {
    const cue = document.createElement("p");
    cue.className = "cue";
    cue.textContent = "Wider than the window: scroll sideways. \u2192";
    cue.hidden = true;
    scroll.after(cue);
    const look = () => {
      cue.hidden = scroll.scrollWidth <= scroll.clientWidth + 2;
    };
    new ResizeObserver(look).observe(scroll);
  }
})();
