// The conformance matrix with one JavaScript client in Node. argv[2] names package and actions, and how the client
// is led: `server` by its requestMiddleware, `proxyUrl` by that, else it is not told at all.
import { readFile } from "node:fs/promises";
import { perform, pointTo } from "./kit.mjs";
import { actionsOf } from "./matrix_actions.mjs";

const plan = JSON.parse(process.argv[2]);
const module = await import(plan.package);
// @fal-ai/client exports its client as `fal` and wraps outputs; the older packages are the client.
const fal = module.fal ?? module;
const lead = plan.proxyUrl
  ? { proxyUrl: { url: plan.proxyUrl, when: "always" } }
  : plan.server
    ? { requestMiddleware: pointTo(plan.server) }
    : {};
const credentials = process.env.FAL_KEY;
const configure = (given) => fal.config({ ...lead, ...(given && { credentials: given }) });
const picture = async () => new File([await readFile(plan.picture)], "start.png", { type: "image/png" });

configure(credentials);
await perform(actionsOf(fal, { credentials, configure, picture }), plan);
