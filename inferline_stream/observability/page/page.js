// The live page: follows /events and draws the newest state; /history tells what was before.
import { ago, chart, dollars, html, number, percent, roundDollars, seconds, TIME_STEPS } from "/charts.js";
import { showControls, stageControls } from "/control.js";
import { batchOf, drawDag, LARGE, PENDING, READY, replicasOf, sum, WANTED } from "/dag.js";

const KEPT_S = 600;
const SHORTEST_S = 60;
const STALE_MS = 3000;
const byId = (id) => document.getElementById(id);
const REASONS = { initial: "the run began", taken_over: "went on from another controller" };
const inWords = (reason) => REASONS[reason] ?? reason.replaceAll("_", " ");
let history = []; // {t, rate, p50, p95, p99, cost, plan, wanted, ready}, about one a second
let last = 0, decisionsDrawn = "", plansDrawn = "", selected = null, writable = false;

const COLUMNS = ["t", "rate", "p50", "p95", "p99", "cost", "plan", "wanted", "ready"];
const sampled = (values) => Object.fromEntries(COLUMNS.map((name, i) => [name, values[i]]));

function tile(id, value, notes, mood = "") {
  const node = byId(`tile-${id}`);
  node.className = `tile ${mood}`;
  [value, ...notes].forEach((text, i) => { node.children[i + 1].textContent = text; });
}

const exceeding = (state) => state.envelope.filter(([, live, planned]) => live > planned);
const worstOf = (over) => over.reduce((a, b) => (b[1] * a[2] > a[1] * b[2] ? b : a));

function verdict(state) {
  const halted = state.stages.filter((s) => Object.keys(s.halted).length).map((s) => s.name);
  if (halted.length) return ["bad", `Partitions halted in ${halted.join(", ")}`];
  const trouble = state.stages.find((s) => s.trouble);
  if (trouble) return ["bad", `${trouble.name}: ${trouble.trouble}`];
  const stuck = state.stages.filter((s) => s.stuck.length).map((s) => s.name);
  if (stuck.length) return ["bad", `Partitions stuck in ${stuck.join(", ")}`];
  if (state.recent_late_share > 1 - state.objective) return ["bad", `${percent(state.recent_late_share, 1)} of events late`];
  if (!state.plan_feasible) return ["warn", "No plan meets the SLO on recent traffic"];
  if (state.paused) return ["warn", "Decisions are held"];
  if (state.oversubscribed) return ["warn", "Others take the cores that replicas were planned with"];
  const open = state.stages.filter((s) => s.isolation?.missing.length).map((s) => s.name);
  if (open.length) return ["warn", `Isolation is not whole in ${open.join(", ")}`];
  const behind = state.stages.some((s) => replicasOf(s, READY) < replicasOf(s, WANTED));
  if (exceeding(state).length && behind) return ["warn", "SLO at risk: traffic beyond the plan, replicas starting"];
  if (state.recent_p99_s === null) return ["", "No events in the last 10 s"];
  return ["good", exceeding(state).length ? "SLO met, traffic beyond the plan" : "SLO met"];
}

function tiles(state) {
  const late = state.recent_late_share > 1 - state.objective, waited = Math.max(0, ...state.stages.map((s) => s.oldest_wait_s));
  const tail = state.recent_late_share === null ? `plan expects ${seconds(state.predicted_p99_s)}` : `${percent(state.recent_late_share, 1)} late, the oldest waits ${seconds(waited)}`;
  tile("p99", (state.estimated ? "≈ " : "") + seconds(state.recent_p99_s), [`SLO ${seconds(state.slo_s)}, plan expects ${seconds(state.predicted_p99_s)}`, tail], late ? "bad" : state.recent_p99_s === null ? "" : "good");
  const share = state.slo_events ? state.slo_missed / state.slo_events : 0, budget = 1 - state.objective, left = 1 - share / budget;
  tile("miss", percent(share, 2), [`${percent(budget, budget < 0.01 ? 2 : 0)} is the budget`, left >= 0 ? `${percent(left, 0)} of it left` : `${number(share / budget)}× spent`], left < 0 ? "bad" : left < 0.25 ? "warn" : "");
  tile("rate", `${number(state.arrival_rate)}/s`, [`${number(state.events_in)} events in`, `${number(state.events_out)} out`]);
  const ready = sum(state.stages.map((s) => replicasOf(s, READY))), wanted = sum(state.stages.map((s) => replicasOf(s, WANTED)));
  const pending = sum(state.stages.map((s) => replicasOf(s, PENDING)));
  tile("replicas", `${ready} of ${wanted}`, [pending ? `${pending} starting` : ready < wanted ? "waiting for hardware" : "all that are wanted", `${state.stages.length} stage${state.stages.length === 1 ? "" : "s"}`], ready < wanted ? "warn" : "");
  const lag = sum(state.stages.map((s) => sum(s.lags))), age = Math.max(0, ...state.stages.map((s) => s.lag_s));
  tile("lag", `${number(lag)}`, ["records not finished", lag ? `oldest ${seconds(age)}` : ""], age > state.slo_s ? "warn" : "");
  const coarse = state.coarse_peak_per_hour;
  tile("cost", `${dollars(state.cost_per_hour)}/h`, [`${dollars(state.cost)} so far`, coarse ? `CG-Peak ${dollars(coarse)}/h` : `plan ${dollars(state.plan_cost_per_hour)}/h`]);
}

function background(state) {
  const words = (of) => {
    if (!of.left) return `${of.topic}: done`;
    const needed = of.needed_rate ? ` of ${number(of.needed_rate)}/s needed` : "";
    const rate = of.rate === null ? "" : ` at ${number(of.rate)}/s${needed}`;
    return `${of.topic}: ${number(of.left)} left${rate}${of.done_in_s === null ? "" : `, done in ${seconds(of.done_in_s)}`}`;
  };
  const share = (of) => `${of.topic}: P99 ${of.recent_p99_s === null ? "–" : seconds(of.recent_p99_s)} of ${seconds(of.slo_s)}, ${percent(of.recent_late_share ?? 0, 1)} late`;
  byId("classes").hidden = !state.classes.length;
  byId("classes").textContent = `Live classes. ${state.classes.map(share).join("; ")}.`;
  byId("background").hidden = !state.backgrounds.length;
  byId("background").textContent = `Background events. ${state.backgrounds.map(words).join("; ")}.`;
}

function envelope(state) {
  const points = state.envelope.filter(([, live, planned]) => live > 0 || planned > 0);
  if (!points.length) return;
  const rates = points.flatMap(([w, live, planned]) => [live / w, planned / w]).filter((r) => r > 0);
  const windows = points.map((p) => p[0]), over = exceeding(state), worst = over.length ? worstOf(over) : null;
  const words = worst
    ? `The ${seconds(worst[0])} window exceeds the plan most: ${number(worst[1])} arrivals against ${number(worst[2])}.`
    : "The busiest window of each length: live against what the plan was made for.";
  if (byId("envelope-note").textContent !== words) byId("envelope-note").textContent = words;
  const range = [Math.min(...rates) * 0.8, Math.max(...rates) * 1.35], planRate = ([w, , p]) => Math.max(p / w, range[0]);
  chart(byId("envelope"), {
    label: words,
    x: { range: [Math.min(...windows), Math.max(...windows) * 1.001], log: true, format: seconds, title: "length of the window" },
    y: { range, log: true, format: number, title: "most arrivals per second" },
    series: [
      { points: points.map(([w, , p]) => [w, p ? p / w : null]), mark: "plan", label: "plan" },
      { points: points.map(([w, l]) => [w, l ? l / w : null]), mark: "live", label: "live" },
    ],
    between: over.length ? points.map((p) => [p[0], planRate(p), Math.max(planRate(p), p[1] / p[0])]) : [],
    dots: points.filter((p) => p[1] > 0).map(([w, l, p]) => ({ x: w, y: l / w, mark: l > p ? "over" : "dot", title: `${seconds(w)}: ${l} live, ${p} planned` })),
    note: worst && worst[2] ? { x: worst[0], low: worst[2] / worst[0], high: worst[1] / worst[0], text: `${number(worst[1] / worst[2], 2)}× the plan at ${seconds(worst[0])}` } : null,
  });
}

function timeAxis(state) {
  const reach = Math.min(KEPT_S, Math.max(SHORTEST_S, state.time_s - (history[0]?.t ?? 0)));
  return { range: [-reach, 0], steps: TIME_STEPS, format: ago, title: "" };
}
const over = (state, x, name) => history.filter((h) => h.t - state.time_s >= x.range[0]).map((h) => [Math.min(0, h.t - state.time_s), h[name]]);

function latency(state) {
  const x = timeAxis(state), values = history.flatMap((h) => [h.p50, h.p99]).filter((v) => v !== null && v > 0);
  const low = Math.min(state.slo_s / 4, ...values) * 0.8, high = Math.max(state.slo_s * 1.5, ...values) * 1.2;
  chart(byId("latency"), {
    label: `P50 ${seconds(state.recent_p50_s)}, P95 ${seconds(state.recent_p95_s)} and P99 ${seconds(state.recent_p99_s)} against an SLO of ${seconds(state.slo_s)}`,
    x, y: { range: [low, high], log: true, format: seconds, title: "end-to-end latency" },
    lines: [{ y: state.slo_s, mark: "slo", label: `SLO` }],
    series: [["p50", "p50", "P50"], ["p95", "p95", "P95"], ["p99", "live", "P99"]].map(([name, mark, label]) => ({ points: over(state, x, name), mark, label })),
  });
}

function cost(state) {
  const x = timeAxis(state), coarse = state.coarse_peak_per_hour;
  const most = Math.max(state.cost_per_hour, state.plan_cost_per_hour, coarse ?? 0, ...history.map((h) => h.cost));
  const saved = coarse ? 1 - state.cost_per_hour / coarse : 0;
  const words = coarse
    ? `${dollars(state.cost_per_hour)}/h now; CG-Peak, which replicates the whole pipeline for its peak, would pay ${dollars(coarse)}/h${saved > 0.005 ? `: ${percent(saved, 0)} saved` : ""}.`
    : "Catalogue price of the replicas held.";
  if (byId("cost-note").textContent !== words) byId("cost-note").textContent = words;
  chart(byId("cost"), {
    label: words, tall: 0.36,
    x, y: { range: [0, most * 1.15 || 1], format: roundDollars, title: "dollars per hour" },
    lines: coarse ? [{ y: coarse, mark: "coarse", label: "CG-Peak" }] : [],
    series: [{ points: over(state, x, "plan"), mark: "plan", label: "plan", step: true }, { points: over(state, x, "cost"), mark: "live", label: "held", step: true }],
  });
}

const kindOf = (action) => (action.includes("up") ? "up" : action.includes("down") ? "down" : action === "replan" ? "plan" : "hold");

function replicas(state) {
  const x = timeAxis(state), most = Math.max(1, ...history.flatMap((h) => [h.wanted, h.ready]));
  const marks = state.decisions.filter((d) => d.time_s - state.time_s >= x.range[0])
    .map((d) => ({ x: Math.min(0, d.time_s - state.time_s), kind: kindOf(d.action), key: `${d.time_s}`, title: `${inWords(d.action)}: ${inWords(d.reason)}` }));
  chart(byId("replicas"), {
    label: `${history.at(-1)?.ready ?? 0} replicas ready, ${marks.length} decisions in the time shown`, tall: 0.36,
    x, y: { range: [0, most * 1.15], format: (v) => (Number.isInteger(v) ? number(v) : ""), title: "replicas" }, marks,
    series: [{ points: over(state, x, "ready"), mark: "ready", label: "ready", step: true }, { points: over(state, x, "wanted"), mark: "live", label: "wanted", step: true }],
  });
}

function heat(state) {
  const most = Math.max(1, ...state.stages.flatMap((s) => s.lags)), columns = Math.max(...state.stages.map((s) => s.lags.length));
  const head = html("tr", {}, html("th", { scope: "col" }, "partition"), ...Array.from({ length: columns }, (_, p) => html("th", { scope: "col" }, `${p}`)));
  const rows = state.stages.map((stage) => html("tr", {}, html("th", { scope: "row" }, stage.name), ...stage.lags.map((lag, p) => {
    const share = lag ? 0.12 + 0.88 * Math.log1p(lag) / Math.log1p(Math.max(most, 20)) : 0, stuck = stage.stuck.includes(p);
    const cell = html("td", { class: `${lag ? "" : "none"} ${share > 0.6 ? "hot" : ""} ${stuck ? "stuck" : ""}`, title: `${stage.name}, partition ${p}: ${lag} records${stuck ? ", stuck" : ""}` }, number(lag));
    cell.style.setProperty("--heat", Math.round(share * 100));
    return cell;
  })));
  byId("heat").replaceChildren(html("table", { width: `${130 + 72 * columns}` }, html("thead", {}, head), html("tbody", {}, ...rows)));
}

// A list whose open entries stay open; entries: {key, at, summary, body}.
function list(id, entries, none) {
  const open = new Set([...byId(id).querySelectorAll("details[open]")].map((d) => d.dataset.key));
  byId(id).replaceChildren(...entries.map(({ key, at, summary, body }) => {
    const when = new Date(at * 1000), time = html("time", { datetime: when.toISOString(), title: when.toLocaleString() }, when.toLocaleTimeString([], { hour12: false }));
    const details = html("details", { "data-key": key }, html("summary", {}, time, ...summary), ...body);
    details.open = open.has(key);
    return html("li", {}, details);
  }));
  if (!entries.length) byId(id).append(html("li", { class: "quiet" }, none));
}

function decisions(state) {
  const key = state.decisions.map((d) => d.time_s).join();
  if (key === decisionsDrawn) return;
  decisionsDrawn = key;
  list("timeline", [...state.decisions].reverse().map((d) => {
    const wanted = Object.entries(d.replicas).map(([stage, n]) => `${stage} ${n}`).join(", ");
    return {
      key: `${d.time_s}`, at: d.time_s,
      summary: [html("b", { class: kindOf(d.action) }, inWords(d.action)), html("span", {}, inWords(d.reason)), d.applied || d.action === "hold" ? null : html("i", {}, "advised only")],
      body: [html("p", {}, d.detail), html("p", { class: "quiet" }, `Replicas wanted after it: ${wanted || "as before"}`)],
    };
  }), "None yet: traffic is within the plan.");
}

const allocated = (kinds) => (kinds ?? []).map(([hardware, batch, n, hold_s, at_once]) => `${n} × ${hardware}, batch ${batch}${at_once > 1 ? `, ${at_once} at once` : ""}${hold_s ? `, held ${seconds(hold_s)}` : ""}`).join(" + ") || "none";

function changed(plan, before) {
  const rows = Object.keys({ ...before?.allocations, ...plan.allocations }).map((stage) => [stage, allocated(before?.allocations[stage]), allocated(plan.allocations[stage])]);
  const figures = [["cost", (p) => `${dollars(p.cost_per_hour)}/h`], ["predicted P99", (p) => seconds(p.predicted_p99_s)], ["SLO", (p) => seconds(p.slo_s)], ["made for", (p) => `${number(p.arrival_rate)}/s`]];
  for (const [name, figure] of figures) rows.push([name, before ? figure(before) : "", figure(plan)]);
  return html("table", {}, html("tbody", {}, ...rows.map(([name, was, is]) => html("tr", {}, html("th", { scope: "row" }, name),
    !before || was === is ? html("td", {}, is) : html("td", {}, html("del", {}, was), " → ", html("b", {}, is))))));
}

function plans(state) {
  const key = state.plans.map((p) => p.number).join();
  if (key === plansDrawn) return;
  plansDrawn = key;
  list("plans", state.plans.map((plan, i) => ({
    key: `${plan.number}`, at: plan.time_s,
    summary: [html("b", {}, `plan ${plan.number}`), html("span", {}, inWords(plan.reason)), html("span", { class: "aside" }, `${dollars(plan.cost_per_hour)}/h`)],
    body: [plan.detail ? html("p", {}, plan.detail) : null, changed(plan, state.plans[i - 1])],
  })).reverse(), "None is written down yet.");
}

function stageDetails(state) {
  const holder = byId("stage"), stage = state.stages.find((s) => s.name === selected);
  holder.hidden = !stage;
  if (!stage) return;
  const figures = [
    ...stage.replicas.map(([hardware, planned, wanted, ready, pending]) => [hardware, `${ready} of ${wanted} ready, ${planned} planned${pending ? `, ${pending} starting` : ""}`]),
    ["batch", batchOf(stage).replace("batch ", "")], ["records in", `${number(stage.arrival_rate)}/s`], ["utilization", stage.utilization === null ? "–" : percent(stage.utilization, 0)],
    ["wait", seconds(stage.wait_s)], ["service time", `${seconds(stage.service_time_s)}, predicted ${seconds(stage.predicted_service_s)}`],
    ["CPU of a batch", seconds(stage.cpu_s)], ["without a core", seconds(stage.core_wait_s)], ["lag", `${number(sum(stage.lags))} records`], ["oldest", sum(stage.lags) ? seconds(stage.lag_s) : "–"],
    ["queued", `${number(stage.queued)} events, ${number(stage.hopeless)} of them late`], ["oldest of them", stage.queued ? seconds(stage.oldest_wait_s) : "–"], ["dispatcher, of a core", stage.dispatcher_utilization === null ? "–" : percent(stage.dispatcher_utilization)],
    ...(stage.results_each === null ? [] : [["results of an event", number(stage.results_each, 2)]]), ...(stage.filtered ? [["filtered", `${number(stage.filtered)} events`]] : []),
    ["suspects", number(stage.suspects)], ["quarantined", number(stage.quarantined)], ["batches lost", number(stage.batches_lost)],
    ["by its fallback", `${number(stage.degraded)} events, ${percent(stage.degraded_share)} lately`], ["dead letters", number(stage.dead_lettered)], ["restarts", number(stage.restarts)], ["kept from growing by", stage.limit || "nothing"],
    ...stage.nodes.map(([node, dispatchers, replicas]) => [`on ${node}`, `${dispatchers ? "its dispatcher, " : ""}${replicas} ready`]),
  ];
  if (holder.dataset.stage !== stage.name) {
    holder.dataset.stage = stage.name;
    holder.replaceChildren(html("h3", {}, stage.name), html("dl", {}), ...(writable ? [stageControls(stage.name, replicasOf(stage, WANTED))] : []));
  }
  holder.querySelector("dl").replaceChildren(...figures.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
}

function select(name) {
  selected = selected === name ? null : name;
  if (newest) { drawDag(byId("dag"), newest, selected); stageDetails(newest); }
}
byId("dag").addEventListener("click", (event) => { const stage = event.target.closest?.("g.stage"); if (stage) select(stage.dataset.stage); });
byId("dag").addEventListener("keydown", (event) => {
  const stage = event.target.closest?.("g.stage");
  if (stage && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); select(stage.dataset.stage); }
});
byId("replicas").addEventListener("pointerdown", (event) => {
  const key = event.target.closest?.(".mark")?.dataset.key, details = key && byId("timeline").querySelector(`details[data-key="${key}"]`);
  if (details) { details.open = true; details.scrollIntoView({ block: "nearest" }); details.querySelector("summary").focus({ preventScroll: true }); }
});

function remember(state) {
  if (history.length && state.time_s < history.at(-1).t) history = []; // another controller, another clock
  const counts = state.stages.flatMap((s) => s.replicas);
  const now = { t: state.time_s, rate: state.arrival_rate, p50: state.recent_p50_s, p95: state.recent_p95_s, p99: state.recent_p99_s, cost: state.cost_per_hour, plan: state.plan_cost_per_hour, wanted: sum(counts.map((c) => c[WANTED])), ready: sum(counts.map((c) => c[READY])) };
  if (history.length > 1 && now.t - history.at(-2).t < 1) history.pop();
  history.push(now);
  while (history[0].t < state.time_s - KEPT_S) history.shift();
}

// The hours that come; they change every five minutes.
async function ahead() {
  const hours = await fetch("/ahead").then((a) => a.json()).catch(() => []);
  byId("hours").hidden = !hours.some((h) => h.rate !== null || h.words);
  const clock = (s) => new Date(s * 1000).toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit", hour12: false });
  const rows = hours.map((h) => [clock(h.time_s), h.rate === null ? "–" : `${number(h.rate)}/s`, Object.entries(h.replicas).map(([stage, n]) => `${stage} ${n}`).join(", "), `${dollars(h.cost_per_hour)}/h`, h.words]);
  const row = (of, [first, ...cells]) => html("tr", {}, html("th", { scope: of }, first), ...cells.map((cell) => html(of === "col" ? "th" : "td", {}, cell)));
  byId("ahead").replaceChildren(html("table", {}, html("thead", {}, row("col", ["hour", "expected", "replicas", "cost", "schedule"])), html("tbody", {}, ...rows.map((cells) => row("row", cells)))));
}
ahead();
setInterval(ahead, 60_000);

let newest = null;
function draw(state) {
  newest = state;
  remember(state);
  document.title = `${state.pipeline} · inferline-stream`;
  byId("name").textContent = state.pipeline;
  const [mood, words] = verdict(state);
  if (byId("verdict").textContent !== words) byId("verdict").textContent = words;
  byId("verdict").className = mood;
  byId("pause").textContent = state.paused ? "Decide again" : "Hold decisions";
  byId("pause").dataset.action = state.paused ? "resume" : "pause";
  tiles(state);
  background(state);
  drawDag(byId("dag"), state, selected);
  if (state.stages.length > LARGE) byId("dag-note").textContent = "Each stage: replicas; hardware · batch / its limit · wait; utilization. Open one for all its figures.";
  for (const part of [stageDetails, envelope, latency, replicas, cost, heat, decisions, plans]) part(state);
}

function connected(yes) {
  document.body.classList.toggle("stale", !yes);
  byId("link").textContent = yes ? "live" : "connection lost, trying again …";
}

async function before() {
  const answer = await fetch("/history").then((a) => a.json()).catch(() => null);
  if (answer === null) return;
  writable = answer.writable;
  if (writable) showControls();
  byId("tabs").hidden = !answer.what_if;
  const samples = answer.samples.map(sampled), first = history[0]?.t ?? Infinity;
  history = [...samples.filter((h) => h.t < first), ...history];
}

const events = new EventSource("/events");
let waiting = null;
events.onopen = before;
events.onmessage = (message) => {
  last = Date.now();
  connected(true);
  if (waiting === null) requestAnimationFrame(() => { const state = JSON.parse(waiting); waiting = null; draw(state); });
  waiting = message.data;
};
events.onerror = () => connected(false);
setInterval(() => { if (last && Date.now() - last > STALE_MS) connected(false); }, 1000);
