// The model page's sample for fal-ai/fast-svd-lcm/text-to-video; only the client is pointed here and asks more often
// than each half second, in which the small weights make a whole film.
import * as fal from "@fal-ai/serverless-client";
import { pointTo } from "./kit.mjs";

fal.config({ requestMiddleware: pointTo(process.env.STILLMOTION_URL) });

const result = await fal.subscribe("fal-ai/fast-svd-lcm/text-to-video", {
  input: {
    prompt: "A rocket flying that is about to take off",
  },
  logs: true,
  pollInterval: 50,
  onQueueUpdate: (update) => {
    if (update.status === "IN_PROGRESS") {
      update.logs.map((log) => log.message).forEach(console.log);
    }
  },
});
console.log(JSON.stringify({ subscribed: result }));
