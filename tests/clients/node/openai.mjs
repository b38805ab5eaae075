// The official `openai` package.
import OpenAI, { toFile } from "openai";

import { audio, base64, collect, refusal, report, serverURL } from "./steps.mjs";

const client = new OpenAI({ baseURL: `${serverURL}/v1`, apiKey: "none", maxRetries: 0 });
const model = "whisper-1";
const messages = [
  { role: "user", content: [{ type: "input_audio", input_audio: { data: base64, format: "wav" } }] },
];
const schema = {
  type: "object", properties: { colour: { enum: ["red", "blue"] } }, required: ["colour"], additionalProperties: false,
};
const paint = { type: "function", function: { name: "paint", parameters: schema, strict: true } };
const called = { tools: [paint], tool_choice: "required", parallel_tool_calls: false };

const file = () => toFile(audio, "recording.wav");
const transcribe = async (more) => client.audio.transcriptions.create({ model, file: await file(), ...more });
const chat = (more) => client.chat.completions.create({ model, messages, ...more });

await report({
  json: () => transcribe({}),
  verbose_json: () => transcribe({ response_format: "verbose_json", timestamp_granularities: ["segment"] }),
  vtt: () => transcribe({ response_format: "vtt" }),
  stream: async () => collect(await transcribe({ stream: true, language: "en" })),
  chat: () => chat({}),
  chat_stream: async () => collect(await chat({ stream: true, stream_options: { include_usage: true } })),
  schema: () => chat({ response_format: { type: "json_schema", json_schema: { name: "c", schema, strict: true } } }),
  tool: () => chat(called),
  tool_stream: async () => {
    const runner = client.chat.completions.stream({ model, messages, ...called });
    return runner.finalChatCompletion();
  },
  models: async () => collect(await client.models.list()),
  model: () => client.models.retrieve("mistralai/Voxtral-Mini-3B-2507"),
  refused: () => refusal(
    () => transcribe({ temperature: 7 }),
    ({ status, code, param, type, requestID }) => ({ status, code, param, type, requestID }),
  ),
});
