// The page's elements, made by hand: no text ever becomes markup.
//
//   h("p", { class: "note" }, "There are ", h("b", {}, 3))        an element
//   keyed(list, rows, (row) => row.id, makeRow, updateRow)        children that stay the same nodes while their rows do

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (`on…` are listeners, `false` and null are left out) and children. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same of SVG. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Sets an attribute, a listener, or with null and false none. */
export function set(element, name, value) {
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
  else if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/** Changes a text only where it is another one: what a reader has selected stays selected. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
  return element;
}

/** Shows or hides. */
export function show(element, is_shown) {
  if (element.hidden === is_shown) element.hidden = !is_shown;
  return element;
}

/** Makes the children of `parent` those of `rows`, in their order. A row with a known key keeps its node, which `update` is given. */
export function keyed(parent, rows, keyOf, make, update = () => {}) {
  const known = (parent.nodesByKey ??= new Map());
  const wanted = new Set();
  let place = parent.firstChild;
  for (const row of rows) {
    const key = keyOf(row);
    if (wanted.has(key)) continue;
    wanted.add(key);
    let node = known.get(key);
    if (!node) known.set(key, (node = make(row)));
    update(node, row);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const [key, node] of known) {
    if (!wanted.has(key)) {
      node.remove();
      known.delete(key);
    }
  }
}

/** Lets a screen reader know. */
export function announce(words) {
  text(document.getElementById("announcer"), words);
}

/** A button that runs `action` once at a time, and shows what went wrong beside itself. */
export function actionButton(label, action, props = {}) {
  const problem = h("span", { class: "problem", role: "alert", hidden: true });
  const button = h("button", { type: "button", class: "button", ...props, onclick: run }, label);
  async function run() {
    button.disabled = true;
    show(problem, false);
    try {
      await action();
    } catch (error) {
      text(problem, error.message);
      show(problem, true);
    } finally {
      button.disabled = false;
    }
  }
  return h("span", { class: "action" }, button, problem);
}

/** A button that copies what `textOf` gives. */
export function copyButton(textOf, label = "Copy") {
  const button = h("button", { type: "button", class: "button quiet copy", onclick: copy }, label);
  async function copy() {
    try {
      await navigator.clipboard.writeText(textOf());
      text(button, "Copied");
    } catch {
      text(button, "Select and copy by hand");
    }
    announce(button.textContent);
    setTimeout(() => text(button, label), 1600);
  }
  return button;
}

/** A block of text to copy. */
export function codeBlock(textOf, label) {
  const code = h("code", {}, textOf());
  return h("div", { class: "code" }, copyButton(() => code.textContent), h("pre", { tabindex: "0", "aria-label": label }, code));
}

/** Tabs over panels: `[{ name, panel }]`, by the arrow keys too. */
export function tabs(label, entries, onChange = () => {}) {
  const id = `tabs-${(tabs.made = (tabs.made ?? 0) + 1)}`;
  const buttons = entries.map(({ name, panel }, index) => {
    set(panel, "role", "tabpanel");
    set(panel, "id", `${id}-${index}`);
    set(panel, "aria-labelledby", `${id}-tab-${index}`);
    return h(
      "button",
      { type: "button", role: "tab", id: `${id}-tab-${index}`, "aria-controls": `${id}-${index}`, onclick: () => choose(index) },
      name,
    );
  });
  const bar = h("div", { role: "tablist", class: "tabs", "aria-label": label, onkeydown: move }, buttons);
  function choose(chosen) {
    buttons.forEach((button, index) => {
      set(button, "aria-selected", String(index === chosen));
      button.tabIndex = index === chosen ? 0 : -1;
      show(entries[index].panel, index === chosen);
    });
    onChange(entries[chosen].name);
  }
  function move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = buttons.findIndex((button) => button.tabIndex === 0);
    const next = (at + step + buttons.length) % buttons.length;
    choose(next);
    buttons[next].focus();
    event.preventDefault();
  }
  choose(0);
  return h("div", { class: "tabbed" }, bar, ...entries.map(({ panel }) => panel));
}
