// What several views show alike: where an endpoint stands, how a turn went.

import { h } from "../dom.js";
import { count, duration, plural } from "../format.js";
import { phases } from "../plots.js";

/** A word in a colour that says how well something is; the word alone is enough. */
export const pill = (tone, words) => h("span", { class: `pill ${tone}` }, words);

const STATES = { up: ["good", "up"], down: ["bad", "down"], draining: ["warn", "draining"], leaving: ["warn", "leaving"] };

export const statePill = (state) => pill(...(STATES[state] ?? ["plain", state]));

const ENDS = { completed: "good", incomplete: "warn", failed: "bad", cancelled: "plain", queued: "plain", in_progress: "accent" };

export const statusPill = (status) => pill(ENDS[status] ?? "plain", status.replace("_", " "));

/** A heading with what belongs to it on its right. */
export const heading = (words, ...aside) => h("div", { class: "heading" }, h("h2", {}, words), ...aside);

/** What stands where there is nothing. */
export const nothing = (words, ...more) => h("div", { class: "nothing" }, h("p", {}, words), ...more);

/** The times of a turn from one end to the other, each with words. Of an answer that is no stream nobody knows when it began. */
export function partsOf(turn) {
  const total = turn.total_ms;
  const asked = Math.min(turn.asked_ms ?? total, total);
  const waited = Math.min(turn.waited_ms ?? 0, asked);
  const answered = Math.min(Math.max(turn.answered_ms ?? total, asked), total);
  const is_stream = turn.first_ms !== null;
  const first = is_stream ? Math.min(Math.max(turn.first_ms, answered), total) : answered;
  const tried = turn.attempts > 1;
  const has_failed = !is_stream && turn.status === "failed";
  return [
    { ms: waited, kind: "waited", words: `waited ${duration(waited)} for a slot` },
    { ms: asked - waited, kind: tried ? "tried" : "before", words: `${tried ? "tried elsewhere in vain for" : "before it was sent"} ${duration(asked - waited)}` },
    { ms: answered - asked, kind: "connected", words: `${duration(answered - asked)} until the server answered` },
    { ms: first - answered, kind: "thought", words: `${duration(first - answered)} until the first output` },
    has_failed
      ? { ms: total - first, kind: "failed", words: `${duration(total - first)} until it had failed` }
      : { ms: total - first, kind: "streamed", words: `${duration(total - first)} of ${is_stream ? "output" : "a whole answer"}` },
  ].filter(({ ms }) => ms > 0);
}

export const turnBar = (turn, full_ms) => phases(partsOf(turn), full_ms);

/** What the colours of the bar mean. */
export const legend = () =>
  h(
    "ul",
    { class: "legend", "aria-label": "Phases of a turn" },
    [
      ["waited", "waited for a slot"],
      ["tried", "tried in vain"],
      ["connected", "until the server answered"],
      ["thought", "until the first output"],
      ["streamed", "output"],
    ].map(([kind, words]) => h("li", {}, h("span", { class: `phase ${kind}` }), words)),
  );

/** Tokens of a turn in words. */
export function tokensOf(turn) {
  if (turn.from_cache) return "from the cache";
  const about = turn.is_estimated ? "about " : "";
  return `${about}${count(turn.input)} in, ${count(turn.output)} out`;
}

/** Tokens of output each second, behind the first. */
export function speedOf(turn) {
  if (turn.first_ms === null || turn.output < 2 || turn.from_cache) return null;
  const seconds = (turn.total_ms - turn.first_ms) / 1000;
  return seconds > 0.02 ? (turn.output - 1) / seconds : null;
}

export const triesOf = (turn) => (turn.attempts > 1 ? plural(turn.attempts, "try", "tries") : "");
