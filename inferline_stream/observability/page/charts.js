// Drawing: numbers with units, axes, lines. No state.
const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function html(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(digits))}M`;
  if (value >= 1e4) return `${Number((value / 1e3).toPrecision(digits))}k`;
  return `${Number(value.toPrecision(digits))}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
  return value < 120 ? `${Number(value.toPrecision(3))} s` : `${Number((value / 60).toPrecision(3))} min`;
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const dollars = (value) => `$${value < 1 ? value.toFixed(3) : value.toFixed(2)}`;

// Round steps that leave four to six ticks; powers of ten, thinned, on a log axis.
function ticks(low, high, log) {
  if (log) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of [1, 2, 5]) all.push(digit * 10 ** power);
    const inside = all.filter((t) => t >= low * 0.999 && t <= high * 1.001);
    return inside.length > 7 ? inside.filter((t) => Math.abs(Math.log10(t) % 1) < 1e-9) : inside;
  }
  const rough = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) found.push(t);
  return found;
}

function scale([low, high], from, to, log) {
  const f = log ? Math.log : (v) => v;
  return (v) => from + ((f(v) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
}

// series: [{points: [[x, y], …], mark: "live", label}], x and y: {range, log, format, title}
export function chart(holder, { series, x, y, lines = [], dots = [], label }) {
  // Drawn in real pixels, so that text stays readable on a phone.
  const width = Math.max(280, holder.clientWidth || 600), height = Math.round(Math.min(320, Math.max(210, width * 0.5)));
  const left = 58, right = 16, top = 22, bottom = 40;
  const sx = scale(x.range, left, width - right, x.log), sy = scale(y.range, height - bottom, top, y.log);
  const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const t of ticks(...y.range, y.log)) {
    svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: sy(t), y2: sy(t) }));
    svg.append(element("text", { x: left - 7, y: sy(t) + 4, "text-anchor": "end" }, y.format(t)));
  }
  for (const t of ticks(...x.range, x.log)) {
    svg.append(element("line", { class: "grid", x1: sx(t), x2: sx(t), y1: height - bottom, y2: height - bottom + 4 }));
    svg.append(element("text", { x: sx(t), y: height - bottom + 18, "text-anchor": "middle" }, x.format(t)));
  }
  svg.append(element("text", { x: left, y: 13 }, y.title));
  svg.append(element("text", { x: width - right, y: height - 6, "text-anchor": "end" }, x.title));
  for (const line of lines) {
    svg.append(element("line", { class: line.mark, x1: left, x2: width - right, y1: sy(line.y), y2: sy(line.y) }));
    svg.append(element("text", { class: `${line.mark}-text`, x: left + 6, y: sy(line.y) - 5 }, line.label));
  }
  for (const { points, mark } of series) {
    let path = "", pen = false;
    for (const [px, py] of points) {
      if (py === null) { pen = false; continue; }
      path += `${pen ? "L" : "M"}${sx(px).toFixed(1)} ${sy(Math.min(Math.max(py, y.range[0]), y.range[1])).toFixed(1)}`;
      pen = true;
    }
    svg.append(element("path", { class: mark, d: path }));
  }
  let at = width - right;
  for (const { label: name, mark } of [...series].reverse()) {
    svg.append(element("text", { class: `${mark}-text`, x: at, y: 13, "text-anchor": "end" }, `— ${name}`));
    at -= name.length * 6.6 + 34;
  }
  for (const dot of dots)
    svg.append(element("circle", { class: dot.mark, cx: sx(dot.x), cy: sy(dot.y), r: dot.mark === "over" ? 6 : 3.5 }, element("title", {}, dot.title)));
  holder.replaceChildren(svg);
}
