// Tables that can be sorted, and whose rows stay the same elements from one sample to the next.

class Table {
  /**
   * `columns`: [{ id, label, className, value(row), show(cell, row) }]; without `value` a column is not for sorting.
   * The first one names the row. `key(row)` tells rows apart.
   */
  constructor(host, caption, columns, key, sort) {
    Object.assign(this, { columns, key, sort });
    this.rows = new Map();
    this.heads = new Map();
    const table = make("table");
    table.setAttribute("role", "table");
    const head = table.createTHead();
    head.setAttribute("role", "rowgroup");
    const row = head.insertRow();
    row.setAttribute("role", "row");
    for (const column of columns) {
      const cell = make("th", column.className ?? "");
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      if (column.value) {
        const button = make("button", "", column.label);
        button.type = "button";
        button.addEventListener("click", () => this.sortBy(column.id));
        cell.append(button);
      } else {
        cell.classList.add("plain");
        cell.textContent = column.label;
      }
      row.append(cell);
      this.heads.set(column.id, cell);
    }
    table.createCaption().append(make("span", "visually-hidden", caption));
    this.body = table.createTBody();
    this.body.setAttribute("role", "rowgroup");
    this.element = make("div", "scroll");
    // It may be wider than the page: the keyboard scrolls it then.
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "region");
    this.element.setAttribute("aria-label", caption);
    this.element.append(table);
    host.replaceChildren(this.element);
    this.data = [];
    this.mark();
  }

  sortBy(id) {
    const same = this.sort.id === id;
    const first = this.columns.find((column) => column.id === id).descends ?? false;
    this.sort = { id, descends: same ? !this.sort.descends : first };
    this.mark();
    this.update(this.data);
  }

  mark() {
    for (const [id, head] of this.heads) {
      if (id !== this.sort.id) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.sort.descends ? "descending" : "ascending");
    }
  }

  update(data) {
    this.data = data;
    const { value } = this.columns.find((column) => column.id === this.sort.id);
    const sorted = data
      .map((row) => ({ row, by: value(row) }))
      .sort((a, b) => compare(a.by, b.by, this.sort.descends))
      .map(({ row }) => row);
    // First of all what is gone: a row that is moved loses the focus.
    const there = new Set(data.map((row) => this.key(row)));
    for (const [key, element] of this.rows) {
      if (there.has(key)) continue;
      element.remove();
      this.rows.delete(key);
    }
    let place = this.body.firstChild;
    for (const row of sorted) {
      const key = this.key(row);
      if (!this.rows.has(key)) this.rows.set(key, this.make());
      const element = this.rows.get(key);
      this.columns.forEach((column, index) => column.show(element.children[index], row));
      if (element === place) place = place.nextSibling;
      else this.body.insertBefore(element, place);
    }
    this.element.hidden = data.length === 0;
  }

  make() {
    const row = make("tr");
    row.setAttribute("role", "row");
    this.columns.forEach((column, index) => {
      const cell = make(index === 0 ? "th" : "td", column.className ?? "");
      cell.setAttribute("role", index === 0 ? "rowheader" : "cell");
      if (index === 0) cell.scope = "row";
      else if (column.label) cell.dataset.label = column.label;
      row.append(cell);
    });
    return row;
  }
}

/** What is unknown comes last, whichever way. */
function compare(a, b, descends) {
  if (!known(a) || !known(b)) return known(a) ? -1 : known(b) ? 1 : 0;
  const order = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return descends ? -order : order;
}

/** A cell of text; what is unknown is said to those who listen. */
function showText(cell, text) {
  const unknown = text === UNKNOWN;
  cell.classList.toggle("unknown", unknown);
  say(cell, text);
  if (unknown) cell.setAttribute("aria-label", "unknown");
  else cell.removeAttribute("aria-label");
}

/** A cell with "used of most" and a bar. */
function showShare(cell, used, most, className) {
  if (!cell.meter) {
    cell.meter = new Meter();
    cell.words = make("span");
    cell.append(cell.words, cell.meter.element);
  }
  say(cell.words, bytesOf(used, most));
  const measurable = known(used) && known(most) && most > 0;
  cell.meter.element.toggleAttribute("hidden", !measurable);
  if (measurable) cell.meter.update([{ className: used > most ? "fill-over" : className, share: used / most }]);
}
