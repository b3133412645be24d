// Turns as a list: those that run, and under them those that have ended, the newest first, each with its phases.

import { h, keyed, show, text } from "../dom.js";
import { routerNow } from "../feed.js";
import { clock, count, duration } from "../format.js";
import { legend, pill, speedOf, statusPill, tokensOf, triesOf, turnBar } from "./parts.js";

/** `update(running, ended)`; at most `most` rows that have ended. */
export function turnList({ most }) {
  const running = h("ul", { class: "turns running", "aria-label": "Running turns" });
  const ended = h("ul", { class: "turns", "aria-label": "Turns that have ended" });
  const element = h("div", { class: "turn-list" }, legend(), running, ended);
  let full = 0;
  return {
    element,
    update(running_now, turns) {
      keyed(running, running_now, ({ id }) => id, runningRow, updateRunning);
      show(running, running_now.length > 0);
      const shown = turns.slice(-most).reverse();
      const longest = Math.max(1, ...shown.map(({ total_ms }) => total_ms));
      // The scale moves rarely, or no bar could be compared with what it was.
      if (longest > full || longest < full / 3) full = longest;
      keyed(ended, shown, ({ id }) => id, (turn) => turnRow(turn), (node, turn) => rescale(node, turn, full));
    },
  };
}

function runningRow(turn) {
  const time = h("span", { class: "time" });
  const state = h("span", { class: "what" });
  const bar = h("div", { class: "phases moving", "aria-hidden": "true" }, h("span", { class: "phase streamed" }));
  const node = h("li", { class: "turn" }, time, h("span", { class: "model" }, turn.model || "–"), h("span", { class: "where" }), state, bar);
  return node;
}

function updateRunning(node, turn) {
  const [time, model, where, state] = node.children;
  text(time, duration(Math.max(0, routerNow() - turn.since) * 1000));
  text(model, turn.model || "–");
  text(where, turn.endpoint);
  text(state, turn.attempts > 1 ? `runs, ${turn.attempts} tries` : "runs");
}

function rescale(node, turn, full_ms) {
  if (node.full_ms === full_ms) return;
  node.full_ms = full_ms;
  node.bar.replaceChildren(turnBar(turn, full_ms), h("span", { class: "number" }, duration(turn.total_ms)));
}

function turnRow(turn) {
  const bar = h("div", { class: "barred" });
  const speed = speedOf(turn);
  const summary = h(
    "summary",
    {},
    h("span", { class: "time" }, clock(turn.at)),
    h("span", { class: "model" }, turn.model || "–"),
    h("span", { class: "where" }, turn.from_cache ? "cache" : turn.endpoint || "no endpoint"),
    h("span", { class: "what" }, statusPill(turn.status), turn.attempts > 1 ? pill("warn", triesOf(turn)) : null, turn.tools.length ? pill("plain", `${turn.tools.length} tools`) : null),
    h("span", { class: "number tokens" }, tokensOf(turn)),
    bar,
  );
  const details = h(
    "dl",
    { class: "facts wide" },
    fact("Id", turn.id.startsWith("resp_") ? h("a", { href: `#/stored/responses/${encodeURIComponent(turn.id)}/${encodeURIComponent(turn.owner)}` }, h("code", {}, turn.id)) : h("code", {}, turn.id)),
    fact("Front door", turn.door),
    fact("Whose", [turn.owner || "admins", turn.key ? ` by ${turn.key}` : ""].join("")),
    turn.error ? fact("Failed with", turn.error) : null,
    fact("Waited for a slot", duration(turn.waited_ms)),
    turn.asked_ms === null ? null : fact("Sent after", duration(turn.asked_ms)),
    turn.answered_ms === null ? null : fact("The server answered after", duration(turn.answered_ms)),
    turn.first_ms === null ? null : fact("First output after", duration(turn.first_ms)),
    fact("Ended after", duration(turn.total_ms)),
    speed === null ? null : fact("Speed", `${count(speed)} tokens a second`),
    fact("Tokens", `${tokensOf(turn)}${turn.cached ? `, ${count(turn.cached)} of the input were cached` : ""}${turn.reasoning ? `, ${count(turn.reasoning)} of the output were reasoning` : ""}`),
    ...turn.tries.map((one) => fact("Failed try", `${one.endpoint}: ${one.error} after ${duration(one.ms)}`)),
    ...turn.tools.map((one) => fact("Tool", `${one.name}: ${one.has_failed ? "failed" : "answered"} after ${duration(one.ms)}`)),
  );
  const node = h("li", { class: "turn" }, h("details", {}, summary, details));
  node.bar = bar;
  return node;
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
