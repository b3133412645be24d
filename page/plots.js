// Plots as SVG of our own: an area over time, dots over time, stacked bars by day, the phases of a turn.
//
// Each is an `<figure>` whose picture fills it (`viewBox` in pixels, drawn anew when the width changes), with a text for those
// who do not see it, and what lies under the pointer in words.

import { h, s, set, show, text } from "./dom.js";
import { clock } from "./format.js";

const MARGIN = { top: 10, right: 8, bottom: 22, left: 46 };

/** A figure that calls `draw(svg, width, height)` now and whenever it may look different. */
function figure(title, height, draw) {
  const svg = s("svg", { role: "img", "aria-label": title, height });
  const tip = h("div", { class: "tip", hidden: true });
  const element = h("figure", { class: "plot" }, svg, tip);
  let width = 0;
  function again() {
    if (!width) return;
    set(svg, "viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    draw(svg, width, height);
  }
  new ResizeObserver(([entry]) => {
    const wide = Math.round(entry.contentRect.width);
    if (wide !== width) {
      width = wide;
      again();
    }
  }).observe(element);
  return { element, svg, tip, again, width: () => width };
}

/** A round number that is at least `value`, and its steps. */
export function niceScale(value, steps = 3) {
  if (!(value > 0)) return { top: 1, ticks: [0, 1] };
  const raw = value / steps;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const top = Math.ceil((value / step) * 0.9999) * step;
  const ticks = [];
  for (let tick = 0; tick <= top * 1.0001; tick += step) ticks.push(tick);
  return { top, ticks };
}

function axes(svg, width, height, { ticks, y, label, times }) {
  for (const tick of ticks) {
    svg.append(
      s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      s("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, label(tick)),
    );
  }
  if (times) {
    const [begin, end] = times;
    const x = (time) => MARGIN.left + ((time - begin) / (end - begin)) * (width - MARGIN.left - MARGIN.right);
    const step = width < 420 ? 300 : 120;
    for (let time = Math.ceil(begin / step) * step; time <= end; time += step) {
      const anchor = x(time) > width - 30 ? "end" : "middle";
      svg.append(s("text", { class: "tick", x: x(time), y: height - 6, "text-anchor": anchor }, clock(time).slice(0, 5)));
    }
  }
}

function line(points) {
  return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** Values over time: `update({ times, lines: [{ name, values, tone }] })`; the first is an area. */
export function timePlot(title, { height = 190, label, unit = "" }) {
  let data = null;
  const plot = figure(title, height, draw);
  const cursor = s("line", { class: "cursor", visibility: "hidden" });
  let place = null;

  function scales(width) {
    const { times, lines } = data;
    const { top, ticks } = niceScale(Math.max(...lines.flatMap(({ values }) => values)));
    const x = (index) => MARGIN.left + (index / (times.length - 1)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => MARGIN.top + (1 - value / top) * (height - MARGIN.top - MARGIN.bottom);
    return { x, y, ticks };
  }
  function draw(svg, width) {
    if (!data) return;
    const { times, lines } = data;
    const { x, y, ticks } = scales(width);
    axes(svg, width, height, { ticks, y, label, times: [times[0], times[times.length - 1]] });
    lines.forEach(({ values, tone }, index) => {
      const points = values.map((value, at) => [x(at), value === null ? null : y(value)]).filter(([, high]) => high !== null);
      if (!points.length) return;
      if (index === 0) svg.append(s("path", { class: `area ${tone}`, d: `${line(points)}L${x(times.length - 1)} ${y(0)}L${points[0][0]} ${y(0)}Z` }));
      svg.append(s("path", { class: `line ${tone}`, d: line(points) }));
    });
    svg.append(cursor);
    if (place !== null) point(place);
  }
  function point(at) {
    place = at;
    const { x } = scales(plot.width());
    for (const [name, value] of Object.entries({ x1: x(at), x2: x(at), y1: MARGIN.top, y2: height - MARGIN.bottom })) set(cursor, name, value);
    set(cursor, "visibility", "visible");
    const values = data.lines.map(({ name, values: given }) => (given[at] === null ? `${name} not known` : `${name} ${label(given[at])}${unit}`)).join(" · ");
    text(plot.tip, `${clock(data.times[at])}  ${values}`);
    show(plot.tip, true);
    plot.tip.style.left = `${Math.min(Math.max(x(at) - plot.tip.offsetWidth / 2, 0), plot.width() - plot.tip.offsetWidth)}px`;
  }
  plot.svg.addEventListener("pointermove", (event) => {
    if (!data) return;
    const box = plot.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    point(Math.max(0, Math.min(data.times.length - 1, Math.round(share * (data.times.length - 1)))));
  });
  plot.svg.addEventListener("pointerleave", () => {
    place = null;
    show(plot.tip, false);
    set(cursor, "visibility", "hidden");
  });
  return {
    element: plot.element,
    update(given) {
      data = given;
      const latest = given.lines.map(({ name, values }) => `${name} at most ${label(Math.max(...values))}${unit}`).join(", ");
      set(plot.svg, "aria-label", `${title}: ${latest}`);
      plot.again();
    },
  };
}

/** Each thing as a dot by its time and, on a logarithmic scale, its value: `update({ from, to, dots: [{ at, value, tone, words }] })`. */
export function dotPlot(title, { height = 190, label, ticks }) {
  let data = null;
  let dots = [];
  const plot = figure(title, height, draw);
  const low = Math.log10(ticks[0]);
  const high = Math.log10(ticks[ticks.length - 1]);
  const y = (value) => {
    const share = (Math.log10(Math.min(Math.max(value, ticks[0]), ticks[ticks.length - 1])) - low) / (high - low);
    return MARGIN.top + (1 - share) * (height - MARGIN.top - MARGIN.bottom);
  };
  function draw(svg, width) {
    if (!data) return;
    axes(svg, width, height, { ticks, y, label, times: [data.from, data.to] });
    const x = (time) => MARGIN.left + ((time - data.from) / (data.to - data.from)) * (width - MARGIN.left - MARGIN.right);
    dots = data.dots.map((dot) => ({ ...dot, x: x(dot.at), y: y(dot.value) }));
    for (const dot of dots) svg.append(s("circle", { class: `dot ${dot.tone}`, cx: dot.x.toFixed(1), cy: dot.y.toFixed(1), r: 3.2 }));
  }
  plot.svg.addEventListener("pointermove", (event) => {
    const box = plot.svg.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const near = dots.reduce((best, dot) => {
      const distance = Math.hypot(dot.x - px, dot.y - py);
      return distance < best.distance ? { dot, distance } : best;
    }, { dot: null, distance: 24 }).dot;
    show(plot.tip, near !== null);
    if (!near) return;
    text(plot.tip, near.words);
    plot.tip.style.left = `${Math.min(Math.max(near.x - plot.tip.offsetWidth / 2, 0), plot.width() - plot.tip.offsetWidth)}px`;
  });
  plot.svg.addEventListener("pointerleave", () => show(plot.tip, false));
  return {
    element: plot.element,
    update(given) {
      data = given;
      set(plot.svg, "aria-label", `${title}: ${given.dots.length} turns`);
      plot.again();
    },
  };
}

/** Stacked bars: `update({ labels, stacks: [{ name, values, tone }] })`. */
export function barPlot(title, { height = 190, label }) {
  let data = null;
  const plot = figure(title, height, draw);
  function draw(svg, width) {
    if (!data) return;
    const { labels, stacks } = data;
    const totals = labels.map((_, at) => stacks.reduce((sum, { values }) => sum + values[at], 0));
    const { top, ticks } = niceScale(Math.max(...totals, 0));
    const y = (value) => MARGIN.top + (1 - value / top) * (height - MARGIN.top - MARGIN.bottom);
    axes(svg, width, height, { ticks, y, label });
    const room = (width - MARGIN.left - MARGIN.right) / labels.length;
    const wide = Math.max(2, Math.min(36, room * 0.66));
    const every = Math.ceil(44 / room);
    labels.forEach((name, at) => {
      const middle = MARGIN.left + room * (at + 0.5);
      let base = 0;
      for (const { values, tone } of stacks) {
        if (!values[at]) continue;
        const [low, high] = [y(base), y(base + values[at])];
        svg.append(s("rect", { class: `bar ${tone}`, x: middle - wide / 2, y: high, width: wide, height: Math.max(0.8, low - high), rx: 1.5 }));
        base += values[at];
      }
      if ((labels.length - 1 - at) % every === 0) svg.append(s("text", { class: "tick", x: middle, y: height - 6, "text-anchor": "middle" }, name));
    });
  }
  plot.svg.addEventListener("pointermove", (event) => {
    if (!data) return;
    const box = plot.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    const at = Math.floor(share * data.labels.length);
    show(plot.tip, at >= 0 && at < data.labels.length);
    if (plot.tip.hidden) return;
    const parts = data.stacks.filter(({ values }) => values[at]).map(({ name, values }) => `${name} ${label(values[at])}`);
    text(plot.tip, `${data.labels[at]}  ${parts.join(" · ") || "nothing"}`);
    plot.tip.style.left = `${Math.min(Math.max(event.clientX - box.left - plot.tip.offsetWidth / 2, 0), plot.width() - plot.tip.offsetWidth)}px`;
  });
  plot.svg.addEventListener("pointerleave", () => show(plot.tip, false));
  return {
    element: plot.element,
    update(given) {
      data = given;
      set(plot.svg, "aria-label", title);
      plot.again();
    },
  };
}

/** A line without axes. */
export function sparkline(tone = "accent") {
  const [width, height] = [120, 28];
  const area = s("path", { class: `area ${tone}` });
  const path = s("path", { class: `line ${tone}` });
  const element = s("svg", { class: "sparkline", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, path);
  return {
    element,
    update(values) {
      const top = Math.max(...values, 1e-9);
      const points = values
        .map((value, at) => [(at / (values.length - 1)) * width, value === null ? null : height - 2 - (value / top) * (height - 4)])
        .filter(([, high]) => high !== null);
      set(path, "d", line(points));
      set(area, "d", points.length ? `${line(points)}L${width} ${height}L${points[0][0]} ${height}Z` : "");
    },
  };
}

/** The phases of a turn: `[{ ms, kind, words }]` on a scale that is `full_ms` long. */
export function phases(parts, full_ms) {
  const bar = h("div", { class: "phases", role: "img", "aria-label": parts.map(({ words }) => words).join(", ") });
  for (const { ms, kind, words } of parts) {
    if (!(ms > 0)) continue;
    const part = h("span", { class: `phase ${kind}`, title: words });
    part.style.width = `${Math.max(0.4, (100 * ms) / full_ms)}%`;
    bar.append(part);
  }
  return bar;
}

/** How much of something is used. */
export function meter(label) {
  const fill = h("span", { class: "fill" });
  const element = h("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0 }, fill);
  return {
    element,
    update(value, most, words) {
      const share = most ? Math.min(1, value / most) : 0;
      set(element, "aria-valuenow", value);
      set(element, "aria-valuemax", most);
      set(element, "aria-valuetext", words ?? `${value} of ${most}`);
      set(element, "data-full", share >= 1);
      fill.style.width = `${100 * share}%`;
    },
  };
}
