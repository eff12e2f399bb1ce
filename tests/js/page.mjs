// What a page does with a fal client; bundled for the browser by esbuild, which defines CLIENT.
import * as module from "CLIENT";

const fal = module.fal ?? module;
const TURBO = "fal-ai/fast-svd-lcm/text-to-video";
const input = { prompt: "steps=1 pause=0", seed: 7, video_size: { width: 320, height: 256 } };

/** Play the film as a page would: its size and length as the browser decodes them. */
async function played({ video }) {
  const blob = await (await fetch(video.url)).blob();
  return { url: video.url, whole: blob.size === video.file_size, type: blob.type };
}

async function drawn() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [640, 360];
  canvas.getContext("2d").fillRect(0, 0, 320, 360);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

const actions = {
  async subscribe() {
    const messages = [];
    const onQueueUpdate = (update) => update.logs?.forEach((line) => messages.push(line.message));
    const answer = await fal.subscribe(TURBO, { input, logs: true, pollInterval: 50, onQueueUpdate });
    return { messages, requestId: answer.requestId, ...(await played(answer.data ?? answer)) };
  },

  async stream() {
    const stream = await fal.stream(TURBO, { input: { ...input, prompt: "steps=3 pause=0.3" } });
    const times = [];
    stream.on("data", () => times.push(Date.now()));
    const film = await stream.done();
    return { spread: times.at(-1) - times[0], ...(await played(film)) };
  },

  async picture() {
    const file = new File([await drawn()], "start.png", { type: "image/png" });
    const answer = await fal.subscribe("fal-ai/stable-video", { input: { image_url: file } });
    return played(answer.data ?? answer);
  },

  bad_input: () => fal.subscribe(TURBO, { input: { ...input, fps: 0 } }),
};

/** Do one thing after another; the answer is `{name: {value} or {error}}`. */
globalThis.perform = async (config, names) => {
  fal.config(config);
  const did = {};
  for (const name of names) {
    try {
      did[name] = { value: await actions[name]() };
    } catch ({ name: kind, status, message, body, requestId }) {
      did[name] = { error: { name: kind, status, message, body, requestId } };
    }
  }
  return did;
};
