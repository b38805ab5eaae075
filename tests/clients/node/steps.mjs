// What every script beside this one shares: its arguments, and its results as one JSON object on standard output.
import { readFileSync } from "node:fs";

export const [serverURL, recording] = process.argv.slice(2);
export const audio = readFileSync(recording);
export const base64 = audio.toString("base64");
/** The recording without its header: s16le, 16 kHz. */
export const pcm = audio.subarray(44);

/** Run the steps, all at once, and print `{name: result}`. One that throws does not keep the others from ending. */
export async function report(steps) {
  const attempt = async ([name, step]) => [name, await step().catch(({ name, message }) => ({ thrown: name, message }))];
  console.log(JSON.stringify(Object.fromEntries(await Promise.all(Object.entries(steps).map(attempt)))));
}

/** What `call` is refused with, as `describe` reads it from the client's own error. */
export async function refusal(call, describe) {
  try {
    await call();
  } catch (error) {
    return { class: error.constructor.name, ...describe(error) };
  }
  return { class: "nothing was refused" };
}

export async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}
