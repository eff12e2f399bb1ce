// An app's own backend with @fal-ai/server-proxy, as its documentation shows it for two frameworks; prints its port.
// Through the one for Hono 1.2.1 passes neither a call without a body, as a cancel is, nor a header of the page's.
import { createRouteHandler } from "@fal-ai/server-proxy/hono";
import { createRequestHandler } from "@fal-ai/server-proxy/svelte";
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const app = new Hono();
const allowed = { allowUnauthorizedRequests: true, allowedEndpoints: ["fal-ai/**"] };
app.all("/api/fal/proxy", createRouteHandler(allowed));
const { requestHandler } = createRequestHandler(allowed);
app.all("/svelte/api/fal/proxy", (context) => requestHandler({ request: context.req.raw }));
serve({ fetch: app.fetch, hostname: "127.0.0.1", port: 0 }, ({ port }) => console.log(port));
