// The live page: follows /events and draws the newest state.
import { chart, dollars, element, html, number, percent, seconds } from "/charts.js";

const KEPT_S = 300;
const STALE_MS = 3000;
const byId = (id) => document.getElementById(id);
const history = [];
let last = 0, decisionsDrawn = "";

function tile(id, value, note, mood = "") {
  const node = byId(`tile-${id}`);
  node.className = `tile ${mood}`;
  node.children[1].textContent = value;
  node.children[2].textContent = note;
}

const sum = (values) => values.reduce((a, b) => a + b, 0);
const replicasOf = (stage, column) => sum(stage.replicas.map((r) => r[column]));
const READY = 3, WANTED = 2, PENDING = 4;
const exceeding = (state) => state.envelope.filter(([, live, planned]) => live > planned);

function verdict(state) {
  const stuck = state.stages.filter((s) => s.stuck.length).map((s) => s.name);
  if (stuck.length) return ["bad", `Partitions stuck in ${stuck.join(", ")}`];
  if (state.recent_p99_s !== null && state.recent_p99_s > state.slo_s) return ["bad", "P99 above the SLO"];
  if (!state.plan_feasible) return ["warn", "No plan meets the SLO on recent traffic"];
  if (state.paused) return ["warn", "Scaling is paused"];
  const behind = state.stages.some((s) => replicasOf(s, READY) < replicasOf(s, WANTED));
  if (exceeding(state).length && behind) return ["warn", "SLO at risk: traffic beyond the plan, replicas starting"];
  if (state.recent_p99_s === null) return ["", "No events in the last 10 s"];
  return ["good", exceeding(state).length ? "SLO met, traffic beyond the plan" : "SLO met"];
}

function tiles(state) {
  const late = state.recent_p99_s !== null && state.recent_p99_s > state.slo_s;
  tile("p99", seconds(state.recent_p99_s), `SLO ${seconds(state.slo_s)} · predicted ${seconds(state.predicted_p99_s)}`, late ? "bad" : state.recent_p99_s === null ? "" : "good");
  const share = state.slo_events ? state.slo_missed / state.slo_events : 0, budget = 1 - state.objective;
  const left = 1 - share / budget;
  tile("miss", percent(share, 2), left >= 0 ? `${percent(left, 0)} of the error budget left` : `${number(share / budget)}× the error budget`, left < 0 ? "bad" : left < 0.25 ? "warn" : "");
  tile("rate", `${number(state.arrival_rate)}/s`, `${number(state.events_in)} in · ${number(state.events_out)} out`);
  const ready = sum(state.stages.map((s) => replicasOf(s, READY))), wanted = sum(state.stages.map((s) => replicasOf(s, WANTED)));
  const pending = sum(state.stages.map((s) => replicasOf(s, PENDING)));
  tile("replicas", `${ready} of ${wanted}`, pending ? `${pending} starting` : "all that are wanted", ready < wanted ? "warn" : "");
  const lag = sum(state.stages.map((s) => sum(s.lags))), age = Math.max(0, ...state.stages.map((s) => s.lag_s));
  tile("lag", `${number(lag)}`, `oldest ${seconds(age)}`, age > state.slo_s ? "warn" : "");
  const coarse = state.coarse_peak_per_hour;
  tile("cost", `${dollars(state.cost_per_hour)}/h`, coarse ? `CG-Peak ${dollars(coarse)}/h · ${dollars(state.cost)} so far` : `${dollars(state.cost)} so far`);
}

// Layers by longest path; within a layer by the mean position of the parents.
function layout(state) {
  const depth = {}, row = {}, layers = [];
  for (const stage of state.stages) {
    const parents = state.arrows.filter((a) => a[1] === stage.name).map((a) => a[0]);
    depth[stage.name] = parents.length ? 1 + Math.max(...parents.map((p) => depth[p] ?? 0)) : 0;
    (layers[depth[stage.name]] ??= []).push(stage.name);
  }
  for (const layer of layers) {
    const rank = (name) => {
      const parents = state.arrows.filter((a) => a[1] === name).map((a) => row[a[0]] ?? 0);
      return parents.length ? sum(parents) / parents.length : 0;
    };
    layer.sort((a, b) => rank(a) - rank(b)).forEach((name, i) => (row[name] = i - (layer.length - 1) / 2));
  }
  return { depth, row, layers };
}

// Large pipelines get small boxes: name, replicas, utilization; the rest is in the title and for screen readers.
const LARGE = 12;
const boxOf = (stages) => (stages > LARGE ? { width: 150, height: 44, gapX: 56, gapY: 9 } : { width: 196, height: 104, gapX: 64, gapY: 22 });
let centred = false;

function stageBox(stage, x, y, slo_s, box) {
  const ready = replicasOf(stage, READY), wanted = replicasOf(stage, WANTED);
  const hot = stage.utilization !== null && stage.utilization > 0.85;
  const mood = stage.stuck.length ? "bad" : stage.lag_s > slo_s || ready < wanted || stage.limit ? "warn" : "";
  const kinds = stage.replicas.map((r) => r[0]).join(" + ");
  const batch = stage.mean_batch_size === null ? `batch ≤ ${stage.max_batch_size}` : `batch ${number(stage.mean_batch_size, 2)} of ${stage.max_batch_size}`;
  const words = `${stage.name}: ${ready} of ${wanted} replicas ready on ${kinds}, ${batch}, utilization ${stage.utilization === null ? "unknown" : percent(stage.utilization, 0)}, wait ${seconds(stage.wait_s)}, lag ${sum(stage.lags)} records`;
  const g = element("g", { class: `stage ${mood}`, transform: `translate(${x} ${y})`, tabindex: 0, role: "img", "aria-label": words });
  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const small = box.height < 100, bar = box.height - 18;
  g.append(
    element("title", {}, words),
    element("rect", { class: "box", width: box.width, height: box.height, rx: small ? 6 : 9 }),
    element("text", { class: "title", x: 12, y: small ? 18 : 22 }, short(stage.name, small ? 13 : 20)),
    element("text", { class: "figure", x: box.width - 12, y: small ? 18 : 22, "text-anchor": "end" }, `×${ready}${wanted > ready ? ` (→${wanted})` : ""}`),
    ...(small ? [] : [
      element("text", { x: 12, y: 41 }, short(kinds, 28)),
      element("text", { x: 12, y: 58 }, `${batch} · ${number(stage.arrival_rate)}/s`),
      element("text", { x: 12, y: 75 }, `wait ${seconds(stage.wait_s)} · S ${seconds(stage.service_time_s)}`),
    ]),
    element("rect", { class: "meter", x: 12, y: bar, width: box.width - 60, height: 7, rx: 3.5 }),
    element("rect", { class: `meter-fill ${hot ? "warn" : ""}`, x: 12, y: bar, width: Math.max(0, (box.width - 60) * Math.min(1, stage.utilization ?? 0)), height: 7, rx: 3.5 }),
    element("text", { class: "figure", x: box.width - 12, y: bar + 8, "text-anchor": "end" }, stage.utilization === null ? "–" : percent(stage.utilization, 0)),
  );
  return g;
}

function dag(state) {
  const { depth, row, layers } = layout(state), box = boxOf(state.stages.length);
  const tallest = Math.max(...layers.map((l) => l.length));
  const body = tallest * (box.height + box.gapY) - box.gapY + 8;
  const long = state.arrows.filter(([parent, child]) => depth[child] - depth[parent] > 1);
  const width = layers.length * (box.width + box.gapX) - box.gapX + 8, height = body + Math.min(long.length, 8) * 9;
  const at = (name) => [4 + depth[name] * (box.width + box.gapX), 4 + (body - 8 - box.height) / 2 + row[name] * (box.height + box.gapY)];
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
  svg.append(element("defs", {}, element("marker", { id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, element("path", { class: "head", d: "M0 0L8 4L0 8z" }))));
  for (const [parent, child, conditional] of state.arrows) {
    const [px, py] = at(parent), [cx, cy] = at(child);
    const x1 = px + box.width, y1 = py + box.height / 2, x2 = cx - 2, y2 = cy + box.height / 2, bend = Math.max(24, (x2 - x1) / 2);
    // An arrow that passes other layers runs below every box.
    const lane = long.findIndex((a) => a[0] === parent && a[1] === child), below = body + 2 + (lane % 8) * 9;
    const d = lane < 0
      ? `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`
      : `M${x1} ${y1}C${x1 + 30} ${y1} ${x1 + 12} ${below} ${x1 + 46} ${below}L${x2 - 46} ${below}C${x2 - 12} ${below} ${x2 - 30} ${y2} ${x2} ${y2}`;
    svg.append(element("path", { class: `arrow ${conditional ? "conditional" : ""}`, d, "marker-end": "url(#head)" }, element("title", {}, `${parent} → ${child}${conditional ? ", when its condition holds" : ""}`)));
  }
  for (const stage of state.stages) svg.append(stageBox(stage, ...at(stage.name), state.slo_s, box));
  const focused = document.activeElement?.closest?.("#dag g.stage");
  const index = focused ? [...focused.parentNode.querySelectorAll("g.stage")].indexOf(focused) : -1;
  byId("dag").replaceChildren(svg);
  if (!centred) byId("dag").scrollTop = (height - byId("dag").clientHeight) / 2;
  centred = true;
  if (index >= 0) svg.querySelectorAll("g.stage")[index]?.focus();
}

function envelope(state) {
  const points = state.envelope.filter(([, live, planned]) => live > 0 || planned > 0);
  if (!points.length) return;
  const over = exceeding(state), rates = points.flatMap(([w, live, planned]) => [live / w, planned / w]).filter((r) => r > 0);
  const windows = points.map((p) => p[0]);
  const worst = over.length ? over.reduce((a, b) => (b[1] / b[2] > a[1] / a[2] ? b : a)) : null;
  const note = worst
    ? `The ${seconds(worst[0])} window exceeds the plan: ${number(worst[1])} arrivals against ${number(worst[2])}.`
    : "The busiest window of each length: live against what the plan was made for.";
  byId("envelope-note").textContent = note;
  chart(byId("envelope"), {
    label: note,
    x: { range: [Math.min(...windows), Math.max(...windows) * 1.001], log: true, format: seconds, title: "length of the window" },
    y: { range: [Math.min(...rates) * 0.8, Math.max(...rates) * 1.25], log: true, format: (v) => `${number(v)}/s`, title: "arrivals per second" },
    series: [
      { points: points.map(([w, , p]) => [w, p ? p / w : null]), mark: "plan", label: "plan" },
      { points: points.map(([w, l]) => [w, l ? l / w : null]), mark: "live", label: "live" },
    ],
    dots: points.filter((p) => p[1] > 0).map(([w, l, p]) => ({ x: w, y: l / w, mark: l > p ? "over" : "dot", title: `${seconds(w)}: ${l} live, ${p} planned` })),
  });
}

function latency(state) {
  if (history.length < 2) return;
  const now = state.time_s, reach = Math.min(KEPT_S, Math.max(30, now - history[0].t));
  const values = history.flatMap((h) => [h.p50, h.p99]).filter((v) => v !== null && v > 0);
  const low = Math.min(state.slo_s / 10, ...values), high = Math.max(state.slo_s * 2, ...values) * 1.2;
  chart(byId("latency"), {
    label: `P99 ${seconds(state.recent_p99_s)} and P50 ${seconds(state.recent_p50_s)} against an SLO of ${seconds(state.slo_s)}`,
    x: { range: [-reach, 0], format: (v) => (v === 0 ? "now" : `${Math.round(v)} s`), title: "" },
    y: { range: [low, high], log: true, format: seconds, title: "latency" },
    lines: [{ y: state.slo_s, mark: "slo", label: `SLO ${seconds(state.slo_s)}` }],
    series: [
      { points: history.map((h) => [Math.max(-reach, h.t - now), h.p50]), mark: "p50", label: "P50" },
      { points: history.map((h) => [Math.max(-reach, h.t - now), h.p99]), mark: "live", label: "P99" },
    ],
  });
}

function heat(state) {
  const most = Math.max(1, ...state.stages.flatMap((s) => s.lags)), columns = Math.max(...state.stages.map((s) => s.lags.length));
  const head = html("tr", {}, html("th", { scope: "col" }, "stage"), ...Array.from({ length: columns }, (_, p) => html("th", { scope: "col" }, `${p}`)));
  const rows = state.stages.map((stage) => html("tr", {}, html("th", { scope: "row" }, stage.name), ...stage.lags.map((lag, p) => {
    const share = lag ? Math.log1p(lag) / Math.log1p(most) : 0, stuck = stage.stuck.includes(p);
    const cell = html("td", { class: `${share > 0.6 ? "hot" : ""} ${stuck ? "stuck" : ""}`, title: `${stage.name}, partition ${p}: ${lag} records${stuck ? ", stuck" : ""}` }, number(lag));
    cell.style.setProperty("--heat", Math.round(share * 100));
    return cell;
  })));
  byId("heat").replaceChildren(html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows)));
}

function decisions(state) {
  const key = state.decisions.map((d) => d.time_s).join();
  if (key === decisionsDrawn) return;
  decisionsDrawn = key;
  const open = new Set([...document.querySelectorAll("#timeline details[open]")].map((d) => d.dataset.at));
  byId("timeline").replaceChildren(...[...state.decisions].reverse().map((d) => {
    const at = new Date(d.time_s * 1000), kind = d.action.includes("up") ? "up" : d.action.includes("down") ? "down" : "hold";
    const target = Object.entries(d.replicas).map(([s, n]) => `${s} ×${n}`).join(", ");
    const summary = html("summary", {}, html("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false })),
      html("b", { class: kind }, d.action.replaceAll("_", " ")), html("span", {}, d.reason.replaceAll("_", " ")), ...(d.applied ? [] : [html("i", {}, "advised only")]));
    const details = html("details", { "data-at": `${d.time_s}` }, summary, html("p", {}, d.detail), html("p", { class: "quiet" }, `Replicas wanted after it: ${target || "unchanged"}`));
    details.open = open.has(`${d.time_s}`);
    return html("li", {}, details);
  }));
  if (!state.decisions.length) byId("timeline").append(html("li", { class: "quiet" }, "None yet: traffic is within the plan."));
}

function draw(state) {
  if (history.length && state.time_s < history.at(-1).t) history.length = 0;
  if (!history.length || state.time_s > history.at(-1).t) history.push({ t: state.time_s, p50: state.recent_p50_s, p99: state.recent_p99_s });
  while (history.length && history[0].t < state.time_s - KEPT_S) history.shift();
  document.title = `${state.pipeline} · inferline-stream`;
  byId("name").textContent = state.pipeline;
  const [mood, words] = verdict(state);
  if (byId("verdict").textContent !== words) byId("verdict").textContent = words;
  byId("verdict").className = mood;
  tiles(state);
  dag(state);
  envelope(state);
  latency(state);
  heat(state);
  decisions(state);
}

function connected(yes) {
  document.body.classList.toggle("stale", !yes);
  byId("link").textContent = yes ? "live" : "connection lost, trying again …";
}

const events = new EventSource("/events");
let waiting = null;
events.onmessage = (message) => {
  last = Date.now();
  connected(true);
  if (waiting === null) requestAnimationFrame(() => { draw(JSON.parse(waiting)); waiting = null; });
  waiting = message.data;
};
events.onerror = () => connected(false);
setInterval(() => { if (last && Date.now() - last > STALE_MS) connected(false); }, 1000);
