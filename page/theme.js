// Dark or light: as the system has it, or as somebody has chosen here.

import { h, set, text } from "./dom.js";

const KEY = "nomyo-theme";
const ORDER = { "": "dark", dark: "light", light: "" };
const WORDS = { "": "Colours: system", dark: "Colours: dark", light: "Colours: light" };

function chosen() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function apply(theme) {
  set(document.documentElement, "data-theme", theme || null);
}

apply(chosen());

/** The switch: system, dark, light. */
export function themeSwitch() {
  let theme = chosen();
  const button = h("button", { type: "button", class: "button quiet theme", onclick: next }, WORDS[theme] ?? WORDS[""]);
  function next() {
    theme = ORDER[theme] ?? "";
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Chosen for as long as the page is open.
    }
    apply(theme);
    text(button, WORDS[theme]);
  }
  return button;
}
