// Streams of the three JavaScript clients (argv[2] names package, server and actions). What a stream opened
// with a token calls, no middleware sees: here fetch itself leads every call to the server.
import { askUntil, perform, pointTo } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
const lead = pointTo(plan.server);
const plainFetch = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  const ours = String(url).startsWith(plan.server) ? { url } : await lead({ url: String(url) });
  return plainFetch(ours.url, options);
};
const module = await import(plan.package);
const fal = module.fal ?? module;
fal.config({ credentials: process.env.FAL_KEY });

const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const QUICK = { prompt: "steps=4 pause=0.3", seed: 7, video_size: { width: 320, height: 256 } };
const SLOW = { prompt: "steps=2000 pause=0.05" };

async function collect(stream) {
  const events = [];
  // Not `for await`: before 1.0 the loop drops what came in just before the end.
  stream.on("message", (event) => events.push(event));
  const { last, error } = await stream.done().then((last) => ({ last }), (error) => ({ error }));
  if (error && events.length === 0) throw error;
  const failure = error && { name: error.name, status: error.status, message: error.message };
  return { events, last, failure, requestId: stream.requestId };
}

const streamed = async (input, options) => collect(await fal.stream(TURBO, { input, ...options }));
const client = { connectionMode: "client" };

async function whileBusy(work) {
  const { request_id: requestId } = await fal.queue.submit(TURBO, { input: SLOW });
  try {
    await askUntil(() => fal.queue.status(TURBO, { requestId }), ({ status }) => status === "IN_PROGRESS");
    return await work();
  } finally {
    await fal.queue.cancel(TURBO, { requestId });
  }
}

const tooLate = (error) => ({ status: error.status, user: error.isUserTimeout, body: error.body });

const actions = {
  stream: () => streamed(QUICK),
  stream_with_token: () => streamed(QUICK, client),
  bad_input: () => streamed({ ...QUICK, fps: 0 }),
  failing: () => streamed({ prompt: "steps=9 pause=0.3 refuse_at=4" }),

  async left() {
    const stream = await fal.stream(TURBO, { input: SLOW });
    for await (const event of stream) {
      if (event.status === "IN_PROGRESS") break;
    }
    const { requestId } = stream;
    stream.abort();
    return askUntil(() => fal.queue.status(TURBO, { requestId }), ({ status }) => status === "COMPLETED");
  },

  async subscribe() {
    const seen = [];
    const onQueueUpdate = ({ status, logs }) => seen.push({ status, messages: logs.map((line) => line.message) });
    const options = { input: QUICK, logs: true, mode: "streaming", onQueueUpdate, ...plan.options };
    const answer = await fal.subscribe(TURBO, options);
    return { output: answer.data ?? answer, seen };
  },

  start_timeout: () =>
    whileBusy(async () => {
      const startTimeout = 1.1;
      const run = await fal.run(TURBO, { input: QUICK, startTimeout }).catch(tooLate);
      const { request_id: requestId } = await fal.queue.submit(TURBO, { input: QUICK, startTimeout, hint: "a" });
      const ask = () => fal.queue.status(TURBO, { requestId });
      const last = await askUntil(ask, ({ status }) => status === "COMPLETED");
      return { run, last, result: await fal.queue.result(TURBO, { requestId }).catch(tooLate) };
    }),
};

await perform(actions, plan);
