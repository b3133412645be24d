// The playground: a turn to any model, its answer as it grows, the events beside it, and the same request elsewhere.

import { actionButton, announce, codeBlock, h, set, show, tabs, text } from "../dom.js";
import { follow, live } from "../feed.js";
import { count, duration } from "../format.js";
import { codex, curl, node, python } from "./code.js";
import { conversation, rawEvents } from "./output.js";
import { streamTurn } from "./stream.js";

const EFFORTS = ["", "none", "minimal", "low", "medium", "high", "xhigh"];
const FUNCTION = {
  type: "function",
  name: "get_weather",
  description: "The weather at a place.",
  parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"], additionalProperties: false },
  strict: true,
};
const SAMPLES = [
  ["A function", FUNCTION],
  ["Web search", { type: "web_search" }],
  ["An MCP server", { type: "mcp", server_label: "docs", server_url: "https://mcp.example/mcp", require_approval: "never" }],
];

export function playgroundView({ session }) {
  // What the next turn goes on from: an id, or all items where nothing is stored.
  let previous = null;
  let history = [];
  let given = [];
  let aborter = null;
  let calls = [];
  // What was sent last: the request that is shown elsewhere while no other one is written.
  let last = null;

  const model = h("select", { id: "play-model", onchange: changed });
  const instructions = h("textarea", { id: "play-instructions", rows: 2, placeholder: "You are a helpful assistant.", oninput: changed });
  const effort = h("select", { id: "play-effort", onchange: changed }, EFFORTS.map((value) => h("option", { value }, value || "default")));
  const most = h("input", { id: "play-most", type: "number", min: 1, step: 1, placeholder: "no limit", oninput: changed });
  const stored = h("input", { id: "play-store", type: "checkbox", checked: true, onchange: changed });
  const tools = h("textarea", { id: "play-tools", rows: 4, spellcheck: "false", class: "mono", placeholder: "[ ]", oninput: changed, "aria-describedby": "play-tools-problem" });
  const toolsProblem = h("p", { class: "problem", id: "play-tools-problem", role: "alert", hidden: true });
  const input = h("textarea", { id: "play-input", rows: 3, placeholder: "Ask something…", oninput: changed, onkeydown: onKey });
  const send = h("button", { type: "submit", class: "button main" }, "Send");
  const stop = h("button", { type: "button", class: "button", hidden: true, onclick: () => aborter?.abort() }, "Stop");
  const anew = h("button", { type: "button", class: "button quiet", onclick: startAnew }, "New conversation");
  const facts = h("p", { class: "note outcome", role: "status" });
  const events = rawEvents();
  const talk = conversation({ onCall });
  const hint = h("p", { class: "hint" }, "The answer appears here as it is made.");
  const codes = { curl, Python: python, node, Codex: codex };
  const blocks = Object.entries(codes).map(([name, make]) => ({ name, make, panel: codeBlock(() => make(body(), session.asks_for_keys), `The request as ${name}`) }));
  const form = h(
    "form",
    { class: "card play-form", onsubmit: submit, "aria-label": "Request" },
    field("Model", model),
    field("Instructions", instructions),
    h("div", { class: "pair" }, field("Reasoning effort", effort), field("Most output tokens", most)),
    h("details", { class: "tools" }, h("summary", {}, "Tools"), h("div", { class: "samples" }, SAMPLES.map(([words, tool]) => h("button", { type: "button", class: "button quiet", onclick: () => addTool(tool) }, `Add: ${words}`))), field("Tools as JSON", tools), toolsProblem),
    h("label", { class: "check" }, stored, "Store it (the next turn goes on from it)"),
    field("Input", input),
    h("div", { class: "buttons" }, send, stop, anew),
  );
  const element = h(
    "div",
    { class: "view" },
    h("h1", {}, "Playground"),
    h(
      "div",
      { class: "play" },
      form,
      h("section", { class: "card play-talk", "aria-label": "Answer" }, hint, talk.element, facts),
      h("section", { class: "card play-raw", "aria-label": "Behind it" }, tabs("Behind the answer", [{ name: "Events", panel: events.element }, ...blocks])),
    ),
  );

  function toolsGiven() {
    const written = tools.value.trim();
    if (!written) return [];
    const value = JSON.parse(written);
    if (!Array.isArray(value)) throw new SyntaxError("a list of tools is wanted: [ … ]");
    return value;
  }
  function body(items) {
    let wanted = [];
    try {
      wanted = toolsGiven();
      show(toolsProblem, false);
    } catch (error) {
      text(toolsProblem, `This is not JSON yet: ${error.message}`);
      show(toolsProblem, true);
    }
    const fresh = items ?? input.value;
    return {
      model: model.value,
      ...(instructions.value.trim() && { instructions: instructions.value }),
      input: previous === null && history.length ? [...history, ...asItems(fresh)] : fresh,
      ...(previous !== null && { previous_response_id: previous }),
      ...(wanted.length && { tools: wanted }),
      ...(effort.value && { reasoning: { effort: effort.value } }),
      ...(most.value && { max_output_tokens: Number(most.value) }),
      ...(!stored.checked && { store: false }),
    };
  }
  function changed() {
    const now = last !== null && !input.value ? last : body();
    for (const { make, panel } of blocks) text(panel.querySelector("code"), make(now, session.asks_for_keys));
  }
  function addTool(tool) {
    let known = [];
    try {
      known = toolsGiven();
    } catch {
      // What is there cannot be read: it is replaced.
    }
    tools.value = JSON.stringify([...known, tool], null, 2);
    changed();
    announce(`${tool.name ?? tool.type} was added`);
  }
  function onKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  }
  function submit(event) {
    event.preventDefault();
    if (aborter) return;
    if (input.value.trim()) run(input.value);
    else input.focus();
  }

  async function run(fresh) {
    const sent = body(fresh);
    if (!toolsProblem.hidden) return;
    last = sent;
    for (const item of asItems(fresh)) talk.add(item);
    given = asItems(fresh);
    calls = [];
    events.clear();
    show(hint, false);
    text(facts, "Sent…");
    input.value = "";
    aborter = new AbortController();
    set(send, "disabled", true);
    show(stop, true);
    const began = performance.now();
    let first = null;
    let way = "";
    try {
      await streamTurn(sent, {
        signal: aborter.signal,
        onHeaders: (headers) => {
          way = headers.get("x-nomyo-endpoint") ? ` at ${headers.get("x-nomyo-endpoint")}` : "";
          const adapted = headers.get("x-nomyo-adapted");
          if (adapted) talk.note(`Changed so that the server takes it: ${adapted}`);
        },
        onEvent: (event) => {
          if (first === null && event.type.endsWith(".delta")) {
            first = performance.now() - began;
            text(facts, "Answers…");
          }
          events.add(event);
          talk.take(event);
          if (event.response && /^response\.(completed|incomplete|failed)$/.test(event.type)) ended(event.response);
        },
      });
    } catch (error) {
      if (error.name === "AbortError") {
        text(facts, "Stopped: the router has ended it at its server.");
        talk.note("Stopped.", "stopped");
      } else {
        talk.note(error.message, "failed");
        text(facts, `Failed${error.status ? ` with status ${error.status}` : ""}.`);
      }
    } finally {
      aborter = null;
      set(send, "disabled", false);
      show(stop, false);
      changed();
    }

    function ended(response) {
      const took = performance.now() - began;
      const usage = response.usage ? `, ${count(response.usage.input_tokens)} tokens in and ${count(response.usage.output_tokens)} out` : "";
      const words = `${response.status === "completed" ? "Completed" : response.status === "failed" ? "Failed" : "Incomplete"}${way} in ${duration(took)}${first === null ? "" : `, first output after ${duration(first)}`}${usage}.`;
      text(facts, words);
      if (response.error) talk.note(response.error.message, "failed");
      if (response.status === "failed") return;
      if (stored.checked) {
        previous = response.id;
        history = [];
      } else {
        history = [...history, ...given, ...response.output];
        previous = null;
      }
    }
  }

  /** A call of a function: whoever looks answers it here. */
  function onCall(item, entry) {
    calls.push(item);
    const id = `call-${item.call_id}`;
    const answer = h("textarea", { id, rows: 2, class: "mono", placeholder: '{"weather": "sunny"}' });
    const button = actionButton("Answer the call", async () => {
      item.answer = answer.value;
      box.remove();
      if (calls.every((call) => call.answer !== undefined)) {
        await run(calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: call.answer })));
      }
    });
    const box = h("div", { class: "answer" }, h("label", { for: id }, `What ${item.name} gives`), answer, button);
    entry.querySelector(".body").append(box);
  }
  function startAnew() {
    aborter?.abort();
    previous = last = null;
    history = [];
    calls = [];
    talk.clear();
    events.clear();
    text(facts, "");
    show(hint, true);
    changed();
    input.focus();
  }

  const unfollow = follow(() => {
    const names = [...new Set((live.fleet?.endpoints ?? []).flatMap(({ models }) => models.map(({ name }) => name)))].sort();
    const known = [...model.options].map(({ value }) => value);
    if (names.join("\n") === known.join("\n")) return;
    const chosen = model.value;
    model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) model.value = chosen;
    set(send, "disabled", names.length === 0);
    changed();
  });
  return {
    element,
    leave() {
      unfollow();
      aborter?.abort();
    },
  };
}

const asItems = (given) => (typeof given === "string" ? [{ type: "message", role: "user", content: given }] : given);

function field(words, control) {
  return h("div", { class: "field" }, h("label", { for: control.id }, words), control);
}
