// The model page's sample for fal-ai/stable-video, and the same picture through its quick sibling. Only the
// client is pointed here, and the picture's host, storage.googleapis.com on that page, is one the test can
// reach: argv[2] is the address of rocket.png.
import * as fal from "@fal-ai/serverless-client";
import { pointTo } from "./kit.mjs";

fal.config({ requestMiddleware: pointTo(process.env.STILLMOTION_URL) });

const result = await fal.subscribe("fal-ai/stable-video", {
  input: {
    image_url: process.argv[2],
  },
  logs: true,
  onQueueUpdate: (update) => {
    if (update.status === "IN_PROGRESS") {
      update.logs.map((log) => log.message).forEach(console.log);
    }
  },
});
console.log(JSON.stringify({ subscribed: result }));

const quick = await fal.subscribe("fal-ai/fast-svd-lcm", {
  input: { image_url: process.argv[2], seed: 3, fps: 8, steps: 2 },
});
console.log(JSON.stringify({ quick }));

const file = new File(["Hello, World!"], "hello.txt", { type: "text/plain" });
const url = await fal.storage.upload(file);
console.log(JSON.stringify({ uploaded: url }));

// As printed on that page: the picture stands beside `input` instead of inside it.
try {
  await fal.subscribe("fal-ai/stable-video", {
    image_url: url,
  });
} catch (error) {
  const { name, status, fieldErrors } = error;
  console.log(JSON.stringify({ refused: { name, status, fieldErrors } }));
}
