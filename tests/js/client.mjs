// @fal-ai/client, the package that follows serverless-client: answers carry `data` and `requestId`.
import { fal } from "@fal-ai/client";
import { readFile } from "node:fs/promises";
import { perform, pointTo } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
fal.config({ credentials: process.env.FAL_KEY, requestMiddleware: pointTo(plan.server) });

const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const input = { prompt: "steps=1 pause=0", seed: 7, video_size: { width: 320, height: 256 } };

const actions = {
  async subscribe() {
    const messages = [];
    const onQueueUpdate = (update) => update.logs?.forEach((line) => messages.push(line.message));
    const options = { input, logs: true, pollInterval: 50, onQueueUpdate };
    return { messages, ...(await fal.subscribe(TURBO, options)) };
  },

  run: () => fal.run(TURBO, { input }),

  async uploaded_file() {
    const file = new File([await readFile(plan.picture)], "start.png", { type: "image/png" });
    const image_url = await fal.storage.upload(file);
    return { url: image_url, ...(await fal.subscribe("fal-ai/stable-video", { input: { image_url } })) };
  },

  bad_input: () => fal.subscribe(TURBO, { input: { ...input, fps: 0 } }),
};

await perform(actions, plan);
