// Models beside each other: how often each was asked lately, how long it took, how quick it is.

import { h, keyed, set, show, text } from "../dom.js";
import { count, duration, percentile } from "../format.js";
import { speedOf } from "./parts.js";

const TITLES = ["Model", "Turns", "Failed", "First output", "95 %", "Whole turn", "95 %", "Tokens / s"];

/** `update(turns)`: of those turns, by the name of their model. */
export function modelTable() {
  const rows = h("tbody", {});
  const table = h(
    "table",
    {},
    h("caption", { class: "unseen" }, "Models over the last minutes; times are the median, and what 95 % were within"),
    h("thead", {}, h("tr", {}, TITLES.map((title, index) => h("th", { scope: "col", class: index ? "right" : null }, title)))),
    rows,
  );
  const element = h("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Models over the last minutes" }, table);
  return {
    element,
    update(turns) {
      const models = [...byModel(turns)].map(([model, its]) => ({ model, its })).sort((a, b) => b.its.length - a.its.length);
      keyed(rows, models, ({ model }) => model, row, updateRow);
      show(element, models.length > 0);
    },
  };
}

function byModel(turns) {
  const groups = new Map();
  for (const turn of turns) {
    if (!groups.has(turn.model)) groups.set(turn.model, []);
    groups.get(turn.model).push(turn);
  }
  return groups;
}

function row({ model }) {
  return h("tr", {}, h("th", { scope: "row" }, model || "–"), TITLES.slice(1).map(() => h("td", { class: "number right" })));
}

function updateRow(node, { its }) {
  const sorted = (values) => values.filter((value) => value !== null).sort((a, b) => a - b);
  const firsts = sorted(its.map(({ first_ms }) => first_ms));
  const whole = sorted(its.filter(({ status }) => status === "completed").map(({ total_ms }) => total_ms));
  const failed = its.filter(({ status }) => status === "failed").length;
  const speed = percentile(sorted(its.map(speedOf)), 0.5);
  const values = [
    count(its.length),
    count(failed),
    duration(percentile(firsts, 0.5)),
    duration(percentile(firsts, 0.95)),
    duration(percentile(whole, 0.5)),
    duration(percentile(whole, 0.95)),
    speed === null ? "–" : count(speed),
  ];
  values.forEach((value, index) => text(node.children[index + 1], value));
  set(node.children[2], "data-bad", failed > 0);
}
