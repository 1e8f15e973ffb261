// The OpenAI Node SDK against a running gateway; prints what it saw as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "Name a colour." }];
const seen = {};

const answer = await client.chat.completions.create({
  model: "small", messages, max_tokens: 8, logprobs: true, top_logprobs: 2, seed: 1,
});
seen.content = answer.choices[0].message.content;
seen.logprobs = answer.choices[0].logprobs.content.length;
seen.completionTokens = answer.usage.completion_tokens;

const stream = await client.chat.completions.create({
  model: "small", messages, max_tokens: 8, stream: true, stream_options: { include_usage: true },
});
seen.streamed = "";
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) seen.streamUsage = chunk.usage.total_tokens;
}

const stopped = await client.chat.completions.create({
  model: "small", messages, max_tokens: 40, stop: [" "], temperature: 0,
});
seen.stop = stopped.choices[0].finish_reason;

const embedding = await client.embeddings.create({ model: "minilm", input: "hello" });
seen.dimensions = embedding.data[0].embedding.length;

for (const [name, fields] of Object.entries({
  notFound: { model: "gpt-99" }, badRequest: { max_tokens: -1 },
})) {
  try {
    await client.chat.completions.create({ model: "small", messages, ...fields });
  } catch (error) {
    seen[name] = error.constructor.name;
  }
}
console.log(JSON.stringify(seen));
