// The Vercel AI SDK: text, streams, tools, objects and embeddings.

import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [url] = process.argv.slice(2);
const sps2 = createOpenAICompatible({
  name: "sps2",
  baseURL: `${url}/v1`,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const name = (await (await fetch(`${url}/v1/models`)).json()).data[0].id;
const model = sps2(name);
const asked = { model, prompt: "What is the weather in Oslo?", maxRetries: 0, maxOutputTokens: 200 };

const short = await generateText({ ...asked, maxOutputTokens: 16 });
assert(short.text);
assert(short.usage.outputTokens <= 16);

const stream = streamText({ ...asked, maxOutputTokens: 16 });
let streamed = "";
for await (const part of stream.textStream) streamed += part;
assert(streamed);
assert((await stream.usage).outputTokens > 0);

const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(["Oslo", "Rome"]) }),
  execute: async ({ city }) => `Rain in ${city}, 7 degrees.`,
});
const called = await generateText({
  ...asked,
  tools: { weather },
  toolChoice: { type: "tool", toolName: "weather" },
  stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : {}),
});
assert(called.steps[0].toolResults[0].output.startsWith("Rain in "));
assert(called.text);
const calling = streamText({ ...asked, tools: { weather }, toolChoice: "required" });
assert(["Oslo", "Rome"].includes((await calling.toolCalls)[0].input.city));

const schema = z.object({ name: z.string().max(20), size: z.enum(["small", "large"]) });
const { object } = await generateObject({ ...asked, schema });
assert(["small", "large"].includes(object.size));
const objects = streamObject({ ...asked, schema });
for await (const part of objects.partialObjectStream) assert(part);
assert(["small", "large"].includes((await objects.object).size));

const { embedding } = await embed({ model: sps2.embeddingModel(name), value: "a river" });
assert(embedding.length > 0);
console.log("ok");
