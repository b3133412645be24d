// Turns that run without a client: those that wait and run now, and cancelling them.

import { ask } from "../api.js";
import { actionButton, announce, h, keyed, show, text } from "../dom.js";
import { follow, live } from "../feed.js";
import { ago, plural } from "../format.js";
import { nothing, statusPill } from "./parts.js";

const AGAIN_MS = 3000;

export function backgroundView() {
  const note = h("p", { class: "note" });
  const problem = h("p", { class: "banner bad", role: "alert", hidden: true });
  const list = h("ul", { class: "rows" });
  const empty = nothing("No background turn waits or runs.", h("p", { class: "note" }, "They are made with ", h("code", {}, '"background": true'), ", and go on when their client leaves."));
  const element = h("div", { class: "view" }, h("h1", {}, "Background"), note, problem, list, empty);
  let seen = "";

  async function load() {
    try {
      const { data } = await ask("api/page/background");
      show(problem, false);
      keyed(list, data, ({ owner, id }) => `${owner} ${id}`, row, updateRow);
      show(empty, data.length === 0);
      show(list, data.length > 0);
    } catch (error) {
      text(problem, error.message);
      show(problem, true);
    }
  }
  function row(turn) {
    const cancel = actionButton(
      "Cancel",
      async () => {
        await ask(`api/page/responses/${encodeURIComponent(turn.id)}/cancel?owner=${encodeURIComponent(turn.owner)}`, { method: "POST" });
        announce(`${turn.id} was cancelled`);
        await load();
      },
      { "aria-label": `Cancel ${turn.id}` },
    );
    return h("li", {}, h("span", { class: "status" }), h("span", { class: "model" }, turn.model), h("code", { class: "id" }, turn.id), h("span", { class: "where" }, turn.owner || "admins"), h("span", { class: "time" }), cancel);
  }
  function updateRow(node, turn) {
    if (node.status !== turn.status) {
      node.status = turn.status;
      node.children[0].replaceChildren(statusPill(turn.status));
    }
    text(node.children[4], ago(turn.created_at));
  }
  const unfollow = follow(() => {
    const { running = 0, queued = 0 } = live.now?.background ?? {};
    text(note, `${plural(running, "turn runs", "turns run")}, ${count_of(queued)}.`);
    if (seen !== `${running} ${queued}`) {
      seen = `${running} ${queued}`;
      load();
    }
  });
  const timer = setInterval(() => document.hidden || load(), AGAIN_MS);
  return {
    element,
    leave() {
      unfollow();
      clearInterval(timer);
    },
  };
}

const count_of = (queued) => (queued === 1 ? "one waits" : `${queued} wait`);
