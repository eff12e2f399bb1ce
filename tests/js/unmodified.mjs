// A program that knows nothing of this server, but for a proxyUrl where the plan gives one (argv[2]).
import { readFile } from "node:fs/promises";
import { perform } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
const module = await import(plan.package);
// @fal-ai/client exports its client as `fal` and wraps outputs; the older packages are the client.
const fal = module.fal ?? module;
// An empty configuration keeps the older packages from printing that they have none.
fal.config(plan.proxyUrl ? { proxyUrl: { url: plan.proxyUrl, when: "always" } } : {});

const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const input = { prompt: "steps=1 pause=0", seed: 7, video_size: { width: 320, height: 256 } };

/** The output, and what its address really leads to. */
async function film(answer) {
  const output = answer.data ?? answer;
  const bytes = Buffer.from(await (await fetch(output.video.url)).arrayBuffer());
  return { ...output, whole: bytes.length === output.video.file_size, box: bytes.toString("latin1", 4, 8) };
}

const actions = {
  subscribe: async () => film(await fal.subscribe(TURBO, { input, logs: true, pollInterval: 50 })),

  streaming: async () => film(await fal.subscribe(TURBO, { input, mode: "streaming" })),

  run: async () => film(await fal.run(TURBO, { input })),

  async stream() {
    const stream = await fal.stream(TURBO, { input: { ...input, prompt: "steps=2 pause=0.1" } });
    let events = 0;
    stream.on("message", () => (events += 1)); // The one name that all versions know.
    const output = await film(await stream.done());
    return { events, ...output };
  },

  async uploaded_file() {
    const file = new File([await readFile(plan.picture)], "start.png", { type: "image/png" });
    const image_url = await fal.storage.upload(file);
    const back = Buffer.from(await (await fetch(image_url)).arrayBuffer());
    const same = back.equals(await readFile(plan.picture));
    return { same, ...(await film(await fal.subscribe("fal-ai/stable-video", { input: { image_url } }))) };
  },

  bad_input: () => fal.subscribe(TURBO, { input: { ...input, fps: 0 } }),
};

await perform(actions, plan);
