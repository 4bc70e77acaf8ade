// The pipeline as a picture: in layers from left to right, or, where that has no room, one stage below the other.
import { element, number, percent, seconds } from "/charts.js";

export const sum = (values) => values.reduce((a, b) => a + b, 0);
export const READY = 3, WANTED = 2, PENDING = 4;
export const replicasOf = (stage, column) => sum(stage.replicas.map((r) => r[column]));
const kindsOf = (stage) => stage.replicas.filter((r) => r[1] || r[2] || r[3]).map((r) => r[0]).join(" + ") || stage.replicas.map((r) => r[0]).join(" + ");
const heldOf = (stage) => (stage.concurrency > 1 ? `, ${stage.concurrency} at once` : "") + (stage.hold_s ? `, held ≤ ${seconds(stage.hold_s)}` : "");
export const batchOf = (stage) => (stage.mean_batch_size === null ? `batch ≤ ${stage.max_batch_size}` : `batch ${number(stage.mean_batch_size, 2)} of ${stage.max_batch_size}`) + heldOf(stage);

const HOT = 0.85;
export const LARGE = 12; // stages; more get smaller boxes
const NARROW = 620; // pixels; on less, stages stand below each other
const TALL = { width: 212, height: 106, gapX: 56, gapY: 22 }, SHORT = { width: 172, height: 58, gapX: 48, gapY: 10 };

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function isolationOf(held) {
  if (!held) return "isolation not reported yet";
  if (held.level === "none") return "no isolation";
  const sealed = held.sealed === held.replicas ? "sealed" : `${held.sealed} of ${held.replicas} sealed`;
  return [sealed, held.system_calls === null ? "all system calls" : `${held.system_calls} system calls`, ...held.missing].join(", ");
}

export function wordsOf(stage) {
  const used = stage.utilization === null ? "unknown" : percent(stage.utilization, 0);
  return `${stage.name}: ${replicasOf(stage, READY)} of ${replicasOf(stage, WANTED)} replicas ready on ${kindsOf(stage)}, ${batchOf(stage)}, utilization ${used}, wait ${seconds(stage.wait_s)}, lag ${number(sum(stage.lags))} records, ${isolationOf(stage.isolation)}`;
}

export function moodOf(stage, slo_s) {
  if (stage.stuck.length || stage.trouble || Object.keys(stage.halted).length) return "bad";
  return stage.lag_s > slo_s || replicasOf(stage, READY) < replicasOf(stage, WANTED) || stage.limit || stage.isolation?.missing.length ? "warn" : "";
}

function stageBox(stage, x, y, box, slo_s, selected) {
  const ready = replicasOf(stage, READY), wanted = replicasOf(stage, WANTED), words = wordsOf(stage);
  const hot = stage.utilization !== null && stage.utilization > HOT, small = box.height < 100;
  const foot = box.height - 17, bar = box.width - 72, letters = Math.floor((box.width - 24) / 6.5);
  const lines = small ? [`${short(kindsOf(stage), 9)} · ${number(stage.mean_batch_size, 2)}/${stage.max_batch_size} · ${seconds(stage.wait_s, 2)}`] : [stage.isolation?.sealed ? `${kindsOf(stage)} · sealed` : kindsOf(stage), `${batchOf(stage)} · ${number(stage.arrival_rate)}/s`, `wait ${seconds(stage.wait_s, 2)} · service ${seconds(stage.service_time_s, 2)}`];
  return element("g", { class: `stage ${moodOf(stage, slo_s)}`, transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "data-stage": stage.name, "aria-label": words, "aria-expanded": selected === stage.name },
    element("title", {}, words),
    element("rect", { class: "box", width: box.width, height: box.height, rx: 8 }),
    element("text", { class: "title", x: 12, y: small ? 18 : 23 }, short(stage.name, letters - 7)),
    element("text", { class: "figure", x: box.width - 12, y: small ? 18 : 23, "text-anchor": "end" }, wanted !== ready ? `×${ready} → ${wanted}` : `×${ready}`),
    ...lines.map((line, i) => element("text", { x: 12, y: (small ? 34 : 43) + 17 * i }, short(line, letters))),
    element("rect", { class: "meter", x: 12, y: foot, width: bar, height: 6, rx: 3 }),
    element("rect", { class: `meter-fill ${hot ? "warn" : ""}`, x: 12, y: foot, width: Math.max(0, bar * Math.min(1, stage.utilization ?? 0)), height: 6, rx: 3 }),
    element("text", { class: "figure", x: box.width - 12, y: foot + 7, "text-anchor": "end" }, stage.utilization === null ? "idle" : percent(stage.utilization, 0)),
  );
}

// Columns by the longest path from a source; in a column, next to the parents.
function layers(state) {
  const names = state.stages.map((s) => s.name), depth = Object.fromEntries(names.map((n) => [n, 0]));
  for (let round = 0; round < names.length; round++) {
    let changed = false;
    for (const [parent, child] of state.arrows) if (depth[child] < depth[parent] + 1) { depth[child] = depth[parent] + 1; changed = true; }
    if (!changed) break;
  }
  const columns = [], row = {};
  for (const name of names) (columns[depth[name]] ??= []).push(name);
  for (const column of columns) {
    const rank = (name) => {
      const parents = state.arrows.filter((a) => a[1] === name).map((a) => row[a[0]] ?? 0);
      return parents.length ? sum(parents) / parents.length : 0;
    };
    const ranks = Object.fromEntries(column.map((name) => [name, rank(name)]));
    column.sort((a, b) => ranks[a] - ranks[b]).forEach((name, i) => (row[name] = i - (column.length - 1) / 2));
  }
  return { depth, row, columns };
}

function arrow(parent, child, conditional, d) {
  return element("path", { class: `arrow ${conditional ? "conditional" : ""}`, d, "marker-end": "url(#head)" }, element("title", {}, `${parent} → ${child}${conditional ? ", when its condition holds" : ""}`));
}

function across(state) {
  const { depth, row, columns } = layers(state), box = state.stages.length > LARGE ? SHORT : TALL;
  const tallest = Math.max(...columns.map((c) => c.length)), body = tallest * (box.height + box.gapY) - box.gapY + 8;
  const long = state.arrows.filter(([parent, child]) => depth[child] - depth[parent] > 1);
  const width = columns.length * (box.width + box.gapX) - box.gapX + 8, height = body + (long.length ? 6 + Math.min(long.length, 8) * 9 : 0);
  const at = (name) => [4 + depth[name] * (box.width + box.gapX), 4 + (body - 8 - box.height) / 2 + row[name] * (box.height + box.gapY)];
  const arrows = state.arrows.map(([parent, child, conditional]) => {
    const [px, py] = at(parent), [cx, cy] = at(child);
    const x1 = px + box.width, y1 = py + box.height / 2, x2 = cx - 2, y2 = cy + box.height / 2, bend = Math.max(24, (x2 - x1) / 2);
    // An arrow that passes other columns runs below every box.
    const lane = long.findIndex((a) => a[0] === parent && a[1] === child), below = body + 4 + (lane % 8) * 9;
    return arrow(parent, child, conditional, lane < 0
      ? `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`
      : `M${x1} ${y1}C${x1 + 30} ${y1} ${x1 + 6} ${below} ${x1 + 40} ${below}L${x2 - 40} ${below}C${x2 - 6} ${below} ${x2 - 30} ${y2} ${x2} ${y2}`);
  });
  return { width, height, box, at, arrows };
}

function below(state, room) {
  const { depth } = layers(state), order = [...state.stages].sort((a, b) => depth[a.name] - depth[b.name]).map((s) => s.name);
  const place = Object.fromEntries(order.map((name, i) => [name, i])), lanes = [];
  const skipping = state.arrows.filter(([parent, child]) => place[child] - place[parent] > 1);
  // An arrow that passes others takes the first lane of the gutter that is free beside them.
  const lane = new Map(skipping.map((a) => {
    const [from, to] = [place[a[0]], place[a[1]]];
    let free = lanes.findIndex((taken) => taken.every(([f, t]) => to <= f || from >= t));
    if (free < 0) free = lanes.push([]) - 1;
    lanes[free].push([from, to]);
    return [a, free % 6];
  }));
  const gutter = lanes.length ? 22 + 9 * Math.min(lanes.length, 6) : 2;
  const base = state.stages.length > LARGE ? SHORT : TALL, box = { ...base, width: Math.min(360, room - gutter - 6), gapY: 26 };
  const at = (name) => [gutter, 4 + place[name] * (box.height + box.gapY)];
  const arrows = state.arrows.map((a) => {
    const [parent, child, conditional] = a, [, py] = at(parent), [, cy] = at(child), middle = gutter + box.width / 2;
    if (!lane.has(a)) return arrow(parent, child, conditional, `M${middle} ${py + box.height}V${cy - 2}`);
    const x = gutter - 14 - 9 * lane.get(a), y1 = py + box.height - 14, y2 = cy + 14;
    return arrow(parent, child, conditional, `M${gutter} ${y1}C${x} ${y1} ${x} ${y1 + 6} ${x} ${y1 + 18}V${y2 - 18}C${x} ${y2 - 6} ${x} ${y2} ${gutter - 2} ${y2}`);
  });
  return { width: room, height: order.length * (box.height + box.gapY) - box.gapY + 8, box, at, arrows };
}

let centred = false;

export function drawDag(holder, state, selected) {
  const room = holder.clientWidth || 600;
  const { width, height, box, at, arrows } = room < NARROW ? below(state, room) : across(state);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, width, height },
    element("defs", {}, element("marker", { id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, element("path", { class: "head", d: "M0 0L8 4L0 8z" }))),
    ...arrows, ...state.stages.map((stage) => stageBox(stage, ...at(stage.name), box, state.slo_s, selected)));
  const focused = document.activeElement?.closest?.("#dag g.stage")?.dataset.stage;
  holder.replaceChildren(svg);
  holder.classList.toggle("many", state.stages.length > LARGE);
  if (!centred && room >= NARROW) holder.scrollTop = (height - holder.clientHeight) / 2;
  centred = true;
  if (focused) svg.querySelector(`g.stage[data-stage="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}
