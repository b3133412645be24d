// Asking the router. Paths are relative to the page, which may lie below a prefix.

/** An error as the router words it. */
export class RouterError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The router answered with status ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
  }
}

/** The answer of the router as JSON. Throws a `RouterError`; one without a status where nobody answers. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RouterError(0, { message: "The router does not answer." });
  }
  if (answer.status === 204) return null;
  const given = await answer.json().catch(() => null);
  if (!answer.ok) throw new RouterError(answer.status, given?.error);
  return given;
}

/** An address of the router, whole, as clients need it. */
export const address = (path) => new URL(path, document.baseURI).href;
