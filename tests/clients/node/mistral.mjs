// Mistral's own package, `@mistralai/mistralai`. Its base address has no /v1.
import { Mistral } from "@mistralai/mistralai";
import { AudioEncoding, RealtimeTranscription } from "@mistralai/mistralai/extra/realtime";

import { audio, base64, collect, pcm, refusal, report, serverURL } from "./steps.mjs";

const client = new Mistral({ serverURL, apiKey: "none" });
const model = "voxtral-mini-latest";
const file = { fileName: "recording.wav", content: audio };
const messages = [
  {
    role: "user",
    content: [{ type: "input_audio", inputAudio: base64 }, { type: "text", text: "Transcribe this audio." }],
  },
];

async function* spoken() {
  for (let start = 0; start < pcm.length; start += 16000) yield pcm.subarray(start, start + 16000);
}
const audioFormat = { encoding: AudioEncoding.PcmS16le, sampleRate: 16000 };
const live = (name) => {
  const realtime = new RealtimeTranscription({ apiKey: "none", serverURL });
  return collect(realtime.transcribeStream(spoken(), name, { audioFormat }));
};

await report({
  live: () => live(model),
  live_refused: () => live("voxtral-none"),
  transcription: () => client.audio.transcriptions.complete({ model, file, language: "en" }),
  segments: () => client.audio.transcriptions.complete({ model, file, timestampGranularities: ["segment"] }),
  biased: () => client.audio.transcriptions.complete({ model, file, contextBias: ["orange", "hotel"] }),
  stream: async () => collect(await client.audio.transcriptions.stream({ model, file, language: "en" })),
  chat: () => client.chat.complete({ model, messages }),
  chat_stream: async () => collect(await client.chat.stream({ model, messages })),
  models: async () => (await client.models.list()).data,
  model: () => client.models.retrieve({ modelId: model }),
  refused: () => refusal(
    () => client.audio.transcriptions.complete({ model, file, diarize: true }),
    ({ statusCode, body }) => ({ status: statusCode, ...JSON.parse(body).error }),
  ),
});
