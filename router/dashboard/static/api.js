// The service's API as this page uses it, with the key of whoever looks.

const KEY = "m3-key";

export class ApiError extends Error {
  constructor(status, code, message, requestId) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }
}

export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

async function call(path, body, signal) {
  const headers = {};
  if (hasKey()) headers.authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The service cannot be reached.", null);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const requestId = response.headers.get("x-m3-request-id");
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.code, error.message, requestId);
  } catch {
    return new ApiError(response.status, `http_${response.status}`, "No answer of the service's own.", requestId);
  }
}

export async function get(path) {
  return (await call(path)).json();
}

/** A decision without an answer. */
export async function route(body, signal) {
  return (await call("v1/route", body, signal)).json();
}

/**
 * An answer as it is written.
 *
 * `on.scale(scale, reason)` is called when it has begun, `on.text(whole)` with every piece. Gives
 * text, the decision `m3`, `usage`, and milliseconds as they passed here: `first`, `total`.
 */
export async function answer(body, on, signal) {
  const began = performance.now();
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", asked, signal);
  on.scale?.(Number(response.headers.get("x-m3-scale")), response.headers.get("x-m3-reason"));
  const got = { text: "", m3: null, usage: null, finish: null, first: null, total: null };
  let whole = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error.code, chunk.error.message, null);
    got.m3 = chunk.m3 ?? got.m3;
    got.usage = chunk.usage ?? got.usage;
    const [choice] = chunk.choices;
    got.finish = choice?.finish_reason ?? got.finish;
    if (choice?.delta.content) {
      got.first ??= performance.now() - began;
      got.text += choice.delta.content;
      on.text?.(got.text);
    }
  }
  if (!whole) throw new ApiError(200, "broken_stream", "The answer broke off.", null);
  got.total = performance.now() - began;
  return got;
}

/** The data of server-sent events, one after the other. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const whole = rest.split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (event.startsWith("data: ")) yield event.slice("data: ".length);
    }
  }
}
