// Items of a conversation, as people read them.

import { h } from "../dom.js";

/** `{ input, output }` as a conversation. */
export function itemsOf({ input, output }) {
  return h("ol", { class: "items" }, [...input, ...(output ?? [])].map(itemOf));
}

/** One item: a message, reasoning, a call, its output; others as JSON. */
export function itemOf(item) {
  switch (item.type ?? "message") {
    case "message":
      return entry(item.role ?? "message", item.role === "assistant" ? "assistant" : "given", ...partsOf(item.content));
    case "reasoning":
      return entry("reasoning", "reasoning", textOf(item.content) || textOf(item.summary) || "sealed");
    case "function_call":
    case "custom_tool_call":
      return entry(`calls ${item.name}`, "call", h("pre", { tabindex: "0" }, pretty(item.arguments ?? item.input)));
    case "function_call_output":
    case "custom_tool_call_output":
      return entry("tool answers", "output", h("pre", { tabindex: "0" }, typeof item.output === "string" ? item.output : pretty(item.output)));
    default:
      return entry(item.type.replaceAll("_", " "), "other", h("pre", { tabindex: "0" }, pretty(item)));
  }
}

function entry(who, kind, ...content) {
  return h("li", { class: `item ${kind}` }, h("span", { class: "who" }, who), h("div", { class: "body" }, content));
}

function partsOf(content) {
  if (typeof content === "string") return [h("p", {}, content)];
  return (content ?? []).map((part) => {
    if (typeof part.text === "string") return h("p", {}, part.text);
    if (part.type === "refusal") return h("p", { class: "problem" }, part.refusal);
    return h("p", { class: "faint" }, part.type?.replaceAll("_", " ") ?? "part");
  });
}

function textOf(parts) {
  return (parts ?? []).map(({ text }) => text ?? "").join("\n");
}

/** JSON with room in it, of a value or of what is JSON already. */
export function pretty(value) {
  try {
    return JSON.stringify(typeof value === "string" ? JSON.parse(value) : value, null, 2);
  } catch {
    return String(value);
  }
}
