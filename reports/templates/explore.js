"use strict";
// Draws what the page's data describe, and moves it: no library, nothing loaded.
const NS = "http://www.w3.org/2000/svg";
const WIDTH = 960, LEFT = 64, RIGHT = 16, TOP = 12, BELOW = 44;
const COLOURS = ["var(--experts)", "var(--combine)", "var(--dispatch)", "var(--ink)", "var(--muted)"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

function node(name, attributes = {}, text = "") {
  const found = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text) found.textContent = text;
  return found;
}
function element(name, attributes = {}, text = "") {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text) found.textContent = text;
  return found;
}
function number(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  if (size >= 1e4 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 100 ? Math.ceil(Math.log10(size)) : 3)));
}
function labelled(root, text, control) {
  const label = element("label", {}, text + " ");
  label.append(control);
  root.append(label);
  return control;
}
function choice(root, text, names) {
  const select = labelled(root, text, element("select"));
  names.forEach((name, place) => select.append(element("option", { value: place }, name)));
  return select;
}
function slider(root, text, most) {
  const range = element("input", { type: "range", min: 0, max: most, step: 1, value: 0 });
  return labelled(root, text, range);
}
function scale(domain, log, from, to) {
  const turn = log ? Math.log10 : (value) => value;
  const low = turn(domain[0]), high = turn(domain[1]);
  return (value) => from + ((turn(value) - low) / (high - low || 1)) * (to - from);
}
function ticks(domain, log) {
  if (log) {
    const found = [];
    for (let power = Math.ceil(Math.log10(domain[0])); power <= Math.log10(domain[1]); power++)
      found.push(10 ** power);
    return found.length > 1 ? found : domain;
  }
  const step = 10 ** Math.floor(Math.log10(domain[1] - domain[0] || 1));
  const wide = (domain[1] - domain[0]) / step > 5 ? 2 * step : step;
  const found = [];
  for (let at = Math.ceil(domain[0] / wide) * wide; at <= domain[1]; at += wide) found.push(at);
  return found;
}
function axes(svg, spec, height) {
  const x = scale(spec.x.domain, spec.x.log, LEFT, WIDTH - RIGHT);
  const y = scale(spec.y.domain, spec.y.log, height - BELOW, TOP);
  for (const at of ticks(spec.x.domain, spec.x.log))
    svg.append(node("text", { x: x(at), y: height - BELOW + 18, class: "tick", "text-anchor": "middle" }, number(at)));
  for (const at of ticks(spec.y.domain, spec.y.log)) {
    svg.append(node("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at), class: "grid" }));
    svg.append(node("text", { x: LEFT - 8, y: y(at) + 4, class: "tick", "text-anchor": "end" }, number(at)));
  }
  svg.append(node("text", { x: LEFT, y: height - 4, class: "tick" }, `${spec.x.name}; vertically, ${spec.y.name}`));
  return [x, y];
}
function drawing(root, height, title) {
  const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "group", "aria-label": title });
  root.append(svg);
  return svg;
}

// A heat map of several variants; arrow keys or the pointer choose a cell, a slider its row.
function heat(root, spec) {
  const controls = root.appendChild(element("div", { class: "controls" }));
  const variant = choice(controls, spec.variant_name, spec.variants.map((one) => one.name));
  const row = slider(controls, spec.row_name, spec.rows.length - 1);
  const said = root.appendChild(element("p", { class: "said", "aria-live": "polite" }));
  const cell = Math.max(3, Math.min(26, 620 / spec.rows.length));
  const height = TOP + cell * spec.rows.length + BELOW;
  const svg = drawing(root, height, spec.title);
  const bars = drawing(root, 190, `${spec.title}: one ${spec.row_name}`);
  const wide = (WIDTH - LEFT - RIGHT) / spec.columns.length;
  const most = Math.max(...spec.variants.flatMap((one) => one.values.flat()));
  let column = 0;
  svg.setAttribute("tabindex", "0");
  function colour(value) {
    if (!spec.even) return `color-mix(in srgb, var(--experts) ${Math.round((100 * value) / (most || 1))}%, var(--card))`;
    const off = value > 1 ? (value - 1) / (most - 1 || 1) : 1 - value;
    return `color-mix(in srgb, var(${value > 1 ? "--combine" : "--experts"}) ${Math.round(100 * Math.min(1, off))}%, var(--card))`;
  }
  function say() {
    const values = spec.variants[variant.value].values[row.value];
    said.textContent = `${spec.variants[variant.value].name}, ${spec.row_name} ${spec.rows[row.value]}, ` +
      `${spec.column_name} ${spec.columns[column]}: ${number(values[column])} ${spec.unit}`;
    svg.querySelectorAll(".chosen").forEach((old) => old.remove());
    svg.append(node("rect", { class: "chosen", x: LEFT + wide * column, y: TOP + cell * row.value, width: wide, height: cell }));
    bars.replaceChildren();
    const [, y] = axes(bars, {
      x: { name: `${spec.column_name}s of ${spec.row_name} ${spec.rows[row.value]}`, domain: [0, spec.columns.length] },
      y: { name: spec.unit, domain: [0, most] } }, 190);
    values.forEach((value, place) => bars.append(node("rect", {
      x: LEFT + wide * place + wide * 0.1, width: wide * 0.8, y: y(value), height: y(0) - y(value),
      fill: place === column ? "var(--combine)" : "var(--experts)" })));
  }
  function draw() {
    svg.replaceChildren();
    spec.variants[variant.value].values.forEach((values, down) => values.forEach((value, across) => {
      const one = node("rect", { x: LEFT + wide * across, y: TOP + cell * down, width: wide + 0.2, height: cell + 0.2, fill: colour(value) });
      one.addEventListener("pointerenter", () => { row.value = down; column = across; say(); });
      svg.append(one);
    }));
    const step = Math.ceil(spec.rows.length / 12);
    spec.rows.forEach((label, down) => { if (down % step === 0)
      svg.append(node("text", { x: LEFT - 8, y: TOP + cell * (down + 0.5) + 4, class: "tick", "text-anchor": "end" }, label)); });
    svg.append(node("text", { x: LEFT, y: height - 12, class: "tick" }, `${spec.column_name}; vertically, ${spec.row_name}`));
    say();
  }
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    row.value = Number(row.value) + move[0];
    column = Math.max(0, Math.min(spec.columns.length - 1, column + move[1]));
    say();
  });
  variant.addEventListener("change", draw);
  row.addEventListener("input", say);
  draw();
}

// Points with intervals, groups that can be left out, and a diagonal for parity.
function points(root, spec) {
  const controls = root.appendChild(element("div", { class: "controls" }));
  const groups = [...new Set(spec.points.map((one) => one.group))];
  const boxes = groups.map((name) => {
    const box = element("input", { type: "checkbox" });
    box.checked = true;
    const label = element("label");
    label.append(box, ` ${name}`);
    controls.append(label);
    box.addEventListener("change", draw);
    return box;
  });
  const said = root.appendChild(element("p", { class: "said", "aria-live": "polite" }));
  const svg = drawing(root, 420, spec.title);
  function draw() {
    svg.replaceChildren();
    const [x, y] = axes(svg, spec, 420);
    if (spec.diagonal) svg.append(node("line", { class: "grid strong", x1: x(spec.x.domain[0]), y1: y(spec.x.domain[0]), x2: x(spec.x.domain[1]), y2: y(spec.x.domain[1]) }));
    let shown = 0;
    for (const one of spec.points) {
      const group = groups.indexOf(one.group);
      if (!boxes[group].checked) continue;
      shown++;
      if (one.lo !== undefined && one.lo !== null)
        svg.append(node("line", { x1: x(one.x), x2: x(one.x), y1: y(one.lo), y2: y(one.hi), stroke: COLOURS[group % 5], "stroke-width": 2, opacity: 0.45, "pointer-events": "none" }));
      const marks = [["circle", { cx: x(one.x), cy: y(one.y), r: 5 }], ["rect", { x: x(one.x) - 4.5, y: y(one.y) - 4.5, width: 9, height: 9 }],
        ["path", { d: `M${x(one.x)} ${y(one.y) - 6} l6 11 h-12 z` }]];
      const [name, place] = marks[group % 3];
      const mark = node(name, { ...place, fill: COLOURS[group % 5], class: "mark" });
      if (spec.points.length <= 200) mark.setAttribute("tabindex", "0");
      mark.setAttribute("aria-label", one.label);
      const say = () => { said.textContent = one.label; };
      mark.addEventListener("pointerenter", say);
      mark.addEventListener("focus", say);
      svg.append(mark);
    }
    said.textContent = `${shown} of ${spec.points.length} shown`;
  }
  draw();
}

// Curves against a size, and a slider that reads them.
function lines(root, spec) {
  const controls = root.appendChild(element("div", { class: "controls" }));
  const measures = choice(controls, "show", spec.measures.map((one) => one.name));
  const sizes = spec.sizes;
  const range = slider(controls, spec.size_name, sizes.length - 1);
  range.value = Math.max(0, sizes.indexOf(spec.chosen));
  const svg = drawing(root, 360, spec.title);
  const table = root.appendChild(element("table", { class: "read" }));
  table.setAttribute("aria-live", "polite");
  function draw() {
    svg.replaceChildren();
    const measure = spec.measures[measures.value], at = Number(range.value);
    const most = Math.max(...measure.series.flatMap((one) => one.values.filter((value) => value !== null)));
    const [x, y] = axes(svg, { x: { name: spec.size_name, domain: [sizes[0], sizes[sizes.length - 1]] },
      y: { name: measure.name, domain: [0, 1.05 * most] } }, 360);
    svg.append(node("line", { class: "grid strong", x1: x(sizes[at]), x2: x(sizes[at]), y1: TOP, y2: 360 - BELOW }));
    table.replaceChildren(element("caption", {}, `${spec.size_name} ${sizes[at]}${spec.notes ? `: ${spec.notes[at]}` : ""}`));
    measure.series.forEach((one, place) => {
      const path = one.values.map((value, k) => (value === null ? "" : `${k && one.values[k - 1] !== null ? "L" : "M"}${x(sizes[k])} ${y(value)}`)).join("");
      svg.append(node("path", { d: path, fill: "none", stroke: COLOURS[place % 5], "stroke-width": 2.2, "stroke-dasharray": DASHES[Math.floor(place / 5) % 4] }));
      const line = element("tr"), name = element("th", { scope: "row" }, one.name);
      const key = element("i");
      key.style.background = COLOURS[place % 5];
      name.prepend(key);
      line.append(name, element("td", {}, `${number(one.values[at])} ${measure.unit}`));
      table.append(line);
    });
  }
  measures.addEventListener("change", draw);
  range.addEventListener("input", draw);
  draw();
}

const KINDS = { heat, points, lines };
for (const root of document.querySelectorAll("[data-explore]"))
  KINDS[root.dataset.explore](root, JSON.parse(root.querySelector("script").textContent));
