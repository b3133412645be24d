// What to do next, while no server answers: which were asked, why they do not answer, how to start one.

import { codeBlock, h, keyed, show, text, tabs } from "../dom.js";
import { live } from "../feed.js";

const STARTS = [
  ["Ollama", "# from ollama.com, then:\nollama serve\nollama pull llama3.2", "http://127.0.0.1:11434", "ollama"],
  ["llama.cpp", "llama-server -m model.gguf --port 8080", "http://127.0.0.1:8080", "llama.cpp"],
  ["vLLM", "vllm serve Qwen/Qwen3-8B --port 8000", "http://127.0.0.1:8000", "vllm"],
  ["LM Studio", "lms server start --port 1234", "http://127.0.0.1:1234", "lmstudio"],
  ["OpenAI", "export OPENAI_API_KEY=…", "https://api.openai.com/v1", "openai"],
];

export function newcomer() {
  const title = h("h2", {});
  const words = h("p", {});
  const asked = h("ul", { class: "asked" });
  const starts = tabs(
    "Ways to start a server",
    STARTS.map(([name, command, url, kind]) => ({
      name,
      panel: h(
        "div",
        { class: "grid two" },
        h("div", {}, h("h3", {}, "Start it"), codeBlock(() => command, `How to start ${name}`)),
        h("div", {}, h("h3", {}, "Or name it in config.yaml"), codeBlock(() => setting(url, kind), `Settings for ${name}`)),
      ),
    })),
  );
  const note = h("p", { class: "note" });
  const element = h("section", { class: "card welcome", hidden: true, "aria-label": "What to do next" }, title, words, asked, note, starts);
  return {
    element,
    update() {
      const endpoints = live.fleet.endpoints;
      const works = endpoints.some(({ state, models }) => state !== "down" && models.length > 0);
      show(element, !works);
      if (works) return;
      text(title, endpoints.length ? "No model server answers yet" : "No model server is known yet");
      const local = live.fleet.local;
      const asks = endpoints.length || local;
      text(words, asks ? "The router runs, and has asked:" : "The router runs. Start a server of models, and name it in config.yaml.");
      const rows = endpoints.length ? endpoints.map(ofEndpoint) : (local ?? []).map(ofPort);
      keyed(asked, rows, ({ where }) => where, () => h("li", {}, h("code", {}), h("span", {})), (node, { where, what }) => {
        text(node.firstChild, where);
        text(node.lastChild, what);
      });
      text(note, local ? "It asks again every few seconds, and uses what it finds: a server on one of these ports needs no settings." : "It asks again every few seconds, and takes changes of config.yaml while it runs.");
    },
  };
}

const ofEndpoint = ({ url, error, advice }) => ({ where: url, what: [error ?? "it answers, and has no models.", advice].filter(Boolean).join(" ") });

const ofPort = ({ port, usual, kind, problem }) => ({ where: `127.0.0.1:${port}`, what: `${usual}: ${kind ? `a server of the kind ${kind} answers` : (problem ?? "nobody answers")}` });

function setting(url, kind) {
  const key = kind === "openai" ? "\n    api_key: ${OPENAI_API_KEY}" : "";
  return `endpoints:\n  - url: ${url}\n    kind: ${kind}${key}`;
}
