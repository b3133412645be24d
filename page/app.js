// The live page: who looks (a session), where (the part of the address behind #), and what is live above all views.

import { ask } from "./api.js";
import { announce, h, set, show, text } from "./dom.js";
import { follow, forget, live, open, close } from "./feed.js";
import { themeSwitch } from "./theme.js";
import { backgroundView } from "./views/background.js";
import { endpointsView } from "./views/endpoints.js";
import { keysView } from "./views/keys.js";
import { overviewView } from "./views/overview.js";
import { playgroundView } from "./play/view.js";
import { signInView } from "./views/sign_in.js";
import { storedView } from "./views/stored.js";
import { turnsView } from "./views/turns.js";

// Each makes its element, and gives it with what is to be called when it is left.
const VIEWS = [
  { path: "", name: "Overview", make: overviewView },
  { path: "endpoints", name: "Endpoints", make: endpointsView, badge: down },
  { path: "turns", name: "Turns", make: turnsView, badge: () => live.now?.running_total || null },
  { path: "background", name: "Background", make: backgroundView, badge: atWork },
  { path: "stored", name: "Stored", make: storedView },
  { path: "keys", name: "Keys", make: keysView },
  { path: "playground", name: "Playground", make: playgroundView },
];
const app = document.getElementById("app");
let leave = () => {};

function down() {
  const number = (live.fleet?.endpoints ?? []).filter(({ state }) => state === "down").length;
  return number ? `${number} down` : null;
}

function atWork() {
  const { running = 0, queued = 0 } = live.now?.background ?? {};
  return running + queued || null;
}

async function start() {
  let session;
  try {
    session = await ask("api/page/session");
  } catch (error) {
    app.replaceChildren(h("main", { id: "main", class: "alone" }, h("h1", {}, "No answer"), h("p", {}, error.message), h("button", { type: "button", class: "button", onclick: start }, "Try again")));
    return;
  }
  leave();
  leave = () => {};
  if (session.is_admin) frame(session);
  else {
    forget();
    app.replaceChildren(signInView(start));
    app.querySelector("input")?.focus();
  }
}

/** What stands around every view. */
function frame(session) {
  const links = VIEWS.map(({ path, name, badge }) => {
    const number = badge ? h("span", { class: "badge", hidden: true }) : null;
    return { path, badge, number, link: h("a", { href: `#/${path}` }, h("span", {}, name), number) };
  });
  const light = h("span", { class: "light", "aria-hidden": "true" });
  const state = h("span", { class: "words" });
  const trouble = h("p", { class: "banner bad", role: "alert", hidden: true });
  const settings = h("p", { class: "banner warn", role: "alert", hidden: true });
  const main = h("main", { id: "main", tabindex: "-1" });
  const leaving = session.asks_for_keys
    ? h("button", { type: "button", class: "button quiet", onclick: signOut }, "Sign out")
    : null;
  app.replaceChildren(
    h(
      "div",
      { class: "frame" },
      h(
        "header",
        { class: "side" },
        h("a", { class: "brand", href: "#/" }, h("img", { src: "page/icon.svg", alt: "", width: 26, height: 26 }), h("span", {}, "nomyo", h("i", {}, "router"))),
        h("nav", { "aria-label": "Views" }, links.map(({ link }) => link)),
        h(
          "div",
          { class: "foot" },
          h("p", { class: "live", role: "status" }, light, state),
          session.key ? h("p", { class: "who" }, "Signed in with ", h("b", {}, session.key)) : h("p", { class: "who" }, "No key is asked for"),
          h("div", { class: "controls" }, themeSwitch(), leaving),
        ),
      ),
      h("div", { class: "content" }, trouble, settings, main),
    ),
  );

  async function signOut() {
    await ask("api/page/session", { method: "DELETE" });
    forget();
    announce("Signed out");
    await start();
  }

  let leaveView = () => {};
  function route() {
    const [path, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
    const view = VIEWS.find((one) => one.path === path) ?? VIEWS[0];
    leaveView();
    document.title = `${view.name} · nomyo-router`;
    for (const { path: at, link } of links) set(link, "aria-current", at === view.path ? "page" : null);
    links.find(({ path: at }) => at === view.path).link.scrollIntoView({ block: "nearest", inline: "nearest" });
    const made = view.make({ rest: rest.map(decoded), session });
    leaveView = made.leave ?? (() => {});
    main.replaceChildren(made.element);
    if (route.again) main.focus({ preventScroll: true });
    route.again = true;
    window.scrollTo(0, 0);
  }
  const onVisible = () => (document.hidden ? close() : open());
  const unfollow = follow(() => {
    set(app, "data-live", live.state);
    const words = { connecting: "Connecting…", live: "Live", lost: "Not connected", refused: "Not connected" }[live.state];
    text(state, live.state === "live" && live.now.processes > 1 ? `Live, ${live.now.processes} processes` : words);
    show(trouble, live.state === "lost" && live.now !== null);
    if (!trouble.hidden) text(trouble, "The router does not answer. What you see is what it was; this page tries again by itself.");
    const wrong = live.fleet?.config_error;
    const apart = "The router cannot reach what its replicas share (cluster.url): each process counts for itself until it can.";
    const notes = [wrong && `The settings have changed and were not taken: ${wrong}`, live.now?.is_apart && apart].filter(Boolean);
    show(settings, notes.length > 0);
    text(settings, notes.join(" "));
    for (const { badge, number } of links) {
      if (!badge) continue;
      const words_of = badge();
      show(number, words_of !== null);
      text(number, words_of ?? "");
      set(number, "data-bad", String(words_of).includes("down"));
    }
    if (live.state === "refused") askAgain();
  });
  window.addEventListener("hashchange", route);
  document.addEventListener("visibilitychange", onVisible);
  leave = () => {
    leaveView();
    unfollow();
    window.removeEventListener("hashchange", route);
    document.removeEventListener("visibilitychange", onVisible);
    close();
  };
  route();
  open();
}

/** A part of the address; as it stands where it is not one of ours. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

let asking = null;
/** The feed was refused: the session has ended, or the router is away for a while. */
function askAgain() {
  asking ??= setTimeout(async () => {
    asking = null;
    try {
      const session = await ask("api/page/session");
      if (session.is_admin) open();
      else await start();
    } catch {
      askAgain();
    }
  }, 1500);
}

start();
