// The server's HTTP interface: JSON, streams of server-sent events, errors with their request id.

import { settings } from "./settings.js";

export class ApiError extends Error {
  constructor(message, { status, code, requestId } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }
}

async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (settings.key) headers.authorization = `Bearer ${settings.key}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      signal,
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  const requestId = response.headers.get("x-request-id");
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something in between answered, not in JSON; the status has to do.
  }
  const told = error.message ?? `The server answered with status ${response.status}.`;
  const message = response.status === 401 ? keyMessage(told) : told;
  throw new ApiError(message, { status: response.status, code: error.code, requestId });
}

/** What a person at the page can do about a 401: the server speaks of headers. */
function keyMessage(told) {
  if (settings.key) return `The server does not take the API key that is under Settings: ${told}`;
  return "For this server an API key is needed. Put yours under Settings; it is kept in this browser only.";
}

export async function getJson(path, options) {
  return (await ask(path, options)).json();
}

/** The JSON objects of a stream's events, until [DONE]. Throws ApiError for an error, and for a stream that breaks off. */
export async function* events(path, body, signal) {
  const response = await ask(path, { body, signal });
  const requestId = response.headers.get("x-request-id");
  let done = false;
  for await (const data of dataOf(lines(response.body, requestId))) {
    done ||= data === "[DONE]";
    if (done) continue; // the end of the response is next, and leaving before it would look like giving up
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, { code: event.error.code, requestId });
    yield event;
  }
  if (done) return;
  throw new ApiError("The connection ended before the answer did.", { requestId });
}

async function* lines(stream, requestId) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop();
      for (const part of parts) yield part.endsWith("\r") ? part.slice(0, -1) : part;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke off.", { requestId });
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function* dataOf(source) {
  let data = [];
  for await (const line of source) {
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    else if (line === "" && data.length) {
      yield data.join("\n");
      data = [];
    }
  }
}
