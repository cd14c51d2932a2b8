// What people's programs do with OpenAI's JavaScript client: `node client.mjs URL PACKAGE PICTURE`
// does all of it once and prints what came of it, by name, as one JSON object.
import { readFileSync } from "node:fs";

const [base, name, picture] = process.argv.slice(2);
const { default: OpenAI } = await import(name);

const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
const image = { type: "image_url", image_url: { url } };
const text = (words) => ({ type: "text", text: words });
const asking = (question, options = {}) => ({
  model: "m3-auto",
  max_tokens: 6,
  messages: [{ role: "user", content: [image, text(question)] }],
  ...options,
});
const client = (options = {}) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey: "unused", maxRetries: 0, ...options });
const ask = (...args) => client().chat.completions.create(asking(...args));
const retrying = (question, options) =>
  client({ maxRetries: 2 }).chat.completions.create(asking(question, options));

async function caught(promise) {
  try {
    return { answered: await promise };
  } catch (error) {
    const classes = [];
    for (let kind = error.constructor; kind.name; kind = Object.getPrototypeOf(kind)) {
      classes.push(Object.keys(OpenAI).find((key) => OpenAI[key] === kind) ?? kind.name);
    }
    const { status, code, param, type, message } = error;
    return { classes, status, code, param, type, message };
  }
}

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return {
    text: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
    roles: chunks.flatMap((chunk) => chunk.choices[0]?.delta?.role ?? []),
    reasons: chunks.flatMap((chunk) => chunk.choices[0]?.finish_reason ?? []),
    m3: chunks.flatMap((chunk) => chunk.m3 ?? []),
    usage: chunks.at(-1)?.usage ?? null,
  };
}

const results = {
  whole: () => ask("What is this?"),
  streamed: async () =>
    collected(await ask("What is this?", { stream: true, stream_options: { include_usage: true } })),
  helper: async () => {
    const stream = client().chat.completions.stream(asking("What is this?"));
    return (await stream.finalChatCompletion()).choices[0].message.content;
  },
  headers: async () => {
    const { response, request_id } = await ask("What is this?", { m3: { scale: 9 } }).withResponse();
    return { scale: response.headers.get("x-m3-scale"), named: Boolean(request_id) };
  },
  raw: async () => (await ask("What is this?").asResponse()).headers.get("x-m3-reason"),
  options: () =>
    ask("What is this?", {
      n: 1,
      seed: 7,
      temperature: 0.8,
      top_p: 0.9,
      stop: ["\n"],
      logprobs: true,
      top_logprobs: 2,
      user: "somebody",
      max_tokens: undefined,
      max_completion_tokens: 3,
    }),
  images: () =>
    ask("", {
      messages: [
        { role: "system", content: "Be brief." },
        {
          role: "user",
          content: [
            { type: "image_url", image_url: { url, detail: "low" } },
            { type: "image_url", image_url: { url, detail: "high" } },
            text("Which is which?"),
          ],
        },
      ],
    }),
  turns: async () => {
    const first = asking("What is this?");
    const { message } = (await client().chat.completions.create(first)).choices[0];
    const messages = [...first.messages, message, { role: "user", content: "And its size?" }];
    return client().chat.completions.create({ ...first, messages });
  },
  models: async () => {
    const names = [];
    for await (const model of client().models.list()) names.push(model.id);
    return { names, one: (await client().models.retrieve("m3-9")).id };
  },
  unknownModel: () => caught(ask("What?", { model: "gpt-4o" })),
  unsupported: () => caught(ask("What?", { n: 2 })),
  badScale: () => caught(ask("What?", { m3: { scale: 100 } })),
  badImage: () =>
    caught(
      ask("", {
        messages: [
          {
            role: "user",
            content: [{ type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } }, text("?")],
          },
        ],
      }),
    ),
  tooLarge: () => caught(ask("x".repeat(2_000_000))),
  notRetried: () => caught(retrying("bad request")),
  retried429: () => caught(retrying("overloaded")),
  retried503: () => caught(retrying("unavailable")),
  retried500: () => caught(retrying("broken")),
  retriedStream: async () => collected(await retrying("lost", { stream: true })),
  givenUp: () => caught(retrying("always overloaded")),
  brokenStream: async () => {
    const said = [];
    const failure = await caught(
      (async () => {
        for await (const chunk of await ask("break", { stream: true })) said.push(chunk);
      })(),
    );
    return { chunks: said.length, ...failure };
  },
  left: async () => {
    const controller = new AbortController();
    const stream = await client().chat.completions.create(asking("Tell me all.", { stream: true }), {
      signal: controller.signal,
    });
    for await (const _ of stream) controller.abort();
    return true;
  },
};

const out = {};
for (const [key, run] of Object.entries(results)) out[key] = await run();
console.log(JSON.stringify(out));
