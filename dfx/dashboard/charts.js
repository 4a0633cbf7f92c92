"use strict";

const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const HEIGHT = 210;
const MARGIN = { left: 66, right: 12, top: 8, bottom: 34 };
const MOST_READ = 8; // lines of a reading

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function html(tag, className, ...children) {
  const element = Object.assign(document.createElement(tag), { className });
  element.append(...children);
  return element;
}

function short(value) {
  const rounded = Number(value.toPrecision(4));
  const text = rounded && Math.abs(rounded) < 0.001 ? rounded.toExponential() : String(rounded);
  return text.replaceAll("-", "−");
}

const colourOf = ({ colour }) => (colour === null ? "var(--soft)" : `var(--line-${colour})`);

/** Round numbers within a range, at most about `count` of them. */
function ticksOf(low, high, count, log) {
  if (log && high / low >= 5) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of high / low > 1e3 ? [1] : [1, 2, 5]) ticks.push(Number(`${digit}e${power}`));
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  }
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((digit) => power * digit >= raw);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** A chart in a figure, drawn to its width; a pointer or the arrow keys read its values. */
class Chart {
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.dataset.chart);
    const { title, keys, y } = this.data;
    this.steps = [...new Set(this.data.lines.flatMap(({ x }) => x))].sort((a, b) => a - b);
    this.reading = html("div", "reading");
    this.reading.hidden = true;
    this.place = html("div", "plot");
    const entries = keys.map((key) => {
      const sample = svg("svg", { width: 22, height: 8, "aria-hidden": "true" });
      sample.append(svg("path", { d: "M 0 4 H 22", class: "line", stroke: colourOf(key), "stroke-dasharray": DASHES[key.dash] }));
      return html("span", "", sample, key.label);
    });
    figure.replaceChildren(html("figcaption", "", title), html("div", "keys", ...entries), this.place, this.reading);
    figure.tabIndex = 0;
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `${title}: ${y} over ${this.data.x}`);
    for (const type of ["pointermove", "pointerdown"]) this.place.addEventListener(type, (event) => this.point(event));
    this.place.addEventListener("pointerleave", () => this.hide());
    figure.addEventListener("blur", () => this.hide());
    figure.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.draw()).observe(this.place);
  }

  draw() {
    const width = this.place.clientWidth;
    if (!width) return;
    const { lines, log, range, x, y, held } = this.data;
    const values = lines.flatMap((line) => line.y);
    const warp = log ? Math.log : (value) => value;
    let [low, high] = [range[0] ?? Math.min(...values), range[1] ?? Math.max(...values)];
    if (range[0] !== null) high = Math.max(high, low + 1);
    const pad = 0.06 * (warp(high) - warp(low)) || Math.abs(warp(high)) * 0.1 || 1;
    const unwarp = log ? Math.exp : (value) => value;
    [low, high] = [unwarp(warp(low) - pad), unwarp(warp(high) + pad)];
    const [first, last] = [this.steps[0], this.endOf(this.steps)];
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    this.toX = (value) => MARGIN.left + ((value - first) / (last - first || 1)) * (right - MARGIN.left);
    this.toY = (value) => bottom - ((warp(value) - warp(low)) / (warp(high) - warp(low))) * (bottom - MARGIN.top);
    const picture = svg("svg", { width, height: HEIGHT, "aria-hidden": "true" });
    for (const tick of ticksOf(low, high, 5, log)) {
      const at = this.toY(tick);
      picture.append(
        svg("path", { class: "grid", d: `M ${MARGIN.left} ${at} H ${right}` }),
        svg("text", { x: MARGIN.left - 6, y: at + 4, "text-anchor": "end" }, short(tick)),
      );
    }
    for (const tick of first === last ? [first] : ticksOf(first, last, width / 90, false)) {
      picture.append(svg("text", { x: this.toX(tick), y: bottom + 15, "text-anchor": "middle" }, short(tick)));
    }
    picture.append(
      svg("path", { class: "axis", d: `M ${MARGIN.left} ${MARGIN.top} V ${bottom} H ${right}` }),
      svg("text", { x: (MARGIN.left + right) / 2, y: HEIGHT - 3, "text-anchor": "middle", class: "label" }, x),
      svg("text", { transform: `translate(10 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "label" }, y),
    );
    for (const line of lines) {
      const points = line.x.map((at, i) => [this.toX(at), this.toY(line.y[i])]);
      let path = points.map(([at, to], i) => (i === 0 ? `M ${at} ${to}` : held ? `H ${at} V ${to}` : `L ${at} ${to}`)).join(" ");
      if (held) path += ` H ${this.toX(this.endOf(line.x))}`;
      picture.append(svg("path", { class: "line", d: path, stroke: colourOf(line), "stroke-dasharray": DASHES[line.dash] }));
      if (held || points.length > 30) continue;
      for (const [cx, cy] of points) picture.append(svg("circle", { cx, cy, r: 2, fill: colourOf(line) }));
    }
    this.cursor = svg("g", { class: "cursor" });
    picture.append(this.cursor);
    this.place.replaceChildren(picture);
    this.hide();
  }

  /** The end of the last of some steps: a held value lasts as long as the one before. */
  endOf(steps) {
    const last = steps.length - 1;
    return steps[last] + (this.data.held && last ? steps[last] - steps[last - 1] : 0);
  }

  point(event) {
    const at = event.clientX - this.place.getBoundingClientRect().left;
    let nearest = 0;
    this.steps.forEach((step, i) => {
      if (Math.abs(this.toX(step) - at) < Math.abs(this.toX(this.steps[nearest]) - at)) nearest = i;
    });
    this.read(nearest);
  }

  move(event) {
    const change = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!change) return;
    event.preventDefault();
    this.read(Math.min(Math.max((this.index ?? -1) + change, 0), this.steps.length - 1));
  }

  read(index) {
    this.index = index;
    const step = this.steps[index];
    const at = this.toX(step);
    const found = this.data.lines.filter(({ x }) => x.includes(step));
    const marks = found.map((line) =>
      svg("circle", { cx: at, cy: this.toY(line.y[line.x.indexOf(step)]), r: 4, fill: colourOf(line) }));
    this.cursor.replaceChildren(
      svg("path", { d: `M ${at} ${MARGIN.top} V ${HEIGHT - MARGIN.bottom}` }), ...marks);
    const rows = found.slice(0, MOST_READ).map((line) => {
      const key = html("i", "");
      key.style.background = colourOf(line);
      return html("div", "", key, `${line.label} `, html("b", "", short(line.y[line.x.indexOf(step)])));
    });
    if (found.length > MOST_READ) rows.push(html("div", "", `and ${found.length - MOST_READ} more`));
    this.reading.replaceChildren(html("div", "", `${this.data.x} ${short(step)}`), ...rows);
    this.reading.hidden = false;
    const width = this.place.clientWidth;
    const isLeft = at > width / 2;
    this.reading.style.left = isLeft ? "" : `${at + 10}px`;
    this.reading.style.right = isLeft ? `${width - at + 10}px` : "";
    this.reading.style.maxWidth = `${(isLeft ? at : width - at) - 14}px`;
  }

  hide() {
    this.reading.hidden = true;
    this.cursor?.replaceChildren();
  }
}

for (const figure of document.querySelectorAll("[data-chart]")) new Chart(figure);

// Only one player at a time.
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);
