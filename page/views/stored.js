// What is kept: responses and conversations, the newest first; and what one holds, where that may be shown.

import { ask } from "../api.js";
import { actionButton, copyButton, h, show, text } from "../dom.js";
import { ago, bytes, moment } from "../format.js";
import { itemsOf } from "./items.js";
import { nothing, statusPill } from "./parts.js";

const KINDS = { responses: "Responses", conversations: "Conversations" };

export function storedView({ rest }) {
  const [kind = "responses", id, owner = ""] = rest;
  const is_one = id !== undefined;
  const element = h("div", { class: "view" });
  const bar = h("p", { class: "crumbs" }, Object.entries(KINDS).map(([path, name]) => h("a", { href: `#/stored/${path}`, "aria-current": path === kind ? "true" : null }, name)));
  element.append(h("h1", {}, "Stored"), bar);
  element.append(is_one ? one(kind, id, owner) : list(kind));
  return { element };
}

function list(kind) {
  const rows = h("ul", { class: "rows" });
  const problem = h("p", { class: "banner bad", role: "alert", hidden: true });
  const empty = nothing(kind === "responses" ? "No response is stored." : "No conversation was made.", h("p", { class: "note" }, kind === "responses" ? "Turns are stored unless their request has “store”: false." : "Clients make them with POST /v1/conversations."));
  show(empty, false);
  let before = null;
  const more = actionButton("Older ones", load);
  const element = h("div", {}, problem, rows, empty, more);
  async function load() {
    const page = await ask(`api/page/${kind}?limit=50${before === null ? "" : `&before=${before}`}`);
    rows.append(...page.data.map((row) => (kind === "responses" ? responseRow(row) : conversationRow(row))));
    before = page.data.at(-1)?.number ?? before;
    show(more, page.has_more);
    show(empty, rows.children.length === 0);
  }
  load().catch((error) => {
    text(problem, error.message);
    show(problem, true);
  });
  return element;
}

const linkTo = (kind, { id, owner }) => `#/stored/${kind}/${encodeURIComponent(id)}/${encodeURIComponent(owner)}`;

function responseRow(row) {
  return h("li", {}, h("span", { class: "status" }, statusPill(row.status)), h("span", { class: "model" }, row.model), h("a", { class: "id", href: linkTo("responses", row) }, h("code", {}, row.id)), h("span", { class: "where" }, row.owner || "admins"), h("span", { class: "time", title: moment(row.created_at) }, ago(row.created_at)), h("span", { class: "number" }, bytes(row.bytes)));
}

function conversationRow(row) {
  return h("li", {}, h("a", { class: "id", href: linkTo("conversations", row) }, h("code", {}, row.id)), h("span", { class: "where" }, row.owner || "admins"), h("span", { class: "time", title: moment(row.created_at) }, `made ${ago(row.created_at)}`), h("span", { class: "time" }, `used ${ago(row.used_at)}`), h("span", { class: "number" }, `${row.items} items`));
}

function one(kind, id, owner) {
  const element = h("div", { class: "one" }, h("p", { class: "note" }, "Loading…"));
  ask(`api/page/${kind}/${encodeURIComponent(id)}?owner=${encodeURIComponent(owner)}`)
    .then((found) => {
      const raw = JSON.stringify(found.content ?? found, null, 2);
      element.replaceChildren(
        h("div", { class: "heading" }, h("h2", {}, h("code", {}, id)), found.status ? statusPill(found.status) : null),
        h("dl", { class: "facts" }, factsOf(found).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
        found.content ? itemsOf(found.content) : nothing(found.why),
        found.content ? h("details", { class: "raw" }, h("summary", {}, "As JSON"), copyButton(() => raw), h("pre", { tabindex: "0" }, raw)) : null,
      );
    })
    .catch((error) => element.replaceChildren(nothing(error.message)));
  return element;
}

function factsOf(found) {
  const usage = found.usage;
  return [
    ["Model", found.model],
    ["Whose", found.owner || "admins"],
    ["Made", moment(found.created_at)],
    ["Goes on from", found.previous_response_id ? h("a", { href: linkTo("responses", { id: found.previous_response_id, owner: found.owner }) }, h("code", {}, found.previous_response_id)) : null],
    ["Conversation", found.conversation ? h("a", { href: linkTo("conversations", { id: found.conversation, owner: found.owner }) }, h("code", {}, found.conversation)) : null],
    ["Tokens", usage ? `${usage.input_tokens} in, ${usage.output_tokens} out` : null],
    ["Failed with", found.error ?? null],
  ].filter(([, value]) => value);
}
