"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { shared, files } = data;
const FADE = 0.008; // seconds; avoids clicks when switching

/** Plays all tracks of a file in parallel, one of them audible. Independent of the page. */
class Player {
  constructor() {
    this.context = null;
    this.seconds = 0;
    this.audible = 0;
    this.playing = false;
    this.loop = true;
    this.volume = 1;
    this.onchange = () => {};
    this.sources = [];
    this.gains = [];
    this.tracks = [];
    this.buffers = null;
    this.offset = 0;
    this.startedAt = 0;
    this.requests = 0;
  }

  /** tracks: functions that return the encoded bytes. */
  load(tracks, seconds, audible) {
    this.pause();
    Object.assign(this, { tracks, seconds, audible, buffers: null, offset: 0 });
  }

  get position() {
    if (!this.playing) return this.offset;
    const position = this.offset + Math.max(0, this.context.currentTime - this.startedAt);
    return this.loop ? position % this.seconds : Math.min(position, this.seconds);
  }

  /** Must be called in response to a user gesture: browsers allow sound only then. */
  async play() {
    const request = ++this.requests;
    if (!this.context) {
      this.context = new (window.AudioContext || window.webkitAudioContext)();
      this.master = this.context.createGain();
      this.master.connect(this.context.destination);
    }
    this.master.gain.value = this.volume;
    const resumed = this.context.resume();
    if (!this.buffers) {
      const buffers = await Promise.all(this.tracks.map((bytes) => this.context.decodeAudioData(bytes())));
      if (request !== this.requests) return;
      this.buffers = buffers;
    }
    await resumed;
    if (request !== this.requests) return;
    if (this.offset >= this.seconds) this.offset = 0;
    this.#start();
    this.onchange();
  }

  pause() {
    this.requests++;
    this.offset = this.position;
    this.#stop();
    this.onchange();
  }

  seek(seconds) {
    const position = Math.min(Math.max(0, seconds), this.seconds);
    const wasPlaying = this.playing;
    this.#stop();
    this.offset = position;
    if (wasPlaying) this.#start();
    this.onchange();
  }

  /** The other tracks keep playing silently, so that a switch keeps the position to the sample. */
  select(track) {
    this.audible = track;
    const now = this.context ? this.context.currentTime : 0;
    this.gains.forEach(({ gain }, i) => {
      gain.cancelScheduledValues(now);
      gain.setValueAtTime(gain.value, now);
      gain.linearRampToValueAtTime(i === track ? 1 : 0, now + FADE);
    });
    this.onchange();
  }

  setLoop(loop) {
    const position = this.position;
    this.loop = loop;
    this.seek(position);
  }

  setVolume(volume) {
    this.volume = volume;
    if (this.master) this.master.gain.value = volume;
  }

  #start() {
    this.startedAt = this.context.currentTime + 0.02;
    this.envelope = this.context.createGain();
    this.envelope.gain.setValueAtTime(0, this.startedAt);
    this.envelope.gain.linearRampToValueAtTime(1, this.startedAt + FADE);
    this.envelope.connect(this.master);
    this.gains = this.buffers.map((_, i) => {
      const node = this.context.createGain();
      node.gain.value = i === this.audible ? 1 : 0;
      node.connect(this.envelope);
      return node;
    });
    this.sources = this.buffers.map((buffer, i) => {
      const source = this.context.createBufferSource();
      Object.assign(source, { buffer, loop: this.loop });
      source.connect(this.gains[i]);
      source.start(this.startedAt, Math.min(this.offset, buffer.duration));
      return source;
    });
    const [first] = this.sources;
    first.onended = () => {
      if (first !== this.sources[0]) return;
      this.#stop();
      this.offset = this.seconds;
      this.onchange();
    };
    this.playing = true;
  }

  #stop() {
    if (!this.playing) return;
    const now = this.context.currentTime;
    this.envelope.gain.cancelScheduledValues(now);
    this.envelope.gain.setValueAtTime(this.envelope.gain.value, now);
    this.envelope.gain.linearRampToValueAtTime(0, now + FADE);
    for (const source of this.sources) source.stop(now + FADE);
    Object.assign(this, { sources: [], gains: [], playing: false });
  }
}

/** The ratings of a listener, kept in local storage if the browser allows it. */
class Ratings {
  #key = `dfx-ratings-${shared.identity}`;

  constructor() {
    this.listener = "";
    this.files = {};
    try {
      Object.assign(this, JSON.parse(localStorage.getItem(this.#key)));
    } catch {
      // Storage is disabled or holds other data: start empty.
    }
  }

  /** The order of a file's tracks, shuffled on first use, and its ratings. */
  of(file) {
    this.files[file.name] ??= { order: shuffled([...shared.tracks, shared.anchor]), ratings: {}, revealed: false };
    return this.files[file.name];
  }

  save() {
    try {
      localStorage.setItem(this.#key, JSON.stringify({ listener: this.listener, files: this.files }));
    } catch {
      // Storage is disabled: the ratings are lost when the page closes.
    }
  }

  deleteAll() {
    this.files = {};
    this.save();
  }

  isComplete(name) {
    const of = this.files[name];
    return Boolean(of) && of.order.every((track) => track in of.ratings);
  }

  csv() {
    const rows = [["evaluation", "task", "listener", "file", "place", "method", "rating", "rated_at"]];
    for (const [name, { order, ratings }] of Object.entries(this.files)) {
      order.forEach((track, place) => {
        const rating = ratings[track];
        if (!rating) return;
        const method = track === "target" ? "hidden_reference" : track;
        rows.push([shared.identity, shared.task, this.listener, name, letter(place), method, rating.value, rating.at]);
      });
    }
    const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
  }
}

const $ = (id) => document.getElementById(id);
const letter = (i) => String.fromCharCode(65 + i);
const clock = (seconds) => {
  const tenths = Math.floor(seconds * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor((tenths % 600) / 10)).padStart(2, "0")}.${tenths % 10}`;
};

function shuffled(items) {
  for (let i = items.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

const MAX_OPEN_CURVES = 12; // unfolded initially
const RIVALS = 5;
function colourOf(track) {
  if (["input", "target", "output"].includes(track)) return `var(--${track})`;
  if (track === shared.anchor) return "var(--anchor)";
  const rivals = [...shared.tracks, "reference"].filter((other) => !["input", "target", "output"].includes(other));
  return `var(--rival-${rivals.indexOf(track) % RIVALS})`;
}

const readable = (name) => name.replaceAll("_", " ");

function number(value) {
  if (value === 0) return "0";
  const digits = Math.min(3, Math.max(0, 3 - Math.floor(Math.log10(Math.max(1, Math.abs(value))))));
  return value.toFixed(Math.abs(value) < 0.01 ? 4 : digits).replace(/^-0\.0+$/, "0.0000").replace("-", "−");
}

// --- the page --------------------------------------------------------------------------------------

const player = new Player();
const ratings = new Ratings();
let file = files[0];
let mode = "compare";
let shown = []; // the names of the player's tracks

// Without a target, the page of one rendering has nothing to compare with.
const hasTarget = shared.tracks.includes("target");
const isBlind = () => mode === "blind";
const audibleTrack = () => shown[player.audible];

function show(keepPosition = false) {
  const position = keepPosition ? player.position : 0;
  const ownReference = file.reference ? ["reference"] : [];
  shown = isBlind() ? ["target", ...ratings.of(file).order] : [...shared.tracks, ...ownReference];
  const audible = isBlind() ? 0 : Math.max(0, shown.indexOf("output"));
  const index = files.indexOf(file);
  player.load(
    shown.map((track) => () => bytesOf($(`audio-${index}-${track}`).textContent).buffer),
    file.seconds,
    audible,
  );
  player.seek(position);
  $("seek").max = file.seconds;
  $("whole").textContent = clock(file.seconds);
  $("file").value = index;
  $("place").textContent = `${data.first + index + 1} of ${shared.count}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === files.length - 1;
  $("cut").hidden = file.whole_seconds <= file.seconds + 0.01;
  const [part, whole] = [file.seconds, file.whole_seconds].map(clock);
  $("cut").textContent = `The first ${part} of ${whole}; ${shared.complete}.`;
  $("reference").hidden = isBlind() || !file.reference;
  $("reference").textContent = `The output was made to sound like the reference: ${file.reference}.`;
  $("trouble").hidden = true;
  for (const id of ["blind", "rating-actions"]) $(id).hidden = !isBlind();
  for (const id of ["spectrogram-row", "automation", "knobs", "legend", "numbers"]) $(id).hidden = isBlind();
  for (const id of ["modes", "files", "numbers"]) $(id).hidden ||= !hasTarget;
  showTracks();
  showParameters();
  // In a blind test, only the reference has a waveform.
  $("cursor").style.height = isBlind() ? `${$("tracks").querySelector(".track").offsetHeight}px` : "100%";
  showProgress();
  if (hasTarget && !isBlind()) showNumbers();
  draw();
}

function showTracks() {
  const legend = $("tracks").firstElementChild;
  $("tracks").replaceChildren(legend);
  shown.forEach((track, i) => {
    const isStimulus = isBlind() && i > 0;
    const label = isStimulus ? letter(i - 1) : isBlind() ? "reference" : readable(track);
    const radio = make("input", { type: "radio", name: "track", checked: i === player.audible });
    radio.setAttribute("aria-label", isStimulus ? `Listen to ${label}` : label);
    radio.addEventListener("change", () => player.select(i));
    const key = isBlind() ? i : i + 1;
    const name = make("span", { className: "name" }, make("span", {}, label));
    if (key < 10) name.append(make("kbd", { textContent: key }));
    const row = make(isStimulus ? "div" : "label", { className: "row track" });
    row.dataset.track = isBlind() ? label : track;
    row.style.setProperty("--colour", isStimulus ? "var(--ink)" : colourOf(track));
    if (isStimulus) {
      row.classList.add("stimulus");
      row.classList.toggle("revealed", ratings.of(file).revealed);
      row.append(make("label", { className: "pick" }, radio, name), ratingOf(track, label, name));
      row.addEventListener("pointerdown", () => radio.checked || radio.click());
    } else {
      const canvas = make("canvas", { className: "area" });
      canvas.dataset.waveform = track;
      row.append(radio, name, canvas);
    }
    $("tracks").append(row);
    if (isBlind() && i === 0) {
      const names = ["bad", "poor", "fair", "good", "excellent"].map((text) => make("span", { textContent: text }));
      const scale = make("div", { className: "scale" }, ...names);
      $("tracks").append(make("div", { className: "row", ariaHidden: "true" }, make("span"), scale));
    }
  });
}

function ratingOf(track, label, name) {
  const of = ratings.of(file);
  const given = of.ratings[track];
  const slider = make("input", { type: "range", min: 0, max: 100, step: 1, value: given ? given.value : 0 });
  const value = make("output", { textContent: given ? given.value : "–" });
  slider.setAttribute("aria-label", `Rating of ${label}`);
  slider.classList.toggle("unrated", !given);
  slider.disabled = of.revealed;
  if (of.revealed) {
    const truth = track === "target" ? "hidden reference" : readable(track);
    name.firstElementChild.append(make("span", { className: "truth", textContent: ` ${truth}` }));
  }
  const rate = () => {
    of.ratings[track] = { value: Number(slider.value), at: new Date().toISOString() };
    value.textContent = slider.value;
    slider.classList.remove("unrated");
    ratings.save();
    showProgress();
  };
  slider.addEventListener("input", rate);
  // Confirming the slider's current value fires no input event, but is a rating too.
  slider.addEventListener("click", rate);
  slider.addEventListener("keyup", ({ key }) => /^(Arrow|Home|End|Page)/.test(key) && rate());
  return make("div", { className: "rating" }, slider, value);
}

function showProgress() {
  if (!isBlind()) return;
  const complete = files.filter(({ name }) => ratings.isComplete(name)).length;
  const of = ratings.of(file);
  const rated = Object.keys(of.ratings).length;
  const whole = `${complete} of ${files.length} files of this page complete`;
  $("progress").textContent = `${rated} of ${of.order.length} rated here; ${whole}.`;
  $("reveal").disabled = of.revealed;
  $("download").disabled = !Object.values(ratings.files).some(({ ratings: some }) => Object.keys(some).length);
}

/** Whether the model moves a parameter by less than a tenth of its range, on its scale. */
function isStill(parameter) {
  const parts = file.automation[parameter.name].map((value) => partOf(value, parameter));
  return Math.max(...parts) - Math.min(...parts) < 0.1;
}

/** The place of a value in its range, from 0 to 1 on the parameter's scale. */
function partOf(value, { low, high, scale }) {
  const warp = scale === "log" ? Math.log : (number) => number;
  return (warp(value) - warp(low)) / (warp(high) - warp(low));
}

const unfolded = new Map(); // effects that the user folded or unfolded

/** A curve for each parameter that moves in this file, and a knob for each of the others. */
function showParameters() {
  const effects = Map.groupBy(shared.parameters, ({ name }) => name.split(".")[0]);
  const [lanes, knobs] = [[], []];
  let open = 0;
  for (const [effect, parameters] of effects) {
    const moving = parameters.filter((parameter) => !isStill(parameter));
    const still = parameters.filter(isStill);
    if (moving.length) {
      const fits = open + moving.length <= MAX_OPEN_CURVES;
      if (fits) open += moving.length;
      const title = readable(effect) + (fits ? "" : ` (${moving.length})`);
      const lane = make("details", { open: unfolded.get(effect) ?? fits }, make("summary", {}, title));
      lane.firstElementChild.addEventListener("click", () => unfolded.set(effect, !lane.open));
      lane.append(...moving.map(curveOf));
      lanes.push(lane);
    }
    if (still.length) {
      const group = make("div", {}, ...still.map(knobOf));
      knobs.push(make("section", {}, make("h3", { textContent: readable(effect) }), group));
    }
  }
  $("automation").replaceChildren(...lanes);
  $("knobs").replaceChildren(...knobs);
}

function curveOf(parameter) {
  const canvas = make("canvas", { className: "area" });
  canvas.setAttribute("role", "img");
  const [low, high] = [parameter.low, parameter.high].map((value) => formatBound(value, parameter));
  canvas.setAttribute("aria-label", `${readable(parameter.name)} over time, ${low} to ${high}`);
  const name = make("span", { className: "name" }, make("span", { textContent: labelOf(parameter) }), make("b"));
  const axis = make("div", { className: "axis" }, ...[high, low].map((text) => make("span", { textContent: text })));
  axis.setAttribute("aria-hidden", "true");
  const row = make("div", { className: "row curve" }, name, canvas, axis);
  row.dataset.parameter = parameter.name;
  return row;
}

function knobOf(parameter) {
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const arc = "M -11.3 11.3 A 16 16 0 1 1 11.3 11.3"; // 270 degrees
  const picture = draw("svg", { viewBox: "-22 -22 44 44", "aria-hidden": "true" });
  const turned = `rotate(${angleOf(partOf(parameter.default, parameter))})`;
  picture.append(
    draw("path", { class: "whole", d: arc }),
    draw("path", { class: "part", d: arc, pathLength: 1 }),
    draw("path", { class: "hand", d: "M 0 -5 V -10" }),
    draw("circle", { class: "dot", cy: -20, r: 1.5, transform: turned }),
  );
  const range = `${number(parameter.low)} to ${formatBound(parameter.high, parameter)}`;
  const name = make("span", { textContent: labelOf(parameter) });
  const knob = make("div", { className: "knob", title: `${readable(parameter.name)}, ${range}` }, picture, make("b"), name);
  knob.dataset.parameter = parameter.name;
  return knob;
}

const angleOf = (part) => 270 * part - 135;

function turn(knob, part) {
  knob.querySelector(".part").setAttribute("stroke-dasharray", `${part} 2`);
  knob.querySelector(".hand").setAttribute("transform", `rotate(${angleOf(part)})`);
}

/** The name of a parameter without its effect and its unit. */
function labelOf({ name, unit }) {
  const bare = name.slice(name.indexOf(".") + 1);
  const suffix = `_${unit.toLowerCase()}`;
  return readable(unit && bare.endsWith(suffix) ? bare.slice(0, -suffix.length) : bare);
}

const LARGER = { Hz: "kHz", ms: "s" };

/** The value and the unit that it is read in: 5 kHz rather than 5000 Hz. */
const scaled = (value, unit) => (Math.abs(value) >= 1000 && LARGER[unit] ? [value / 1000, LARGER[unit]] : [value, unit]);

const joined = (text, unit) => (unit ? `${text}\u00a0${unit}` : text).replace("-", "−");

function withUnit(value, parameter) {
  const [size, unit] = scaled(value, parameter.unit);
  return joined(number(size), unit);
}

function formatBound(value, parameter) {
  const [size, unit] = scaled(value, parameter.unit);
  return joined(String(Number(size.toPrecision(4))), unit);
}

/** The values of a parameter for the audible track: the model's over time, or a baseline's constant. */
function valuesOf(parameter) {
  const constant = file.settings[audibleTrack()];
  if (constant) return { seconds: [0], values: [constant[parameter.name]] };
  return { seconds: file.automation.seconds, values: file.automation[parameter.name] };
}

function indexAt(seconds, position) {
  let low = 0;
  let high = seconds.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (seconds[middle] <= position + 1e-9) low = middle;
    else high = middle - 1;
  }
  return low;
}

function showNumbers() {
  const row = (method, name) => {
    const value = file.metrics[method]?.[name];
    if (value !== undefined) return { value };
    return { reason: file.left_out[method]?.[name] };
  };
  // Values that are displayed alike count as equal.
  const isLowest = ({ value }, others, name) =>
    shared.less_is_better.includes(name) && others.length > 1 &&
    number(value) === number(Math.min(...others.map((other) => other.value)));
  const excludesZero = ({ low, high }) => low !== undefined && (low > 0 || high < 0);
  const meanOf = (means) => (method, name) => {
    const mean = means[method]?.[name];
    if (!mean) return {};
    return mean.low === null ? { value: mean.mean, files: mean.files } : { value: mean.mean, ...mean };
  };
  const rivals = Object.keys(shared.differences);
  table($("of-file"), shared.methods, row, isLowest);
  table($("means"), shared.methods, meanOf(shared.means), () => false);
  table($("differences"), rivals, meanOf(shared.differences), excludesZero);
  $("rivals").hidden = !rivals.length;
  $("means-title").textContent = `All ${shared.count} files`;
  $("means-note").textContent = "Means ± half of their 95 % confidence intervals.";
  $("differences-note").textContent =
    "The output's values minus those of each other method, file by file: means ± half of their 95 % confidence " +
    "intervals, which count each group of files once. Bold: the interval excludes 0. Others may be chance.";
}

/** cellOf: maps a method and a metric to a cell; isBold: a cell, those of its row that have values, and the metric. */
function table(element, methods, cellOf, isBold) {
  const head = make("tr", {}, make("td"), ...methods.map((method) => {
    const cell = make("th", { scope: "col", textContent: readable(method) });
    cell.style.setProperty("--colour", colourOf(method));
    return cell;
  }));
  const body = Object.entries(shared.metrics).map(([name, { title, sentence }]) => {
    const cells = methods.map((method) => cellOf(method, name));
    const withValue = cells.filter(({ value }) => value !== undefined);
    const heading = make("th", { scope: "row" }, title, make("small", { textContent: sentence }));
    return make("tr", {}, heading, ...cells.map((of) => {
      const { value, low, files: count, reason } = of;
      if (value === undefined) return make("td", { className: "none", textContent: reason || "–" });
      const cell = make("td", { textContent: number(value), className: isBold(of, withValue, name) ? "best" : "" });
      if (low < value) cell.append(make("span", { className: "half", textContent: ` ±${number(value - low)}` }));
      if (count < shared.count) cell.append(make("span", { className: "half", textContent: ` of ${count}` }));
      return cell;
    }));
  });
  element.replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
}

// --- drawing ---------------------------------------------------------------------------------------

const dark = window.matchMedia("(prefers-color-scheme: dark)");

/** Clear a canvas, and return its context at the screen's resolution, in CSS pixels. */
function surface(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

function draw() {
  for (const canvas of document.querySelectorAll("[data-waveform]")) drawWaveform(canvas);
  if (isBlind()) return;
  drawSpectrogram();
  drawCurves();
}

function drawWaveform(canvas) {
  const { columns, levels } = file.waveforms[canvas.dataset.waveform];
  const bytes = new Int8Array(bytesOf(levels).buffer);
  const { context, width, height } = surface(canvas);
  const y = (level) => (height / 2) * (1 - (0.94 * level) / 127);
  context.fillStyle = getComputedStyle(canvas).color;
  context.beginPath();
  const x = (i) => (i * width) / columns;
  context.moveTo(0, y(bytes[columns]) - 0.4);
  for (let i = 0; i < columns; i++) context.lineTo(x(i + 0.5), y(bytes[columns + i]) - 0.4);
  context.lineTo(width, y(bytes[2 * columns - 1]) - 0.4);
  context.lineTo(width, y(bytes[columns - 1]) + 0.4);
  for (let i = columns - 1; i >= 0; i--) context.lineTo(x(i + 0.5), y(bytes[i]) + 0.4);
  context.lineTo(0, y(bytes[0]) + 0.4);
  context.fill();
}

function drawSpectrogram() {
  const canvas = $("spectrogram");
  const track = audibleTrack();
  const { columns, levels } = file.spectrograms[track];
  const bytes = bytesOf(levels);
  const colours = bytesOf(shared.colours[dark.matches ? "dark" : "light"]);
  const picture = new ImageData(columns, shared.bands);
  for (let band = 0; band < shared.bands; band++) {
    for (let i = 0; i < columns; i++) {
      const level = bytes[band * columns + i];
      const at = 4 * ((shared.bands - 1 - band) * columns + i);
      picture.data.set(colours.subarray(3 * level, 3 * level + 3), at);
      picture.data[at + 3] = 255;
    }
  }
  const small = make("canvas", { width: columns, height: shared.bands });
  small.getContext("2d").putImageData(picture, 0, 0);
  const { context, width, height } = surface(canvas);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
  let last = Infinity;
  const ticks = shared.ticks.filter(({ height: part }) => {
    const y = height * (1 - part);
    if (last - y < 14) return false;
    last = y;
    return true;
  });
  $("frequencies").replaceChildren(...ticks.map((tick) => {
    const label = make("span", { textContent: tick.name });
    label.style.bottom = `${100 * tick.height}%`;
    return label;
  }));
  canvas.setAttribute("aria-label", `Spectrogram of ${readable(track)}`);
  const name = make("strong", { textContent: readable(track) });
  name.style.color = colourOf(track);
  $("spectrogram-name").replaceChildren(make("span", { textContent: "spectrogram" }), name);
}

function drawCurves() {
  const isModel = !file.settings[audibleTrack()];
  const colour = isModel ? "var(--output)" : colourOf(audibleTrack());
  for (const id of ["automation", "knobs"]) $(id).style.setProperty("--colour", colour);
  for (const row of document.querySelectorAll(".curve")) {
    const parameter = parameterOf(row);
    const canvas = row.querySelector("canvas");
    const { context, width, height } = surface(canvas);
    const { seconds, values } = valuesOf(parameter);
    const y = (value) => 5 + (height - 10) * (1 - partOf(value, parameter));
    context.strokeStyle = getComputedStyle($("legend")).color;
    context.setLineDash([2, 4]);
    context.globalAlpha = 0.7;
    context.beginPath();
    context.moveTo(0, y(parameter.default));
    context.lineTo(width, y(parameter.default));
    context.stroke();
    context.globalAlpha = 1;
    context.setLineDash([]);
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.beginPath();
    context.moveTo(0, y(values[0]));
    values.forEach((value, i) => {
      const end = i + 1 < seconds.length ? seconds[i + 1] : file.seconds;
      context.lineTo((width * seconds[i]) / file.seconds, y(value));
      // A held value is constant over its frame; others move on straight lines.
      const isHeld = shared.interpolation === "hold" || i + 1 === seconds.length;
      if (isHeld) context.lineTo((width * end) / file.seconds, y(value));
    });
    context.stroke();
  }
}

const parameterOf = (element) => shared.parameters.find(({ name }) => name === element.dataset.parameter);

/** Update the cursor, the clock and the values during playback. */
function tick() {
  const position = player.position;
  const part = file.seconds ? position / file.seconds : 0;
  $("cursor").style.left = `calc(var(--names) + ${part} * (100% - var(--names) - var(--gutter)))`;
  $("now").textContent = clock(position);
  if (document.activeElement !== $("seek") || player.playing) $("seek").value = position;
  $("seek").setAttribute("aria-valuetext", `${position.toFixed(1)} seconds`);
  if (!isBlind()) {
    for (const element of document.querySelectorAll("[data-parameter]")) {
      const parameter = parameterOf(element);
      const { seconds, values } = valuesOf(parameter);
      const value = values[indexAt(seconds, position)];
      const shownValue = element.querySelector("b");
      const text = withUnit(value, parameter);
      if (shownValue.textContent === text) continue;
      shownValue.textContent = text;
      if (element.className === "knob") turn(element, partOf(value, parameter));
    }
  }
  if (player.playing) requestAnimationFrame(tick);
}

// --- controls --------------------------------------------------------------------------------------

let drawn = null;
player.onchange = () => {
  $("play").classList.toggle("playing", player.playing);
  $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  const radios = document.querySelectorAll('input[name="track"]');
  if (radios[player.audible]) radios[player.audible].checked = true;
  if (!isBlind() && drawn !== audibleTrack() && radios.length) {
    drawn = audibleTrack();
    drawSpectrogram();
    drawCurves();
  }
  requestAnimationFrame(tick);
};

async function toggle() {
  if (player.playing) {
    player.pause();
    return;
  }
  $("play").classList.add("waiting");
  try {
    await player.play();
  } catch (error) {
    $("trouble").textContent = `This browser cannot play the file: ${error.message}`;
    $("trouble").hidden = false;
  }
  $("play").classList.remove("waiting");
}

function go(index) {
  if (!files[index]) return;
  const wasPlaying = player.playing;
  file = files[index];
  show();
  if (wasPlaying) toggle();
}

function pick(track) {
  if (track >= 0 && track < shown.length) player.select(track);
}

$("play").addEventListener("click", toggle);
$("seek").addEventListener("input", () => player.seek(Number($("seek").value)));
$("loop").addEventListener("change", () => player.setLoop($("loop").checked));
$("volume").addEventListener("input", () => player.setVolume(Number($("volume").value)));
$("previous").addEventListener("click", () => go(files.indexOf(file) - 1));
$("next").addEventListener("click", () => go(files.indexOf(file) + 1));
$("file").addEventListener("change", () => go(Number($("file").value)));
$("listener").addEventListener("input", () => {
  ratings.listener = $("listener").value;
  ratings.save();
});
$("download").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([ratings.csv()], { type: "text/csv" }));
  make("a", { href: url, download: "ratings.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});
$("reveal").addEventListener("click", () => {
  ratings.of(file).revealed = true;
  ratings.save();
  show(true);
});
$("delete").addEventListener("click", () => {
  if (!confirm("Delete the ratings of all files?")) return;
  ratings.deleteAll();
  show();
});
for (const radio of document.querySelectorAll('input[name="mode"]')) {
  radio.addEventListener("change", () => {
    mode = radio.value;
    show();
  });
}

// Press or drag on a waveform or spectrogram to seek. A touch may also begin a scroll, so it seeks on release.
let dragged = null;
let pressX = 0;
const isTouch = ({ pointerType }) => pointerType === "touch";
$("timeline").addEventListener("pointerdown", (event) => {
  if (!event.target.classList.contains("area")) return;
  dragged = event.target;
  pressX = event.clientX;
  if (!isTouch(event)) seekTo(event);
});
window.addEventListener("pointermove", (event) => {
  if (dragged && (!isTouch(event) || Math.abs(event.clientX - pressX) > 8)) seekTo(event);
});
window.addEventListener("pointerup", (event) => {
  if (dragged && isTouch(event)) seekTo(event);
  dragged = null;
});
window.addEventListener("pointercancel", () => (dragged = null));

function seekTo(event) {
  const { left, width } = dragged.getBoundingClientRect();
  player.seek((file.seconds * (event.clientX - left)) / width);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if (target.matches('select, input[type="text"]')) return;
  if (key === " " && !target.matches('button, input[type="checkbox"], a')) {
    event.preventDefault();
    toggle();
  } else if (/^[0-9]$/.test(key)) {
    pick(Number(key) - (isBlind() ? 0 : 1));
  } else if ((key === "ArrowLeft" || key === "ArrowRight") && !target.matches("input, .scroll")) {
    event.preventDefault();
    const step = Math.max(0.1, file.seconds / 20);
    player.seek(player.position + (key === "ArrowLeft" ? -step : step));
  }
});

new ResizeObserver(draw).observe($("timeline"));
dark.addEventListener("change", draw);

files.forEach(({ name }, i) => $("file").append(make("option", { value: i, textContent: name })));
if (shared.pages.length > 1) {
  $("pages").append("pages", ...shared.pages.map((page, i) =>
    i === data.page ? make("b", { textContent: ` ${i + 1}` }) : make("a", { href: page, textContent: i + 1 })));
}
$("listener").value = ratings.listener;
show();
window.dfx = { player, ratings };
