// Every action of the conformance matrix with one JavaScript client. argv[2] names package and actions, and how
// the client is led: `server` by its requestMiddleware, `proxyUrl` by that, else it is not told at all.
import { createHash, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { askUntil, perform, pointTo } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
const module = await import(plan.package);
// @fal-ai/client exports its client as `fal` and wraps outputs; the older packages are the client.
const fal = module.fal ?? module;
const lead = plan.proxyUrl
  ? { proxyUrl: { url: plan.proxyUrl, when: "always" } }
  : plan.server
    ? { requestMiddleware: pointTo(plan.server) }
    : {};
const configure = (credentials) => fal.config({ ...lead, ...(credentials && { credentials }) });
configure(process.env.FAL_KEY);

const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const HQ = "fal-ai/stable-video";
const input = { prompt: "steps=1 pause=0", seed: 7, steps: 1, video_size: { width: 320, height: 256 } };
const slow = { prompt: "steps=2000 pause=0.05", steps: 20 };
// Above 90 MiB @fal-ai/client sends parts; above 100 MiB fal_client does.
const LARGE = 101 * 1024 * 1024 + 5;

const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");
const fetched = async (url) => Buffer.from(await (await fetch(url)).arrayBuffer());
const wrapped = (answer) => answer.data ?? answer;

/** The output, and what its address really leads to. */
async function film(answer, more = {}) {
  const { video, seed } = wrapped(answer);
  const bytes = await fetched(video.url);
  return { seed, whole: bytes.length === video.file_size, box: bytes.toString("latin1", 4, 8), ...more };
}

async function subscribed(options) {
  const seen = [];
  let logs = [];
  const onQueueUpdate = (update) => {
    seen.push(update.status);
    logs = update.logs ?? logs;
  };
  const answer = await fal.subscribe(TURBO, { input, logs: true, pollInterval: 50, onQueueUpdate, ...options });
  return film(answer, { last: seen.at(-1), lines: logs.length });
}

const status = (requestId) => fal.queue.status(TURBO, { requestId, logs: true });
const submit = async (given) => (await fal.queue.submit(TURBO, { input: given })).request_id;
const cancel = (requestId) => fal.queue.cancel(TURBO, { requestId });

async function cancelled(requestId) {
  await cancel(requestId);
  const last = await askUntil(() => status(requestId), (answer) => answer.status === "COMPLETED");
  const error = await fal.queue.result(TURBO, { requestId }).catch((refusal) => refusal);
  return { kind: last.error_type, status: error.status };
}

/** Do `work` while a slow request runs. */
async function whileBusy(work) {
  const running = await submit(slow);
  try {
    await askUntil(() => status(running), (answer) => answer.status === "IN_PROGRESS");
    return await work(running);
  } finally {
    await cancel(running).catch(() => {});
  }
}

const picture = async () => new File([await readFile(plan.picture)], "start.png", { type: "image/png" });

const actions = {
  subscribe: () => subscribed({}),
  subscribe_streaming: () => subscribed({ mode: "streaming" }),
  run: async () => film(await fal.run(TURBO, { input })),

  async stream() {
    const stream = await fal.stream(TURBO, { input: { ...input, prompt: "steps=2 pause=0.1", steps: 2 } });
    let events = 0;
    stream.on("message", () => (events += 1));
    return film(await stream.done(), { events });
  },

  async submit() {
    const { request_id: requestId, status: first } = await fal.queue.submit(TURBO, { input });
    const last = await askUntil(() => status(requestId), (answer) => answer.status === "COMPLETED");
    return film(await fal.queue.result(TURBO, { requestId }), { first, last: last.status, lines: last.logs.length });
  },

  async upload() {
    const file = await picture();
    const image_url = await fal.storage.upload(file);
    const same = digest(await fetched(image_url)) === digest(await readFile(plan.picture));
    return film(await fal.subscribe(HQ, { input: { image_url, seed: 7 } }), { same });
  },

  async upload_large() {
    const bytes = randomBytes(LARGE);
    const url = await fal.storage.upload(new File([bytes], "large.bin", { type: "application/x-large" }));
    return { same: digest(await fetched(url)) === digest(bytes) };
  },

  blob: async () => film(await fal.subscribe(HQ, { input: { image_url: await picture(), seed: 7 } })),
  cancel_queued: () => whileBusy(async () => cancelled(await submit(slow))),
  cancel_running: () => whileBusy(cancelled),
  invalid: () => fal.subscribe(TURBO, { input: { ...input, fps: 0 } }),
  missing: () => fal.subscribe(TURBO, {}),

  async wrong_key() {
    configure("0000:not-the-secret");
    try {
      return await fal.run(TURBO, { input });
    } finally {
      configure(process.env.FAL_KEY);
    }
  },

  start_timeout: () => whileBusy(() => fal.run(TURBO, { input, startTimeout: 1.5 })),
};

await perform(actions, plan);
