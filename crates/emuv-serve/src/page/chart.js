// Lines over the last five minutes.

const WINDOW_MILLIS = 300_000;
// Between two points further apart nothing is known.
const GAP_MILLIS = 5_000;

class Chart {
  /** `series`: [{ id, label }]; `most`: what the dashed line is called. */
  constructor(title, series, most, format) {
    this.series = series;
    this.mostLabel = most;
    this.title = title;
    this.format = format;
    this.points = [];
    this.hover = null;
    this.element = make("figure", "chart");
    const caption = make("figcaption");
    caption.append(make("b", "", title));
    this.keys = new Map();
    for (const { id, label } of [...series, { id: "most", label: most }]) {
      const key = make("span", `key key-${id}`);
      const value = make("span");
      key.append(make("i"), `${label} `, value);
      caption.append(key);
      this.keys.set(id, { key, value });
    }
    this.svg = svg("svg", { role: "img" });
    this.element.append(caption, this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  point(clientX) {
    this.hover = clientX === null ? null : clientX - this.svg.getBoundingClientRect().left;
    this.draw();
  }

  /** `points`: [{ at, [id]: number or null }], oldest first; `most`: a number or null. */
  update(points, now, most) {
    Object.assign(this, { points, now, most });
    this.draw();
  }

  draw() {
    const [width, height] = [this.svg.clientWidth, this.svg.clientHeight];
    if (!width || !this.now) return;
    const values = this.points.flatMap((point) => this.series.map(({ id }) => point[id] ?? 0));
    const step = niceStep(Math.max(this.most ?? 0, ...values, 1));
    const top = step * Math.ceil(Math.max(this.most ?? 0, ...values, 1) / step);
    const box = { left: 58, right: width - 2, top: 8, bottom: height - 18 };
    const x = (at) => box.right - ((this.now - at) / WINDOW_MILLIS) * (box.right - box.left);
    const y = (value) => box.bottom - (value / top) * (box.bottom - box.top);
    const parts = [];
    for (let value = 0; value <= top; value += step) {
      const line = Math.round(y(value)) + 0.5;
      parts.push(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: line, y2: line }));
      const label = svg("text", { x: box.left - 6, y: line + 4, "text-anchor": "end" });
      label.textContent = value === 0 ? "0" : this.format(value);
      parts.push(label);
    }
    for (const [minutes, anchor] of [[4, "middle"], [3, "middle"], [2, "middle"], [1, "middle"], [0, "end"]]) {
      const label = svg("text", { x: x(this.now - minutes * 60_000), y: height - 4, "text-anchor": anchor });
      label.textContent = minutes === 0 ? "now" : `\u2212${minutes} min`;
      parts.push(label);
    }
    for (const { id } of this.series) parts.push(...this.lines(id, x, y, box));
    if (known(this.most)) {
      parts.push(svg("line", { class: "most", x1: box.left, x2: box.right, y1: y(this.most), y2: y(this.most) }));
    }
    const shown = this.shown(x);
    if (shown && this.hover !== null) {
      const at = Math.round(x(shown.at)) + 0.5;
      parts.push(svg("line", { class: "cross", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    }
    this.svg.replaceChildren(...parts);
    this.caption(shown);
  }

  /** The point under the pointer, else the last. */
  shown(x) {
    const last = this.points[this.points.length - 1];
    if (this.hover === null || !last) return last;
    const distance = (point) => Math.abs(x(point.at) - this.hover);
    return this.points.reduce((best, point) => (distance(point) < distance(best) ? point : best), last);
  }

  caption(shown) {
    for (const { id } of this.series) say(this.keys.get(id).value, shown ? this.format(shown[id]) : UNKNOWN);
    const { key, value } = this.keys.get("most");
    key.hidden = !known(this.most);
    say(value, this.format(this.most));
    const last = this.points[this.points.length - 1];
    const now = this.series.map(({ id, label }) => `${label} ${last ? this.format(last[id]) : "unknown"}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}, the last five minutes. Now: ${now}.`);
  }

  /** A line and the area under it, for each run of points without a gap. */
  lines(id, x, y, box) {
    const runs = [];
    let before = null;
    for (const point of this.points) {
      if (!known(point[id])) continue;
      if (!before || point.at - before.at > GAP_MILLIS) runs.push([]);
      runs[runs.length - 1].push(`${x(point.at).toFixed(1)} ${y(point[id]).toFixed(1)}`);
      before = point;
    }
    return runs.flatMap((run) => {
      const [first, last] = [run[0].split(" ")[0], run[run.length - 1].split(" ")[0]];
      const area = `M${first} ${box.bottom} L${run.join(" L")} L${last} ${box.bottom} Z`;
      return [
        svg("path", { class: `area area-${id}`, d: area }),
        svg("path", { class: `line line-${id}`, d: `M${run.join(" L")}` }),
      ];
    });
  }
}

/** The distance of grid lines, of which there are up to four: a power of two, as sizes are shown 1024-based. */
function niceStep(most) {
  let step = 1;
  while (most / step > 4) step *= 2;
  return step;
}
