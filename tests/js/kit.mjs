// What the sample programs share: pointing a client here, waiting, and one JSON line per action.

const PLANES = {
  "fal.run": "run",
  "queue.fal.run": "queue",
  "rest.fal.ai": "rest",
  "rest.alpha.fal.ai": "rest",
};

/** A requestMiddleware that sends every call of a fal client to `server` instead. */
export function pointTo(server) {
  return async (request) => {
    const { host, pathname, search } = new URL(request.url);
    if (!(host in PLANES)) throw new Error(`${host} is not a fal host this server answers for`);
    return { ...request, url: `${server}/${PLANES[host]}${pathname}${search}` };
  };
}

/** Ask until `done(answer)`; the deadline is generous, machines that run tests are busy. */
export async function askUntil(ask, done, seconds = 60) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const answer = await ask();
    if (done(answer)) return answer;
    if (Date.now() > deadline) throw new Error(`not reached in ${seconds} s: ${JSON.stringify(answer)}`);
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

/** What a caller can see of an error thrown by a fal client. */
export function described(error) {
  const { name, status, message, body, fieldErrors, requestId } = error;
  const naming = (field) => error.getFieldErrors?.(field)?.length ?? 0;
  return { name, status, message, body, fieldErrors, requestId, namesImageUrl: naming("image_url") };
}

const print = (outcome) => console.log(JSON.stringify(outcome));

/** Do the actions a plan names and tell of each `{action, value}` or `{action, error}`. */
export async function perform(actions, plan, tell = print) {
  for (const action of plan.actions) {
    let outcome;
    try {
      outcome = { action, value: await actions[action](plan) };
    } catch (error) {
      outcome = { action, error: described(error) };
    }
    tell(outcome);
  }
}
