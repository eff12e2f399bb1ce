// What a caller uploads with either JavaScript client (argv[2] names package, server and actions).
import { perform, pointTo } from "./kit.mjs";

const plan = JSON.parse(process.argv[2]);
const client = await import(plan.package);
const fal = client.fal ?? client;
fal.config({ credentials: process.env.FAL_KEY, requestMiddleware: pointTo(plan.server) });

const hello = () => new File(["Hello, World!"], "hello.txt", { type: "text/plain" });
const upload = async (file, lifecycle) => ({ url: await fal.storage.upload(file, { lifecycle }) });

const actions = {
  small: () => upload(hello()),
  unnamed: () => upload(new Blob(["Hello, World!"], { type: "text/plain" })),
  untyped: () => upload(new Blob([Buffer.from("89504e470d0a1a0a00", "hex")])),
  expiring: () => upload(hello(), { expiresIn: "1h" }),
  hidden: () => upload(hello(), { initialAcl: { default: "hide" } }),

  film_expiring: () =>
    fal.subscribe("fal-ai/fast-svd-lcm/text-to-video", {
      input: { prompt: "steps=1 pause=0", video_size: { width: 320, height: 256 } },
      storageSettings: { expiresIn: "1h", initialAcl: { default: "forbid" } },
    }),
};

await perform(actions, plan);
