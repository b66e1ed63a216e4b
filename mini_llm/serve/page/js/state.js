// What all tabs share: the run's card, the model that is asked, and the checkpoints.

import { get } from "./api.js";

/** The card of the run (GET /run), the chosen model's name, and the checkpoints. */
export const state = { run: null, model: "", checkpoints: [] };

/** Read the card and the checkpoints; fills the menu of models. */
export async function readRun() {
  const [run, found] = await Promise.all([get("/run"), get("/run/checkpoints")]);
  state.run = run;
  state.checkpoints = found.data;
  return run;
}

/** Return the run in a line: size, step, loss. */
export function cardLine(run) {
  const parts = [run.model, `${count(run.parameters)} parameters`, `context ${run.context}`, `${run.dtype}`];
  if (run.step !== null) parts.push(`step ${run.step.toLocaleString("en")}`);
  if (run.tokens_seen) parts.push(`${count(run.tokens_seen)} tokens seen`);
  if (run.val_loss !== null) parts.push(`held-out loss ${run.val_loss.toFixed(3)}`);
  return parts.join(" · ");
}

/** Return a large number in short. */
export function count(n) {
  return n >= 1e9 ? `${(n / 1e9).toFixed(1)} B` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n >= 1e3 ? `${(n / 1e3).toFixed(0)} k` : String(n);
}
