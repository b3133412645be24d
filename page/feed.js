// What the router shows of itself, as it changes: one stream while the page is looked at, none while it is hidden.
//
//   fleet   the endpoints and what they have            where it has changed
//   now     figures that move                           every second
//   turns   turns that have ended                       as they do

export const WINDOW_S = 600;
export const STEP_S = 5;
const MOST_TURNS = 5000;
const LATE_MS = 6000;

/** `state`: `connecting`, `live`, `lost` or `refused`. `knows_since`: before that, turns have ended that are not in `turns`. */
export const live = { state: "connecting", fleet: null, now: null, turns: [], knows_since: 0, skew_s: 0 };
const listeners = new Set();
let source = null;
let watchdog = null;

/** Has `listener` called now and with every change, until what this gives is called. */
export function follow(listener) {
  listeners.add(listener);
  listener();
  return () => listeners.delete(listener);
}

function changed() {
  for (const listener of [...listeners]) listener();
}

function become(state) {
  if (live.state === state) return;
  live.state = state;
  changed();
}

/** Begins to follow. */
export function open() {
  close();
  become(live.now ? "lost" : "connecting");
  source = new EventSource("api/page/feed");
  source.addEventListener("fleet", (event) => {
    live.fleet = JSON.parse(event.data);
  });
  source.addEventListener("turns", (event) => add(JSON.parse(event.data)));
  source.addEventListener("now", (event) => {
    const before = live.now?.at ?? 0;
    live.now = JSON.parse(event.data);
    // Of the time in which nothing came the router may have forgotten some.
    if (live.now.knows_since > before) live.knows_since = live.now.knows_since;
    live.skew_s = Date.now() / 1000 - live.now.at;
    live.state = "live";
    clearTimeout(watchdog);
    watchdog = setTimeout(() => become("lost"), LATE_MS);
    changed();
  });
  source.addEventListener("bye", () => become("lost"));
  source.onerror = () => {
    // A browser tries again by itself, but where it was refused.
    if (source?.readyState === EventSource.CLOSED) become("refused");
    else become("lost");
  };
}

/** Follows no more. */
export function close() {
  clearTimeout(watchdog);
  source?.close();
  source = null;
}

/** Forgets all that was shown, as whoever signs out expects. */
export function forget() {
  close();
  Object.assign(live, { state: "connecting", fleet: null, now: null, turns: [], knows_since: 0 });
}

function add(rows) {
  const known = new Set(live.turns.map((turn) => turn.id));
  const fresh = rows.filter((turn) => !known.has(turn.id));
  if (!fresh.length) return;
  const all = [...live.turns, ...fresh].sort((a, b) => a.at - b.at);
  live.turns = all.slice(-MOST_TURNS);
  if (all.length > MOST_TURNS) live.knows_since = Math.max(live.knows_since, live.turns[0].at);
}

/** The time of the router, in Unix seconds. */
export const routerNow = () => Date.now() / 1000 - live.skew_s;

/** The turns that ended within the window. */
export function recent(window_s = WINDOW_S) {
  const since = routerNow() - window_s;
  return live.turns.filter((turn) => turn.at >= since);
}

/** How far back all turns are known, within the window, in seconds. */
export const known_s = () => Math.max(0, Math.min(WINDOW_S, routerNow() - live.knows_since));

/** Values per second over the window, in steps: turns that ended, and their tokens over the time in which they came; null for a
 * step of which not all turns are known. */
export function series() {
  const steps = WINDOW_S / STEP_S;
  const end = Math.ceil(routerNow() / STEP_S) * STEP_S;
  const begin = end - WINDOW_S;
  const requests = new Array(steps).fill(0);
  const failures = new Array(steps).fill(0);
  const output = new Array(steps).fill(0);
  const input = new Array(steps).fill(0);
  const at = (time) => Math.floor((time - begin) / STEP_S);
  for (const turn of live.turns) {
    const place = at(turn.at);
    if (place < 0 || place >= steps) continue;
    requests[place] += 1 / STEP_S;
    if (turn.status === "failed") failures[place] += 1 / STEP_S;
    const first = turn.at - Math.max(0, turn.total_ms - (turn.first_ms ?? turn.total_ms)) / 1000;
    input[Math.max(0, at(first))] += turn.input / STEP_S;
    const from = Math.max(0, at(first));
    for (let step = from; step <= place; step += 1) output[step] += turn.output / (place - from + 1) / STEP_S;
  }
  const unknown = Math.min(steps, Math.max(0, Math.ceil((live.knows_since - begin) / STEP_S)));
  for (const values of [requests, failures, output, input]) values.fill(null, 0, unknown);
  const times = Array.from({ length: steps }, (_, index) => begin + (index + 0.5) * STEP_S);
  return { times, requests, failures, output, input, step_s: STEP_S };
}
