// What a turn answers, as it grows: text, reasoning and calls, each an entry of the conversation.

import { h, text } from "../dom.js";
import { itemOf, pretty } from "../views/items.js";

/** An ordered list that takes events, and gives the calls that somebody must answer (`onCall(item, entry)`). */
export function conversation({ onCall }) {
  const element = h("ol", { class: "items", "aria-label": "Conversation" });
  let open = new Map();

  function begin(index, item) {
    if (item.type === "message" || item.type === "reasoning" || item.type.endsWith("_call")) {
      const body = h("div", { class: "body" });
      const growing = item.type.endsWith("_call") ? h("pre", { tabindex: "0" }) : h("p", {});
      body.append(growing);
      const who = item.type === "message" ? "assistant" : item.type === "reasoning" ? "reasoning" : `calls ${item.name ?? item.type.replaceAll("_", " ")}`;
      const kind = item.type === "message" ? "assistant" : item.type === "reasoning" ? "reasoning" : "call";
      const entry = h("li", { class: `item ${kind} growing` }, h("span", { class: "who" }, who), body);
      open.set(index, { entry, growing });
      element.append(entry);
    }
  }
  function grow(index, delta) {
    open.get(index)?.growing.append(delta);
  }
  function end(index, item) {
    const entry = itemOf(item);
    const before = open.get(index)?.entry;
    open.delete(index);
    if (before) before.replaceWith(entry);
    else element.append(entry);
    if (item.type === "function_call") onCall(item, entry);
  }
  return {
    element,
    /** What the user gives. */
    add(item) {
      element.append(itemOf(item));
    },
    note(words, kind = "") {
      element.append(h("li", { class: `item end ${kind}` }, h("span", { class: "who" }, kind === "failed" ? "failed" : ""), h("div", { class: "body" }, h("p", {}, words))));
    },
    take(event) {
      switch (event.type) {
        case "response.output_item.added":
          return begin(event.output_index, event.item);
        case "response.output_text.delta":
        case "response.refusal.delta":
        case "response.reasoning_text.delta":
        case "response.reasoning_summary_text.delta":
        case "response.function_call_arguments.delta":
        case "response.custom_tool_call_input.delta":
          return grow(event.output_index, event.delta);
        case "response.output_item.done":
          return end(event.output_index, event.item);
        case "response.completed":
        case "response.incomplete":
        case "response.failed":
          for (const { entry } of open.values()) entry.classList.remove("growing");
          open = new Map();
          return undefined;
        default:
          return undefined;
      }
    },
    clear() {
      open = new Map();
      element.replaceChildren();
    },
  };
}

const MOST_EVENTS = 3000;

/** Every event as it came, in its order. */
export function rawEvents() {
  const list = h("ol", { class: "events", tabindex: "0", "aria-label": "Events" });
  const number = h("span", { class: "number" }, "0 events");
  let total = 0;
  return {
    element: h("div", { class: "raw-events" }, h("p", { class: "note" }, number), list),
    add(event) {
      total += 1;
      text(number, total === 1 ? "1 event" : `${total} events`);
      const { type, ...rest } = event;
      const is_at_end = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
      const body = h("pre", {});
      const details = h("details", { ontoggle: () => details.open && text(body, pretty(event)) }, h("summary", {}, h("b", {}, type), " ", h("span", { class: "faint" }, JSON.stringify(rest).slice(0, 200))), body);
      list.append(h("li", {}, details));
      if (list.children.length > MOST_EVENTS) list.firstChild.remove();
      if (is_at_end) list.scrollTop = list.scrollHeight;
    },
    clear() {
      total = 0;
      text(number, "0 events");
      list.replaceChildren();
    },
  };
}
