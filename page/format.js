// Figures as people read them.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1,234; from 100,000 on 123.5K. */
export const count = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 1e5 ? NUMBER.format(value) : SHORT.format(value));

/** A rate: 0.04, 3.2, 120. */
export function rate(value) {
  if (!value) return "0";
  if (value < 0.1) return value.toFixed(2);
  if (value < 10) return value.toFixed(1);
  return count(value);
}

/** Milliseconds: 0.4 ms, 340 ms, 2.1 s, 3 min. */
export function duration(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  if (ms < 1) return `${ms ? ms.toFixed(1) : 0} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

/** Milliseconds as a tick of a scale: 10 ms, 1 s, 100 s. */
export const shortDuration = (ms) => (ms < 1000 ? `${ms} ms` : `${ms / 1000} s`);

/** How long ago a Unix time was. */
export function ago(at, now = Date.now() / 1000) {
  const seconds = Math.max(0, now - at);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} days ago`;
}

/** The time of day. */
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

/** Day and time. */
export const moment = (at) => new Date(at * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** A day: 26 Nov. */
export const day = (at) => new Date(at * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

/** Bytes: 812 B, 4.2 kB. */
export function bytes(value) {
  if (value < 1000) return `${value} B`;
  if (value < 1e6) return `${(value / 1e3).toFixed(1)} kB`;
  return `${(value / 1e6).toFixed(1)} MB`;
}

/** "1 model", "3 models". */
export const plural = (number, noun, many = `${noun}s`) => `${count(number)} ${number === 1 ? noun : many}`;

/** The value below which a share of the sorted values lies; null where there are none. */
export function percentile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : null;
}

/** A cost in the unit of the prices, which has no name here. */
export const money = (value) => (value > 0 && value < 0.01 ? "below 0.01" : value.toFixed(2));
