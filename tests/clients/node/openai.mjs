// The official `openai` package.
import { connect } from "node:net";

import OpenAI, { toFile } from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

import { audio, base64, collect, pcm, refusal, report, serverURL } from "./steps.mjs";

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

/** This client knows wss: only. What encrypts would stand before the server; here it is left out. */
const live = (input) => new Promise((resolve, reject) => {
  const { hostname, port } = new URL(serverURL);
  const options = { createConnection: () => connect(Number(port), hostname) };
  const socket = new OpenAIRealtimeWS({ intent: "transcription", options }, client);
  const events = [];
  socket.on("error", ({ error }) => { socket.close(); reject({ name: error.code, message: error.param }); });
  socket.on("event", (event) => {
    events.push(event);
    if (!event.type.endsWith("transcription.completed")) return;
    socket.close();
    resolve(events);
  });
  socket.on("session.created", () => {
    const format = { type: "audio/pcm", rate: 16000 };
    const session = { type: "transcription", audio: { input: { format, turn_detection: null, ...input } } };
    socket.send({ type: "session.update", session });
    socket.send({ type: "input_audio_buffer.append", audio: pcm.toString("base64") });
    socket.send({ type: "input_audio_buffer.commit" });
  });
});

await report({
  live: () => live({ transcription: { model, language: "en" }, noise_reduction: { type: "near_field" } }),
  live_refused: () => live({ transcription: { model, diarize: true } }),
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
