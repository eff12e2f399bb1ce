// Everything else a caller does with @fal-ai/serverless-client (argv[2] names package, server and actions).
import { readFile } from "node:fs/promises";
import { askUntil, perform, pointTo } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
const fal = await import(plan.package);
const credentials = process.env.FAL_KEY;
const requestMiddleware = pointTo(plan.server);
fal.config({ credentials, requestMiddleware });

const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const QUICK = "steps=1 pause=0";
const SLOW = "steps=2000 pause=0.05";
const ended = (answer) => answer.status === "COMPLETED";

async function film(endpoint, input) {
  const seen = [];
  const onQueueUpdate = (update) => seen.push(update.status);
  const output = await fal.subscribe(endpoint, { input, logs: true, pollInterval: 50, onQueueUpdate });
  return { output, seen };
}

async function submitSlow() {
  const { request_id } = await fal.queue.submit(TURBO, { input: { prompt: SLOW } });
  return request_id;
}

const status = (requestId) => fal.queue.status(TURBO, { requestId, logs: true });

async function afterCancel(requestId) {
  await fal.queue.cancel(TURBO, { requestId });
  const last = await askUntil(() => status(requestId), ended);
  const error = await fal.queue.result(TURBO, { requestId }).catch((refusal) => refusal);
  return { last, resultStatus: error.status, resultBody: error.body };
}

async function picture() {
  return new File([await readFile(plan.picture)], "start.png", { type: "image/png" });
}

const actions = {
  subscribe: () =>
    film(TURBO, { prompt: QUICK, seed: 7, fps: 12, video_size: { width: 320, height: 256 } }),

  run: () => fal.run(TURBO, { input: { prompt: QUICK, seed: 7, video_size: "square" } }),

  async submit() {
    const submitted = await fal.queue.submit(TURBO, { input: { prompt: QUICK, seed: 11 } });
    const last = await askUntil(() => status(submitted.request_id), ended);
    const output = await fal.queue.result(TURBO, { requestId: submitted.request_id });
    return { submitted, last, output };
  },

  webhook: () => fal.queue.submit(TURBO, { input: { prompt: QUICK }, webhookUrl: plan.webhookUrl }),

  webhook_sample: () =>
    fal.queue.submit(TURBO, {
      input: { prompt: "A rocket flying that is about to take off" },
      webhookUrl: "https://optional.webhook.url/for/results",
    }),

  image_address: () => film("fal-ai/fast-svd-lcm", { image_url: plan.pictureUrl, steps: 1 }),

  async uploaded_file() {
    const url = await fal.storage.upload(await picture());
    return { url, ...(await film("fal-ai/stable-video", { image_url: url, seed: 5 })) };
  },

  async data_uri() {
    const bytes = await readFile(plan.picture);
    const image_url = `data:image/png;base64,${bytes.toString("base64")}`;
    return film("fal-ai/stable-video", { image_url, fps: 30 });
  },

  blob: async () => film("fal-ai/stable-video", { image_url: await picture() }),

  async cancel_queued_and_running() {
    const running = await submitSlow();
    await askUntil(() => status(running), (answer) => answer.status === "IN_PROGRESS");
    const queued = await submitSlow();
    const waiting = await status(queued);
    const queuedEnd = await afterCancel(queued);
    const runningEnd = await afterCancel(running);
    const again = await fal.queue.cancel(TURBO, { requestId: running }).catch((refusal) => refusal);
    return { waiting, queuedEnd, runningEnd, again: { status: again.status, body: again.body } };
  },

  out_of_range: () => film(TURBO, { prompt: QUICK, motion_bucket_id: 300 }),
  wrong_type: () => film(TURBO, { prompt: QUICK, fps: "fast" }),
  odd_size: () => film(TURBO, { prompt: QUICK, video_size: { width: 321, height: 256 } }),
  no_prompt: () => film(TURBO, { seed: 1 }),
  forgotten_input: () => fal.subscribe("fal-ai/stable-video", { image_url: plan.pictureUrl }),

  async not_a_picture() {
    const image_url = await fal.storage.upload(new Blob(["Hello, World!"], { type: "text/plain" }));
    return film("fal-ai/stable-video", { image_url });
  },

  unfetchable_picture: () => film("fal-ai/stable-video", { image_url: `${plan.pictureUrl}.missing` }),
  unknown_endpoint: () => fal.subscribe("fal-ai/no-such-model", { input: { prompt: QUICK } }),
  unknown_request: () => status("01890000-0000-7000-8000-000000000000"),

  async early_result() {
    const requestId = await submitSlow();
    const error = await fal.queue.result(TURBO, { requestId }).catch((refusal) => refusal);
    await fal.queue.cancel(TURBO, { requestId });
    throw error;
  },

  async wrong_key() {
    fal.config({ credentials: "0000:not-the-secret", requestMiddleware });
    try {
      return await fal.run(TURBO, { input: { prompt: QUICK } });
    } finally {
      fal.config({ credentials, requestMiddleware });
    }
  },
};

await perform(actions, plan);
