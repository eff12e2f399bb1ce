// An app's own backend with @fal-ai/server-proxy, as its documentation shows it; prints its port.
import { createRouteHandler } from "@fal-ai/server-proxy/hono";
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const app = new Hono();
const proxy = createRouteHandler({ allowUnauthorizedRequests: true, allowedEndpoints: ["fal-ai/**"] });
app.all("/api/fal/proxy", proxy);
serve({ fetch: app.fetch, hostname: "127.0.0.1", port: 0 }, ({ port }) => console.log(port));
