// A third party's app: Vercel's AI SDK with its fal provider, which knows fal's names and nothing of this server.
// argv[2] is a plan that names the picture, the other words are the actions.
import { createFal } from "@ai-sdk/fal";
import { experimental_generateVideo as generateVideo } from "ai";
import { readFile } from "node:fs/promises";
import { perform } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const fal = createFal({ apiKey: process.env.FAL_KEY });
const size = { video_size: { width: 320, height: 256 }, steps: 1 };

async function film(model, options, of = fal) {
  const asked = { seed: 7, maxRetries: 0, poll: { intervalMs: 50 } };
  const made = await generateVideo({ model: of.video(model), ...asked, ...options });
  const seed = made.providerMetadata.fal.seed;
  const bytes = Buffer.from(made.video.uint8Array);
  const box = bytes.toString("latin1", 4, 8);
  return { seed, whole: made.video.mediaType === "video/mp4" && bytes.length > 1000, box };
}

const words = { prompt: "steps=1 pause=0", providerOptions: { fal: size } };
const actions = {
  subscribe: async () => ({ ...(await film(TURBO, words)), last: "COMPLETED", lines: 1 }),
  blob: async () => film("fal-ai/stable-video", { prompt: { image: await readFile(plan.picture), text: "" } }),
  invalid: () => film(TURBO, { ...words, providerOptions: { fal: { ...size, fps: 0 } } }),
  wrong_key: () => film(TURBO, words, createFal({ apiKey: "0000:not-the-secret" })),
};

// Its errors carry the answer in their own fields.
const told = (action) => async () => {
  try {
    return await action();
  } catch (error) {
    const { statusCode, responseBody, message } = error;
    throw Object.assign(new Error(message), { status: statusCode, body: responseBody && JSON.parse(responseBody) });
  }
};
const wrapped = Object.fromEntries(Object.entries(actions).map(([name, action]) => [name, told(action)]));
await perform(wrapped, { actions: process.argv.slice(3) });
