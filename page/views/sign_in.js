// Signing in: a key for a session that no script can read.

import { ask } from "../api.js";
import { h, show, text } from "../dom.js";

export function signInView(onSignedIn) {
  const problem = h("p", { class: "problem", role: "alert", id: "key-problem", hidden: true });
  const field = h("input", { type: "password", id: "key", name: "key", autocomplete: "current-password", spellcheck: "false", required: true, "aria-describedby": "key-problem" });
  const button = h("button", { type: "submit", class: "button main" }, "Sign in");
  const form = h(
    "form",
    { class: "card", onsubmit: signIn },
    h("img", { src: "page/icon.svg", alt: "", width: 40, height: 40 }),
    h("h1", {}, "nomyo-router"),
    h("p", {}, "This page is for those who run the router. Give a key that has the right ", h("code", {}, "admin"), ", or the ", h("code", {}, "api_key"), " of the settings."),
    h("label", { for: "key" }, "Key"),
    field,
    problem,
    button,
    h("p", { class: "note" }, "It is sent once. What stays in this browser is a sealed cookie that ends after 12 hours, or with the key."),
  );
  async function signIn(event) {
    event.preventDefault();
    button.disabled = true;
    show(problem, false);
    try {
      await ask("api/page/session", { method: "POST", body: { key: field.value } });
      await onSignedIn();
    } catch (error) {
      text(problem, error.message);
      show(problem, true);
      field.select();
    } finally {
      button.disabled = false;
    }
  }
  return h("main", { id: "main", class: "alone sign-in" }, form);
}
