// The conformance matrix with @fal-ai/client in a page, bundled for the browser by esbuild.
import { fal } from "@fal-ai/client";
import { perform, pointTo } from "./kit.mjs";
import { actionsOf } from "./matrix_actions.mjs";

async function picture() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [640, 360];
  canvas.getContext("2d").fillRect(0, 0, 320, 360);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return new File([blob], "start.png", { type: "image/png" });
}

/** Do what the plan says; the answer is a list of what `perform` tells in Node. */
globalThis.performMatrix = async (plan) => {
  const { credentials } = plan;
  const lead = plan.proxyUrl ? { proxyUrl: plan.proxyUrl } : { requestMiddleware: pointTo(plan.server) };
  const configure = (given) =>
    fal.config({ ...lead, credentials: given, suppressLocalCredentialsWarning: true });
  configure(credentials);
  const told = [];
  await perform(actionsOf(fal, { credentials, configure, picture }), plan, (outcome) => told.push(outcome));
  return told;
};
