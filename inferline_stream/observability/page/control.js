// What people who know the token may do: hold decisions, hold a stage at a number of replicas. Every command is confirmed.
import { html } from "/charts.js";

const byId = (id) => document.getElementById(id);
const KEPT = "inferline-token";

function say(words) {
  byId("answer").textContent = words;
}

export async function command(wish) {
  const token = sessionStorage.getItem(KEPT);
  if (!token) { byId("key").hidden = false; byId("token").focus(); say("Enter the token first."); return; }
  const answer = await fetch("/control", { method: "POST", headers: { Authorization: `Bearer ${token}` }, body: JSON.stringify(wish) }).catch(() => null);
  if (answer === null) say("The controller does not answer.");
  else if (answer.ok) say(`${wish.action} ${wish.stage ?? ""} is set; the next decision follows it.`);
  else {
    if (answer.status === 401) { sessionStorage.removeItem(KEPT); byId("key").hidden = false; }
    say(await answer.text());
  }
}

export function stageControls(stage, replicas) {
  const count = html("input", { type: "number", min: 0, max: 10000, value: replicas, "aria-label": `Replicas of ${stage}` });
  const hold = html("button", { type: "button" }, "Hold at"), leave = html("button", { type: "button" }, "Leave to the policy");
  hold.onclick = () => command({ action: "scale", stage, replicas: Number(count.value) });
  leave.onclick = () => command({ action: "release", stage });
  return html("p", { class: "controls" }, hold, count, html("span", {}, "replicas"), leave);
}

export function showControls() {
  byId("controls").hidden = false;
  byId("key").hidden = Boolean(sessionStorage.getItem(KEPT));
  byId("pause").onclick = () => command({ action: byId("pause").dataset.action });
  byId("key").onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEPT, byId("token").value);
    byId("key").hidden = true;
    byId("token").value = "";
    say("The token is kept until this tab is closed.");
  };
}
