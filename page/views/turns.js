// Turns that run, and those that have ended lately.

import { h, keyed, show, text } from "../dom.js";
import { follow, live } from "../feed.js";
import { duration, plural } from "../format.js";
import { nothing, pill } from "./parts.js";
import { turnList } from "./turn_list.js";

const MOST = 200;

export function turnsView() {
  const search = h("input", { type: "search", id: "turn-search", placeholder: "Model, endpoint, owner, id, error…", oninput: update });
  const only = h("select", { id: "turn-status", onchange: update }, [
    ["", "All"],
    ["failed", "Failed"],
    ["tries", "More than one try"],
    ["tools", "With tools"],
    ["cancelled", "Cancelled"],
  ].map(([value, words]) => h("option", { value }, words)));
  const note = h("p", { class: "note" });
  const list = turnList({ most: MOST });
  const waiting = h("ul", { class: "rows waiting", "aria-label": "Requests that wait for a slot", hidden: true });
  const empty = nothing("Nothing here yet.", h("p", { class: "note" }, "Turns appear as they run, and stay until the router has seen a few hundred others. What is stored of them is under ", h("a", { href: "#/stored" }, "Stored"), "."));
  const element = h(
    "div",
    { class: "view" },
    h("h1", {}, "Turns"),
    h("div", { class: "filters" }, h("label", { for: "turn-search" }, "Search"), search, h("div", { class: "pair" }, h("label", { for: "turn-status" }, "Show"), only)),
    note,
    waiting,
    list.element,
    empty,
  );

  function fits(turn) {
    const wanted = search.value.trim().toLowerCase();
    if (wanted && ![turn.model, turn.endpoint, turn.owner, turn.key, turn.id, turn.error, turn.door].join(" ").toLowerCase().includes(wanted)) return false;
    switch (only.value) {
      case "failed":
      case "cancelled":
        return turn.status === only.value;
      case "tries":
        return turn.attempts > 1;
      case "tools":
        return turn.tools.length > 0;
      default:
        return true;
    }
  }
  function update() {
    if (!live.now) return;
    const is_filtered = Boolean(search.value.trim() || only.value);
    const ended = live.turns.filter(fits);
    const running = is_filtered ? [] : live.now.running;
    list.update(running, ended);
    const first = live.now.queue.first.map((row, index) => ({ ...row, id: index }));
    keyed(waiting, first, ({ id }) => id, waitingRow, updateWaiting);
    show(waiting, first.length > 0 && !is_filtered);
    const shown = Math.min(ended.length, MOST);
    const more = live.now.running_total > live.now.running.length ? `, ${plural(live.now.running.length, "of them is", "of them are")} shown` : "";
    text(note, `${plural(live.now.running_total, "turn runs", "turns run")}${more}. ${plural(shown, "that has ended is", "that have ended are")} listed${is_filtered ? " by what you look for" : ""}.`);
    show(list.element, running.length + ended.length > 0);
    show(empty, running.length + ended.length === 0);
  }
  return { element, leave: follow(update) };
}

function waitingRow(row) {
  return h("li", {}, h("span", { class: "status" }, pill("warn", "waits")), h("span", { class: "model" }, row.model), h("span", { class: "where" }), h("span", { class: "time number" }));
}

function updateWaiting(node, row) {
  text(node.children[2], row.position ? `${plural(row.position, "is", "are")} before it` : "is next");
  text(node.children[3], duration(row.waited_s * 1000));
}
