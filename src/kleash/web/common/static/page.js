// Shared by all pages: requests to the server, and the notice at the top.

export const page = document.body;
export const $ = (selector) => document.querySelector(selector);

export async function send(path, body) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "content-type": "application/json", "x-csrf": page.dataset.csrf } : {},
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(15000),
  });
  const answer = await response.json().catch(() => ({ error: response.statusText }));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.error), { status: response.status });
}

// Unlike crypto.randomUUID this works without https, too.
export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

export function notice(text, { stays = false } = {}) {
  const line = $("#notice");
  line.hidden = !text;
  line.firstElementChild.textContent = text;
  line.lastElementChild.hidden = stays;
}
