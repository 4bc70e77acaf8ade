// Drawing: numbers with units, axes, lines. The only state is where the pointer rests on a chart.
const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}
export const element = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);
export const html = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(digits))}M`;
  if (value >= 1e4) return `${Number((value / 1e3).toPrecision(digits))}k`;
  return `${Number(value.toPrecision(digits))}`;
}

export function seconds(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Number((value * 1e3).toPrecision(digits))} ms`;
  return value < 120 ? `${Number(value.toPrecision(digits))} s` : `${Number((value / 60).toPrecision(digits))} min`;
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const roundDollars = (value) => `$${Number(value.toPrecision(3))}`;
export const dollars = (value) => `$${value !== 0 && value < 0.995 ? value.toFixed(3) : value.toFixed(2)}`;
export const ago = (s) => (s > -0.5 ? "now" : s <= -60 && s % 60 === 0 ? `−${-s / 60} min` : `−${Math.round(-s)} s`);

// Round steps, as many as have room: 1, 2, 5 of every decade on a log axis, else the decades alone.
function ticks({ range: [low, high], log, steps }, room) {
  if (log) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of high < 9 * low ? [1, 1.5, 2, 3, 4, 5, 7] : [1, 2, 5]) all.push(Number(`${digit}e${power}`));
    const inside = all.filter((t) => t >= low * 0.999 && t <= high * 1.001);
    return inside.length <= room ? inside : inside.filter((t) => Number.isInteger(Number(Math.log10(t).toFixed(9))));
  }
  const rough = (high - low) / Math.max(1, Math.min(5, room)), unit = 10 ** Math.floor(Math.log10(rough));
  const step = (steps ?? [1, 2, 5, 10].map((m) => m * unit)).find((s) => s >= rough) ?? rough;
  const found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) found.push(t);
  return found;
}
export const TIME_STEPS = [10, 15, 30, 60, 120, 180, 300];

function scale({ range: [low, high], log }, from, to) {
  const f = log ? Math.log : (v) => v;
  return (v) => from + ((f(v) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
}

// Labels in the right margin, moved apart where they would touch.
function placed(labels, top, bottom) {
  const apart = 14, sorted = [...labels].sort((a, b) => a.y - b.y);
  sorted.forEach((l, i) => { l.y = Math.max(l.y, i ? sorted[i - 1].y + apart : top); });
  for (let i = sorted.length - 1, floor = bottom; i >= 0; i--, floor -= apart) sorted[i].y = Math.min(sorted[i].y, floor);
  return sorted;
}

function path(points, sx, sy, [low, high], step) {
  let d = "", before = null;
  for (const [px, py] of points) {
    if (py === null) { before = null; continue; }
    const x = sx(px).toFixed(1), y = sy(Math.min(Math.max(py, low), high)).toFixed(1);
    d += before === null ? `M${x} ${y}` : step ? `H${x}V${y}` : `L${x} ${y}`;
    before = y;
  }
  return d;
}

// x, y: {range, log, format, title}; series: {points: [[x, y|null], …], mark, label, step};
// lines: {y, mark, label} across; dots: {x, y, mark, title}; marks: {x, kind, key, title} on the x axis;
// between: [[x, low, high], …] shaded; note: {x, low, high, text}: a span, shown in the
// upper right corner.
export function chart(holder, { series, x, y, lines = [], dots = [], marks = [], between = [], note = null, label, tall = 0.5 }) {
  // Drawn in real pixels, so that text stays readable on a phone.
  const width = Math.max(260, holder.clientWidth || 600), height = Math.round(Math.min(300, Math.max(190, width * tall)));
  const named = [...series, ...lines].filter((s) => s.label);
  const right = Math.max(14, ...named.map((s) => s.label.length * 7.4 + 16));
  const left = 14 + Math.max(...[y.range[0], y.range[1]].map((v) => y.format(v).length), 5) * 6.2, top = 26, bottom = marks.length ? 46 : x.title ? 40 : 26;
  const sx = scale(x, left, width - right), sy = scale(y, height - bottom, top);
  const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const t of ticks(y, (height - top - bottom) / 26)) {
    if (!y.format(t)) continue;
    svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: sy(t), y2: sy(t) }));
    svg.append(element("text", { x: left - 8, y: sy(t) + 4, "text-anchor": "end" }, y.format(t)));
  }
  for (const t of ticks(x, (width - left - right) / 62)) {
    svg.append(element("line", { class: "grid", x1: sx(t), x2: sx(t), y1: height - bottom, y2: height - bottom + 4 }));
    svg.append(element("text", { x: sx(t), y: height - bottom + 17, "text-anchor": "middle" }, x.format(t)));
  }
  svg.append(element("text", { x: 0, y: 12 }, y.title));
  if (x.title) svg.append(element("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, x.title));
  if (between.length > 1) {
    const there = between.map(([px, , high]) => `${sx(px)} ${sy(high)}`), back = [...between].reverse().map(([px, low]) => `${sx(px)} ${sy(low)}`);
    svg.append(element("path", { class: "between", d: `M${[...there, ...back].join("L")}z` }));
  }
  for (const line of lines) svg.append(element("line", { class: line.mark, x1: left, x2: width - right, y1: sy(line.y), y2: sy(line.y) }));
  for (const { points, mark, step } of series) svg.append(element("path", { class: mark, d: path(points, sx, sy, y.range, step) }));
  const ends = series.map((s) => ({ label: s.label, mark: s.mark, at: s.points.findLast((p) => p[1] !== null)?.[1] }));
  const margin = [...ends, ...lines.map((l) => ({ label: l.label, mark: l.mark, at: l.y }))].filter((l) => l.label && l.at !== undefined);
  for (const l of placed(margin.map((m) => ({ ...m, y: sy(Math.min(Math.max(m.at, y.range[0]), y.range[1])) })), top, height - bottom))
    svg.append(element("text", { class: `${l.mark}-text`, x: width - right + 8, y: l.y + 4 }, l.label));
  for (const dot of dots)
    svg.append(element("circle", { class: dot.mark, cx: sx(dot.x), cy: sy(dot.y), r: dot.mark === "over" ? 5 : 3.5 }, element("title", {}, dot.title)));
  if (note) {
    svg.append(element("line", { class: "worst", x1: sx(note.x), x2: sx(note.x), y1: sy(note.low), y2: sy(note.high) }));
    svg.append(element("text", { class: "note-text", x: width - right, y: top - 2, "text-anchor": "end" }, note.text));
  }
  for (const mark of marks) {
    const at = sx(mark.x), foot = height - bottom + 22;
    const shapes = { up: `M${at - 6} ${foot + 11}h12l-6 -11z`, down: `M${at - 6} ${foot}h12l-6 11z` };
    svg.append(element("path", { class: `mark ${mark.kind}`, "data-key": mark.key, d: shapes[mark.kind] ?? `M${at - 6} ${foot + 5.5}l6 -6l6 6l-6 6z` }, element("title", {}, mark.title)));
  }
  holder.replaceChildren(svg);
  pointed(holder, svg, { series, x, y, sx, left, edge: width - right, top, foot: height - bottom });
}

// Where the pointer rests, the values there.
function pointed(holder, svg, { series, x, y, sx, left, edge, top, foot }) {
  holder.onpointermove = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    holder.pointed = at >= left && at <= edge ? at : null;
    show();
  };
  holder.onpointerleave = () => { holder.pointed = null; show(); };
  function show() {
    svg.querySelector(".readout")?.remove();
    if (holder.pointed == null) return;
    const points = series.flatMap((s) => s.points).filter((p) => p[1] !== null);
    if (!points.length) return;
    const px = points.reduce((a, b) => (Math.abs(sx(b[0]) - holder.pointed) < Math.abs(sx(a[0]) - holder.pointed) ? b : a))[0];
    const values = series.map((s) => [s, s.points.find((p) => p[0] === px)?.[1]]).filter(([, v]) => v !== undefined && v !== null);
    const text = [x.format(px), ...values.map(([s, v]) => `${s.label} ${y.format(v)}`)].join("  ·  ");
    const wide = text.length * 6.4 + 16, from = Math.min(Math.max(sx(px) - wide / 2, left), Math.max(left, edge - wide));
    svg.append(element("g", { class: "readout" },
      element("line", { x1: sx(px), x2: sx(px), y1: top, y2: foot }),
      element("rect", { x: from, y: top - 9, width: wide, height: 20, rx: 4 }),
      element("text", { x: from + 8, y: top + 5 }, text)));
  }
  show();
}
