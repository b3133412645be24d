// The first view: how the router is now, and how it was over the last ten minutes and the last two weeks.

import { ask } from "../api.js";
import { actionButton, announce, h, keyed, set, show, text } from "../dom.js";
import { follow, known_s, live, recent, routerNow, series, STEP_S, WINDOW_S } from "../feed.js";
import { count, day, duration, money, percentile, plural, rate, shortDuration } from "../format.js";
import { barPlot, dotPlot, meter, sparkline, timePlot } from "../plots.js";
import { modelTable } from "./model_table.js";
import { newcomer } from "./newcomer.js";
import { heading, nothing, statePill } from "./parts.js";
import { turnList } from "./turn_list.js";

const DAYS = 14;
const MOST_RUNNING = 4;
const MOST_DOTS = 1500;
const TONES = ["accent", "second", "third", "fourth", "rest"];

export function overviewView() {
  const tiles = {
    requests: tile("Turns / s", "over the last minute", true),
    tokens: tile("Output tokens / s", "over the last minute", true),
    running: tile("In flight", "", false),
    first: tile("First output", "", false),
    took: tile("Whole turn", "", false),
    failed: tile("Failed", "", true, "bad"),
  };
  const tokens = timePlot("Output tokens per second", { label: rate });
  const tokensNote = h("p", { class: "note" });
  const requests = timePlot("Turns per second", { label: rate });
  const firsts = dotPlot("Time to first output, each turn", { label: shortDuration, ticks: [10, 100, 1000, 10_000, 100_000] });
  const days = barPlot(`Tokens over ${DAYS} days`, { label: count });
  const by = h("select", { id: "days-by", onchange: loadDays }, ["model", "endpoint", "key", "owner"].map((value) => h("option", { value }, value)));
  const daysLegend = h("ul", { class: "legend" });
  const daysNote = h("p", { class: "note" });
  const endpoints = h("ul", { class: "strip" });
  const welcome = newcomer();
  const models = modelTable();
  const modelsSection = h("section", { "aria-label": "Models" }, heading("Models"), h("div", { class: "card" }, models.element));
  const turns = turnList({ most: 8 });
  const since = h("dl", { class: "facts" });
  const cacheFacts = h("dl", { class: "facts" });
  const emptyCache = actionButton("Empty it", async () => {
    const { invalidated } = await ask("api/cache/invalidate", { method: "POST" });
    announce(`${plural(invalidated, "entry", "entries")} forgotten`);
    await loadCache();
  });
  show(emptyCache, false);
  const quiet = nothing("No turn has ended yet.", h("p", { class: "note" }, "Send one from the ", h("a", { href: "#/playground" }, "playground"), "."));
  const plots = h(
    "div",
    { class: "grid two" },
    card("Output tokens per second", tokens.element, tokensNote),
    card("Turns per second", requests.element, legendOf([["accent", "ended"], ["bad", "failed"]])),
    card("Time to first output", firsts.element, legendOf([["accent", "streams"], ["second", "whole answers: their end"], ["bad", "failed"]])),
    card("Tokens by day", h("p", { class: "choice" }, h("label", { for: "days-by" }, "by"), by), days.element, daysLegend, daysNote),
  );
  const known = h(
    "div",
    { class: "view" },
    h("div", { class: "tiles" }, Object.values(tiles).map(({ element: one }) => one)),
    h("section", { "aria-label": "Endpoints" }, heading("Endpoints", h("a", { href: "#/endpoints" }, "All details")), endpoints),
    plots,
    modelsSection,
    h("section", { "aria-label": "Turns" }, heading("Turns", h("a", { href: "#/turns" }, "All turns")), turns.element, quiet),
    h("section", { class: "grid two", "aria-label": "Since the start" }, card("Since the router started", since), card("Cache", cacheFacts, emptyCache)),
  );
  const element = h(
    "div",
    { class: "view" },
    h("h1", {}, "Overview"),
    welcome.element,
    known,
  );

  function update() {
    set(element, "data-state", live.now ? "known" : "unknown");
    if (!live.now || !live.fleet) return;
    const window = recent();
    const over = series();
    const minutes = Math.max(1, Math.round(known_s() / 60));
    tiles.requests.update(rate(lastMinute(over.requests)), over.requests);
    tiles.tokens.update(rate(lastMinute(over.output)), over.output);
    const slots = live.fleet.endpoints.reduce((sum, { name }) => sum + (live.now.endpoints[name]?.max_concurrent ?? 0), 0);
    const running = live.fleet.endpoints.reduce((sum, { name }) => sum + (live.now.endpoints[name]?.in_flight ?? 0), 0);
    tiles.running.update(count(running), null, `of ${plural(slots, "slot")}, ${live.now.queue.waiting ? `${count(live.now.queue.waiting)} wait` : "none waits"}`);
    set(tiles.running.element, "data-warn", live.now.queue.waiting > 0);
    const firstTimes = window.filter(({ first_ms }) => first_ms !== null).map(({ first_ms }) => first_ms).sort((a, b) => a - b);
    const times = window.filter(({ status }) => status === "completed").map(({ total_ms }) => total_ms).sort((a, b) => a - b);
    tiles.first.update(duration(percentile(firstTimes, 0.5)), null, `95 % within ${duration(percentile(firstTimes, 0.95))}`);
    tiles.took.update(duration(percentile(times, 0.5)), null, `95 % within ${duration(percentile(times, 0.95))}`);
    const failed = window.filter(({ status }) => status === "failed").length;
    tiles.failed.update(count(failed), over.failures, `of ${count(window.length)} in ${minutes} min`);
    set(tiles.failed.element, "data-bad", failed > 0);
    tokens.update({ times: over.times, lines: [{ name: "output", values: over.output, tone: "accent" }] });
    text(tokensNote, `Counted when a turn ends. Input: ${rate(lastMinute(over.input))} tokens a second over the last minute.${known_s() < WINDOW_S - STEP_S ? " Of the time before, the router remembers no turns." : ""}`);
    requests.update({ times: over.times, lines: [{ name: "ended", values: over.requests, tone: "accent" }, { name: "failed", values: over.failures, tone: "bad" }] });
    const to = routerNow();
    firsts.update({
      from: to - WINDOW_S,
      to,
      dots: window.slice(-MOST_DOTS).map((turn) => ({
        at: turn.at,
        value: turn.first_ms ?? turn.total_ms,
        tone: turn.status === "failed" ? "bad" : turn.first_ms === null ? "second" : "accent",
        words: `${turn.model || "no model"} ${turn.status}: ${turn.first_ms === null ? `no stream, ended after ${duration(turn.total_ms)}` : `first output after ${duration(turn.first_ms)}`}`,
      })),
    });
    keyed(endpoints, live.fleet.endpoints, ({ name }) => name, endpointRow, (node, endpoint) => node.update(endpoint));
    models.update(window);
    show(modelsSection, window.length > 0);
    // Room is left for those that have ended.
    turns.update(live.now.running.slice(0, MOST_RUNNING), live.turns);
    show(turns.element, live.now.running_total > 0 || live.turns.length > 0);
    show(quiet, turns.element.hidden);
    welcome.update();
    // Of a router that has nothing yet there is nothing to see.
    show(known, live.fleet.endpoints.length + live.turns.length > 0);
    facts(since, [
      ["Turns that failed over", count(live.now.counts.retries ?? 0)],
      ["Failures of servers", count(live.now.counts.failures ?? 0)],
      ["Had to wait for a slot", count(live.now.counts.queued ?? 0)],
      ["Refused, too many waited", count(live.now.counts.queue_full ?? 0)],
      ["Waited too long", count(live.now.counts.queue_timeout ?? 0)],
      ["Breakers open", count(openBreakers())],
      ["Open streams, with this page's", live.now.streams === undefined ? "–" : count(live.now.streams)],
    ]);
  }

  const unfollow = follow(update);
  loadDays();
  loadCache();
  const timer = setInterval(() => {
    if (document.hidden) return;
    loadDays();
    loadCache();
  }, 60_000);

  async function loadDays() {
    const from = Math.floor(Date.now() / 86_400_000) * 86_400 - (DAYS - 1) * 86_400;
    try {
      const usage = await ask(`api/usage?by=${by.value}&step=day&from=${from}`);
      showDays(usage, from);
    } catch (error) {
      text(daysNote, error.message);
    }
  }
  function showDays(usage, from) {
    const totals = new Map();
    for (const row of usage.data) totals.set(row[usage.by], (totals.get(row[usage.by]) ?? 0) + row.input_tokens + row.output_tokens);
    const names = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
    const shown = names.length > TONES.length ? [...names.slice(0, TONES.length - 1), null] : names;
    const stacks = shown.map((name, index) => {
      const values = new Array(DAYS).fill(0);
      for (const row of usage.data) {
        const is_it = name === null ? !shown.includes(row[usage.by]) : row[usage.by] === name;
        const at = Math.floor((row.at - from) / 86_400);
        if (is_it && at >= 0 && at < DAYS) values[at] += row.input_tokens + row.output_tokens;
      }
      return { name: name === null ? "others" : name || { key: "api_key, or none", owner: "admins" }[usage.by] || "none", values, tone: TONES[index] };
    });
    const labels = Array.from({ length: DAYS }, (_, at) => day(from + at * 86_400));
    days.update({ labels, stacks });
    daysLegend.replaceChildren(...stacks.map(({ name, tone }) => h("li", {}, h("span", { class: `swatch ${tone}` }), name)));
    const cost = usage.total.cost ? `, cost ${money(usage.total.cost)}` : "";
    text(daysNote, `${plural(usage.total.requests, "request")}, ${count(usage.total.input_tokens + usage.total.output_tokens)} tokens${cost} in ${DAYS} days (UTC)`);
  }
  async function loadCache() {
    try {
      const stats = await ask("api/cache/stats");
      if (stats.backend === "none") return facts(cacheFacts, [["Cache", "none is set (cache.backend)"]]);
      show(emptyCache, stats.entries > 0);
      const asked = stats.hits + stats.misses;
      facts(cacheFacts, [
        ["Where", stats.backend],
        ["Entries", `${count(stats.entries)} of ${count(stats.max_entries)}`],
        ["Found", asked ? `${count(stats.hits)} of ${count(asked)} (${Math.round((100 * stats.hits) / asked)} %)` : "nobody has asked"],
        ["Kept for", duration(stats.max_age_s * 1000)],
      ]);
    } catch (error) {
      facts(cacheFacts, [["Cache", error.message]]);
    }
  }
  return {
    element,
    leave() {
      unfollow();
      clearInterval(timer);
    },
  };
}

/** The mean over the last minute, as far as it is known. */
function lastMinute(values) {
  const known = values.slice(-60 / STEP_S).filter((value) => value !== null);
  return known.reduce((sum, value) => sum + value, 0) / Math.max(1, known.length);
}

function openBreakers() {
  return live.fleet.endpoints.reduce((sum, { models }) => sum + models.filter(({ breaker }) => breaker !== "closed").length, 0);
}

function legendOf(entries) {
  return h("ul", { class: "legend" }, entries.map(([tone, words]) => h("li", {}, h("span", { class: `swatch ${tone}` }), words)));
}

function card(title, ...children) {
  return h("section", { class: "card", "aria-label": title }, h("h3", {}, title), ...children);
}

function facts(list, rows) {
  keyed(list, rows, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd", {})), (node, [, value]) => text(node.lastChild, value));
}

function tile(name, note, has_line, tone) {
  const figure = h("p", { class: "figure" }, "–");
  const under = h("p", { class: "note" }, note);
  const spark = has_line ? sparkline(tone) : null;
  const element = h("div", { class: "tile" }, h("h2", {}, name), h("div", { class: "row" }, figure, spark?.element ?? null), under);
  return {
    element,
    update(value, values, words) {
      text(figure, value);
      if (words !== undefined) text(under, words);
      if (values && spark) spark.update(values);
    },
  };
}

function endpointRow(endpoint) {
  const state = h("span", {});
  const use = meter(`Slots of ${endpoint.name} in use`);
  const words = h("span", { class: "number" });
  const why = h("span", { class: "why" });
  const node = h("li", {}, h("a", { href: `#/endpoints/${encodeURIComponent(endpoint.name)}` }, h("b", {}, endpoint.name)), state, use.element, words, why);
  let shown = "";
  node.update = (given) => {
    const now = live.now.endpoints[given.name] ?? { in_flight: 0, max_concurrent: 0 };
    if (shown !== given.state) {
      shown = given.state;
      state.replaceChildren(statePill(given.state));
    }
    use.update(now.in_flight, now.max_concurrent);
    text(words, `${now.in_flight} / ${now.max_concurrent}`);
    text(why, given.error ?? plural(given.models.length, "model"));
    set(node, "data-state", given.state);
  };
  return node;
}
