// The endpoints: how each stands and why, what runs there, its models; and taking one out of the choice and back.

import { ask } from "../api.js";
import { actionButton, announce, h, keyed, set, show, text } from "../dom.js";
import { follow, live } from "../feed.js";
import { count, plural } from "../format.js";
import { meter } from "../plots.js";
import { newcomer } from "./newcomer.js";
import { pill, statePill } from "./parts.js";

export function endpointsView({ rest }) {
  const [chosen] = rest;
  const list = h("div", { class: "endpoints" });
  const welcome = newcomer();
  const note = h("p", { class: "note" });
  const element = h("div", { class: "view" }, h("h1", {}, "Endpoints"), note, welcome.element, list);
  let has_scrolled = !chosen;

  function update() {
    if (!live.now || !live.fleet) return;
    keyed(list, live.fleet.endpoints, ({ name }) => name, endpointCard, (node, endpoint) => node.update(endpoint));
    welcome.update();
    const { waiting, longest_wait_s } = live.now.queue;
    const models = new Set(live.fleet.endpoints.flatMap((endpoint) => endpoint.models.map(({ name }) => name)));
    text(note, `${plural(live.fleet.endpoints.length, "endpoint")}, ${plural(models.size, "model")}. ${waiting ? `${plural(waiting, "request waits", "requests wait")} for a slot, the first for ${longest_wait_s.toFixed(1)} s.` : "No request waits for a slot."}`);
    if (!has_scrolled) {
      has_scrolled = true;
      document.getElementById(idOf(chosen))?.scrollIntoView();
    }
  }
  return { element, leave: follow(update) };
}

const idOf = (name) => `endpoint-${name}`;

function endpointCard(endpoint) {
  const { name } = endpoint;
  const state = h("span", {});
  const about = h("p", { class: "note about" });
  const why = h("p", { class: "why" });
  const use = meter(`Slots of ${name} in use`);
  const slots = h("span", { class: "number" });
  const facts = h("dl", { class: "facts" });
  const models = h("tbody", {});
  const table = h("table", {}, h("caption", { class: "unseen" }, `Models of ${name}`), h("thead", {}, h("tr", {}, ["Model", "Called there", "In memory", "Context", "Breaker"].map((title) => h("th", { scope: "col" }, title)))), models);
  const path = `api/endpoints/${encodeURIComponent(name)}`;
  const steer = (verb, words) => async () => {
    await ask(`${path}/${verb}`, { method: "POST" });
    announce(`${name} ${words}`);
  };
  const drain = actionButton("Drain", steer("drain", "is draining"), { "aria-label": `Drain ${name}` });
  const enable = actionButton("Enable", steer("enable", "is enabled"), { "aria-label": `Enable ${name}` });
  const node = h(
    "section",
    { class: "card endpoint", id: idOf(name), "aria-label": name },
    h("div", { class: "heading" }, h("h2", {}, name), state, h("div", { class: "spacer" }), drain, enable),
    about,
    why,
    h("div", { class: "slots" }, use.element, slots),
    facts,
    h("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": `Models of ${name}` }, table),
  );
  let was = "";
  node.update = (given) => {
    const now = live.now.endpoints[name] ?? { in_flight: 0, max_concurrent: 0, outcomes: {} };
    if (was !== given.state) {
      was = given.state;
      state.replaceChildren(statePill(given.state));
    }
    set(node, "data-state", given.state);
    text(about, [given.kind, given.version, given.url].filter(Boolean).join(" · "));
    const reason = given.error ? `${given.error} ${given.advice ?? ""}` : (given.advice ?? "");
    text(why, reason.trim());
    show(why, Boolean(reason.trim()));
    const opened = given.models.some(({ breaker }) => breaker !== "closed");
    show(drain, given.state === "up" || given.state === "down");
    show(enable, given.state === "draining" || opened);
    use.update(now.in_flight, now.max_concurrent);
    text(slots, `${now.in_flight} of ${plural(now.max_concurrent, "slot")} in use`);
    const rows = [
      ["Answered", count(now.outcomes.answered ?? 0)],
      ["Failed", count(now.outcomes.failed ?? 0)],
      ["Last failure", given.last_error ?? "none"],
      ["Priority", given.priority],
      ["Weight", given.weight],
    ];
    keyed(facts, rows, ([title]) => title, ([title]) => h("div", {}, h("dt", {}, title), h("dd", {})), (row, [, value]) => text(row.lastChild, value));
    keyed(models, given.models, (model) => model.name, modelRow, updateModel);
    show(table.parentNode, given.models.length > 0);
  };
  return node;
}

function modelRow() {
  return h("tr", {}, h("th", { scope: "row" }), h("td", {}), h("td", {}), h("td", { class: "number" }), h("td", {}));
}

function updateModel(row, model) {
  const [name, there, loaded, context, breaker] = row.children;
  text(name, model.name);
  text(there, model.there === model.name ? "" : model.there);
  if (row.loaded !== String(model.loaded)) {
    row.loaded = String(model.loaded);
    loaded.replaceChildren(model.loaded === null ? h("span", { class: "faint" }, "not known") : model.loaded ? pill("good", "loaded") : h("span", { class: "faint" }, "no"));
  }
  text(context, model.context ? count(model.context) : "");
  if (row.breaker !== model.breaker) {
    row.breaker = model.breaker;
    breaker.replaceChildren(model.breaker === "closed" ? h("span", { class: "faint" }, "closed") : pill(model.breaker === "open" ? "bad" : "warn", model.breaker.replace("_", "-")));
  }
}
