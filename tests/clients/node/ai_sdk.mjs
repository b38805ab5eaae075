// The AI SDK, `ai`, with three of its providers; the third argument says which.
import { createMistral } from "@ai-sdk/mistral";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  experimental_streamTranscribe as streamTranscribe, generateText, jsonSchema, Output, streamText, tool, transcribe,
} from "ai";

import { audio, collect, pcm, refusal, report, serverURL } from "./steps.mjs";

const baseURL = `${serverURL}/v1`;
const hear = { role: "user", content: [{ type: "file", data: audio, mediaType: "audio/wav" }] };
const say = { role: "user", content: "Say red." };
const schema = jsonSchema({
  type: "object", properties: { colour: { enum: ["red", "blue"] } }, required: ["colour"], additionalProperties: false,
});
const tools = { paint: tool({ inputSchema: schema }) };
const error = ({ statusCode, responseBody }) => ({ status: statusCode, ...JSON.parse(responseBody).error });

/** What any provider can do with a chat; `message` holds audio where the provider can send it. */
const chatting = (model, message) => {
  const asked = { model, messages: [message], maxRetries: 0, maxOutputTokens: 60 };
  const once = {
    openai: { parallelToolCalls: false }, mistral: { parallelToolCalls: false }, voxtral: { parallel_tool_calls: false },
  };
  return {
    chat: async () => (({ text, finishReason, usage }) => ({ text, finishReason, usage }))(await generateText(asked)),
    chat_stream: async () => {
      const result = streamText(asked);
      return { deltas: await collect(result.textStream), usage: await result.usage };
    },
    schema: async () => (await generateText({ ...asked, output: Output.object({ schema }) })).output,
    tool: async () => {
      const { toolCalls, finishReason } = await generateText({
        ...asked, tools, toolChoice: "required", providerOptions: once,
      });
      return { finishReason, calls: toolCalls.map(({ toolName, input }) => ({ toolName, input })) };
    },
    chat_refused: () => refusal(() => generateText({ ...asked, temperature: 7 }), error),
  };
};

// Mistral's provider has times of segments only where they are asked for.
const times = { mistral: { timestampGranularities: ["segment"] } };
const ofWords = { mistral: { timestampGranularities: ["word"] }, openai: { timestampGranularities: ["word"] } };
const transcribing = (model, refused) => ({
  transcription: async () => {
    const { text, language, durationInSeconds, segments } = await transcribe({ model, audio, providerOptions: times });
    return { text, language, durationInSeconds, segments };
  },
  words: async () => {
    const { text, segments } = await transcribe({ model, audio, providerOptions: ofWords });
    return { text, segments };
  },
  refused: () => refusal(() => transcribe({ model, audio, maxRetries: 0, providerOptions: refused }), error),
});

const transcribingLive = (model) => ({
  live: async () => {
    const pieces = new ReadableStream({
      start(controller) {
        for (let start = 0; start < pcm.length; start += 16000) controller.enqueue(pcm.subarray(start, start + 16000));
        controller.close();
      },
    });
    const result = streamTranscribe({ model, audio: pieces, inputAudioFormat: { type: "audio/pcm", rate: 16000 } });
    const deltas = (await collect(result.fullStream)).filter(({ type }) => type === "transcript-delta");
    const [text, segments] = [await result.text, await result.segments];
    return { deltas: deltas.map(({ delta }) => delta), text, segments };
  },
});

const providers = {
  openai() {
    const openai = createOpenAI({ baseURL, apiKey: "none" });
    const refused = { openai: { language: "klingon" } };
    return {
      ...transcribing(openai.transcription("whisper-1"), refused), ...chatting(openai.chat("whisper-1"), hear),
      ...transcribingLive(openai.transcription("gpt-realtime-whisper")), // of few models it believes that they can
    };
  },
  mistral() {
    const mistral = createMistral({ baseURL, apiKey: "none" });
    const refused = { mistral: { diarize: true } };
    const model = "voxtral-mini-latest";
    return {
      ...transcribing(mistral.transcription(model), refused), ...chatting(mistral(model), say),
      ...transcribingLive(mistral.transcription(model)),
    };
  },
  "openai-compatible"() {
    const options = { includeUsage: true, supportsStructuredOutputs: true };
    return chatting(createOpenAICompatible({ name: "voxtral", baseURL, ...options })("whisper-1"), hear);
  },
};

await report(providers[process.argv[4]]());
