// Sliders ask for a glance at a plan, for the plan, its replay and the curve; an answer to an older question is dropped.
import { chart, dollars, html, number, percent, seconds } from "/charts.js";

const byId = (id) => document.getElementById(id);
const form = byId("question"), SETTLED_MS = 120, STEPS = 100;
let declared, sliders = [], asked = 0, waiting;

// Where a range of values is wide, equal steps are equal factors.
const geometric = (low, high) => ({ at: (step) => low * (high / low) ** (step / STEPS), step: (value) => STEPS * Math.log(value / low) / Math.log(high / low) });
const even = (low, high) => ({ at: (step) => low + (high - low) * step / STEPS, step: (value) => STEPS * (value - low) / (high - low) });

function slider(name, label, range, value, show, put) {
  const input = html("input", { type: "range", id: name, min: 0, max: STEPS, step: 1, value: Math.round(range.step(value)) });
  const output = html("output", { for: name }, show(value));
  // Where nobody has moved it, the value is exactly the declared one.
  const read = () => (input.value === input.defaultValue ? value : Number(range.at(Number(input.value)).toPrecision(3)));
  input.setAttribute("aria-valuetext", show(value));
  form.append(html("label", { for: name }, label), input, output);
  return {
    put: (question) => { if (input.value !== input.defaultValue) put(question, read()); },
    tell: () => { output.textContent = show(read()); input.setAttribute("aria-valuetext", output.textContent); },
  };
}

function choice(name, label, options, value, put) {
  const select = html("select", { id: name }, ...options.map(([key, words]) => html("option", key === value ? { value: key, selected: "" } : { value: key }, words)));
  form.append(html("label", { for: name }, label), select);
  return { put: (question) => { if (select.value !== value) put(question, select.value); }, tell: () => {} };
}

function build() {
  const { slo_s, start_up_s, arrival_rate, order, reserve, prices } = declared;
  const start = Math.max(start_up_s, 0.1);
  sliders = [
    slider("slo", "SLO", geometric(slo_s / 4, slo_s * 4), slo_s, seconds, (q, v) => { q.slo_s = v; }),
    slider("traffic", "Traffic", geometric(1 / 8, 8), 1, (v) => `${number(v)} × (${number(v * arrival_rate)}/s)`, (q, v) => { q.traffic = v; }),
    slider("start-up", "Start-up time", geometric(start / 10, start * 100), start, seconds, (q, v) => { q.start_up_s = v; }),
    slider("reserve", "Always held", even(0, 4), reserve ?? 0, (v) => (v > 0 ? `for ${number(v)} × the traffic` : "by odds and price"), (q, v) => { q.reserve = v > 0 ? v : null; }),
    choice("order", "Order of a queue", [["deadline", "what can be on time first"], ["entry", "in order of entry"]], order, (q, v) => { q.order = v; }),
    ...["spot", "fallback"].filter((name) => declared[name]).map((name) =>
      choice(name, name === "spot" ? "Spot capacity" : "Fallbacks", [["yes", "as declared"], ["no", "without"]], "yes", (q) => { q[name] = false; })),
    ...Object.entries(prices).map(([kind, price]) =>
      slider(`price-${kind}`, `Price of ${kind}`, geometric(price / 5, price * 5), price, (v) => `${dollars(v)}/h`, (q, v) => { q.prices = { ...q.prices, [kind]: v }; })),
  ];
}

function question() {
  const asked = {};
  for (const each of sliders) each.put(asked);
  return asked;
}

async function ask(path, about, newest = () => false) {
  for (let pause = SETTLED_MS; ; pause *= 2) {
    const answer = await fetch(`${path}?question=${encodeURIComponent(JSON.stringify(about))}`);
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();  // null where another question came later: one of another page, or an older one of this page
    if (found !== null || !newest()) return found;
    await new Promise((passed) => setTimeout(passed, pause));
  }
}

function tile(id, value, note, kind = "") {
  const [shown, small] = byId(`tile-${id}`).querySelectorAll("dd");
  byId(`tile-${id}`).className = `tile ${kind}`;
  shown.textContent = value;
  small.textContent = note;
}

function verdict(text, kind = "") {
  byId("verdict").className = kind;
  byId("verdict").textContent = text;
}

function showPlan(plan, about) {
  const slo = about.slo_s ?? declared.slo_s;
  byId("command").textContent = plan.command;
  byId("curve").classList.add("stale");
  byId("stages").replaceChildren(...(plan.stages ?? []).map((stage) => html("tr", {},
    html("th", { scope: "row" }, stage.stage), html("td", {}, stage.held), html("td", {}, percent(stage.utilization, 0)),
    html("td", {}, html("meter", { min: 0, max: 1, value: stage.latency_share, "aria-label": `share of the latency in ${stage.stage}` }), ` ${percent(stage.latency_share, 0)}`),
    html("td", {}, stage.cost_per_hour.toFixed(4)))));
  if (plan.infeasible) {
    verdict(plan.infeasible, "bad");
    for (const id of ["cost", "p99", "late", "scaled"]) tile(id, "–", "");
    return;
  }
  const [which, mood] = plan.searching ? ["The cheapest plan so far", ""] : ["The cheapest plan", "good"];
  verdict(`${which} that keeps ${percent(declared.objective, 0)} within ${seconds(slo)}`, mood);
  tile("cost", `${dollars(plan.cost_per_hour)}/h`, `${dollars(plan.cost_per_hour * 730)} a month`);
  tile("p99", seconds(plan.predicted_p99_s), `${seconds(Math.max(0, slo - plan.predicted_p99_s))} below the SLO`);
}

function showReplay(replay, brief) {
  const late = replay.miss_rate > 1 - declared.objective;
  const of = brief ? "of the busiest arrivals, all follow" : `${percent(1 - declared.objective, 2)} allowed`;
  tile("late", percent(replay.miss_rate, 2), of, brief ? "" : late ? "bad" : "good");
  tile("scaled", `${dollars(replay.cost_per_hour)}/h`, replay.changes === 1 ? "1 change of a stage" : `${replay.changes} changes of a stage`);
}

function showCurve({ points }, plan, about) {
  byId("curve").classList.remove("stale");
  const known = points.filter((p) => p.cost_per_hour !== null), slo = about.slo_s ?? declared.slo_s;
  if (!known.length) return byId("curve").replaceChildren();
  const most = Math.max(...known.map((p) => p.cost_per_hour), plan.cost_per_hour ?? 0);
  const slos = [...points.map((p) => p.slo_s), slo];
  chart(byId("curve"), {
    series: [{ points: known.map((p) => [p.slo_s, p.cost_per_hour]), mark: "live", label: "$/h", step: true }],
    x: { range: [Math.min(...slos), Math.max(...slos)], log: true, format: (v) => seconds(v), title: "SLO" },
    y: { range: [0, most * 1.1], format: (v) => dollars(v), title: "dollars per hour" },
    dots: plan.infeasible ? [] : [{ x: slo, y: plan.cost_per_hour, mark: "dot", title: "this plan" }],
    label: "Cost of the plan over its SLO",
  });
}

function showTrust({ runs }) {
  const beside = (predicted, measured, show) => html("td", {}, `${show(predicted)} → ${show(measured)}`);
  byId("trust").hidden = !runs.length;
  byId("runs").replaceChildren(...runs.map((run) => html("tr", {},
    html("th", { scope: "row" }, run.run), html("td", {}, number(run.events)), beside(run.predicted_p99_s, run.p99_s, seconds),
    beside(run.predicted_cost_per_hour, run.cost_per_hour, dollars), beside(run.predicted_miss_rate, run.miss_rate, (v) => percent(v, 2)))));
}

async function answerAll() {
  const mine = ++asked, about = question(), newest = () => mine === asked;
  for (const each of sliders) each.tell();
  verdict("planning …");
  try {
    const glance = await ask("/glance", about, newest);
    if (!glance || !newest()) return;
    if (glance.command) showPlan(glance, about);
    if (glance.replay) showReplay(glance.replay, true);
    if (glance.command) byId("verdict").dataset.answers = mine;
    const plan = glance.searching ? await ask("/plan", about, newest) : glance;
    if (!plan || !newest()) return;
    if (glance.searching) showPlan(plan, about);
    const replay = plan.infeasible ? null : await ask("/replay", about, newest);
    if (!newest()) return;
    if (replay) showReplay(replay, false);
    const curve = await ask("/curve", about, newest);
    if (!curve || !newest()) return;
    showCurve(curve, plan, about);
    if (byId("trust").hidden) showTrust(await ask("/trust", {}, newest) ?? { runs: [] });
  } catch (error) {
    if (newest()) verdict(`${error.message}`.trim() || "the command that serves this page has ended", "bad");
  }
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => {
  for (const each of sliders) each.tell();
  clearTimeout(waiting);
  waiting = setTimeout(answerAll, SETTLED_MS);
});
form.addEventListener("reset", () => setTimeout(answerAll));
byId("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(byId("command").textContent);
  byId("answer").textContent = "copied";
});

byId("tabs").hidden = location.pathname === "/"; // there, the page stands alone
try { declared = await ask("/declared", {}); } catch (error) { verdict(`${error.message}`.trim(), "bad"); throw error; }
byId("name").textContent = `What if: ${declared.pipeline}`;
build();
await answerAll();
