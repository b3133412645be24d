// The keys: whose they are, what they may do, and what they have used.

import { ask } from "../api.js";
import { h, show, text } from "../dom.js";
import { count, moment, money, plural } from "../format.js";
import { meter } from "../plots.js";
import { nothing, pill } from "./parts.js";

const STATES = { valid: "good", ending: "warn", unknown: "warn" };

export function keysView() {
  const note = h("p", { class: "note" });
  const problem = h("p", { class: "banner bad", role: "alert", hidden: true });
  const list = h("div", { class: "keys" });
  const empty = nothing("The router asks for no key.", h("p", { class: "note" }, "Whoever can reach it may use it, and is an admin. ", h("code", {}, "./nomyo keys add NAME"), " makes the first key, and closes the router for all others; so does ", h("code", {}, "api_key"), " in config.yaml."));
  show(empty, false);
  const element = h("div", { class: "view" }, h("h1", {}, "Keys"), note, problem, list, empty);
  load().catch((error) => {
    text(problem, error.message);
    show(problem, true);
  });

  async function load() {
    const now = new Date();
    const today = Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate()) / 1000;
    const month = Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1) / 1000;
    const [{ keys }, usage] = await Promise.all([ask("api/keys"), ask(`api/usage?by=key&step=day&from=${month}`)]);
    const used = new Map();
    for (const row of usage.data) {
      const uses = used.get(row.key) ?? { day: none(), month: none() };
      add(uses.month, row);
      if (row.at >= today) add(uses.day, row);
      used.set(row.key, uses);
    }
    const rows = keys.map((key) => ({ ...key, used: used.get(key.name) ?? { day: none(), month: none() } }));
    const admin = used.get("");
    if (admin && keys.length) rows.unshift({ name: "api_key", place: "settings", admin: true, used: admin });
    list.replaceChildren(...rows.map(keyCard));
    show(empty, rows.length === 0);
    text(note, rows.length ? `${plural(rows.length, "key")}. Days and months are UTC. ./nomyo keys makes, replaces and revokes them.` : "");
  }
  return { element };
}

const none = () => ({ requests: 0, tokens: 0, cost: 0 });

function add(total, row) {
  total.requests += row.requests;
  total.tokens += row.input_tokens + row.output_tokens;
  total.cost += row.cost;
}

function keyCard(key) {
  const state = key.state ?? "valid";
  return h(
    "section",
    { class: "card key", "aria-label": key.name },
    h("div", { class: "heading" }, h("h2", {}, key.name), pill(STATES[state] ?? "plain", state), key.admin ? pill("accent", "admin") : null, h("div", { class: "spacer" }), key.key ? h("code", {}, key.key) : h("span", { class: "faint" }, `of the ${key.place}`)),
    h(
      "dl",
      { class: "facts" },
      [
        ["Whose", key.owner || "admins"],
        ["Models", key.models ? key.models.join(", ") : "all"],
        ["Ends", key.ends_at ? moment(key.ends_at) : "never"],
        ["Today", useIn(key.used.day)],
        ["This month", useIn(key.used.month)],
        ...limitsOf(key),
      ].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    ...budgetsOf(key),
  );
}

const useIn = ({ requests, tokens, cost }) => `${plural(requests, "request")}, ${count(tokens)} tokens${cost ? `, cost ${money(cost)}` : ""}`;

function limitsOf(key) {
  return [
    ["Requests a minute", key.rpm],
    ["Tokens a minute", key.tpm],
    ["At once", key.concurrent],
    ["In the background", key.background],
  ].filter(([, value]) => value).map(([name, value]) => [name, count(value)]);
}

/** What is used of budgets, as the settings spell them: `2M/month`. */
function budgetsOf(key) {
  const found = [];
  for (const [what, of, unit] of [["budget", "tokens", " tokens"], ["cost", "cost", ""]]) {
    for (const text_of of (key[what] ?? "").split(",")) {
      const match = /^\s*([\d.]+)\s*([kM]?)\s*\/\s*(day|month)\s*$/.exec(text_of);
      if (!match) continue;
      const most = Number(match[1]) * { "": 1, k: 1e3, M: 1e6 }[match[2]];
      const value = key.used[match[3]][of];
      const bar = meter(`${key.name}: ${of} of the ${match[3]}`);
      const words = `${of === "cost" ? money(value) : count(value)} of ${of === "cost" ? most : count(most)}${unit} ${match[3] === "day" ? "today" : "this month"}`;
      bar.update(value, most, words);
      found.push(h("div", { class: "slots" }, bar.element, h("span", { class: "number" }, words)));
    }
  }
  return found;
}
