// Every action of the conformance matrix, for Node and for a page: no module of either is used here.
import { askUntil } from "./kit.mjs";

const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const HQ = "fal-ai/stable-video";
const input = { prompt: "steps=1 pause=0", seed: 7, steps: 1, video_size: { width: 320, height: 256 } };
const slow = { prompt: "steps=400 pause=0.05", steps: 20 };
// Above 90 MiB @fal-ai/client sends parts; above 100 MiB fal_client does.
const LARGE = 101 * 1024 * 1024 + 5;
const pollInterval = 50; // ms; the clients' own is half a second

const digest = async (bytes) => String(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
const fetched = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());

/** The output; @fal-ai/client wraps it beside the request's id, which it has from a header. */
function wrapped(answer) {
  if (answer.requestId === "") throw new Error("the answer names no request");
  return answer.data ?? answer;
}

function random(length) {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
  return bytes;
}

/** The actions of one client. `tools` has a picture, the credentials and how to configure others. */
export function actionsOf(fal, tools) {
  /** The output, and what its address really leads to. */
  async function film(answer, more = {}) {
    const { video, seed } = wrapped(answer);
    const bytes = await fetched(video.url);
    const box = String.fromCharCode(...bytes.slice(4, 8));
    return { url: video.url, seed, whole: bytes.length === video.file_size, box, ...more };
  }

  async function subscribed(options) {
    const seen = [];
    let logs = [];
    const onQueueUpdate = (update) => {
      seen.push(update.status);
      logs = update.logs ?? logs;
    };
    const answer = await fal.subscribe(TURBO, { input, logs: true, pollInterval, onQueueUpdate, ...options });
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

  return {
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
      const file = await tools.picture();
      const image_url = await fal.storage.upload(file);
      const same = (await digest(await fetched(image_url))) === (await digest(await file.arrayBuffer()));
      return film(await fal.subscribe(HQ, { input: { image_url, seed: 7 }, pollInterval }), { same });
    },

    async upload_large() {
      const bytes = random(LARGE);
      const url = await fal.storage.upload(new File([bytes], "large.bin", { type: "application/x-large" }));
      return { same: (await digest(await fetched(url))) === (await digest(bytes)) };
    },

    async blob() {
      const input = { image_url: await tools.picture(), seed: 7 };
      return film(await fal.subscribe(HQ, { input, pollInterval }));
    },

    cancel_queued: () => whileBusy(async () => cancelled(await submit(slow))),
    cancel_running: () => whileBusy(cancelled),
    invalid: () => fal.subscribe(TURBO, { input: { ...input, fps: 0 } }),
    missing: () => fal.subscribe(TURBO, {}),

    async wrong_key() {
      tools.configure("0000:not-the-secret");
      try {
        return await fal.run(TURBO, { input });
      } finally {
        tools.configure(tools.credentials);
      }
    },

    start_timeout: () => whileBusy(() => fal.run(TURBO, { input, startTimeout: 1.1 })),
  };
}
