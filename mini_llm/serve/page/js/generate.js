// One answer as it comes: a request, its stream, and what each piece adds to the node that holds the answer.

import { stream } from "./api.js";
import { systemPrompt } from "./settings.js";
import { state } from "./state.js";
import { isMarker } from "./tokens.js";

const decoder = new TextDecoder();

/** Return the text of an answer whose tokens are `entries`, which begin as those of `node`. */
export function textOf(node, entries) {
  const text = decoder.decode(Uint8Array.from(entries.flatMap((entry) => entry.bytes || [])));
  const padded = text.startsWith(" ") && !node.prefix && !node.text.startsWith(" "); // a tokenizer's own first space
  return (node.prefix || "") + (padded ? text.slice(1) : text);
}

function request(kind, node, before, settings) {
  const body = { ...settings, model: state.model || undefined, inspect: true, return_token_ids: true };
  if (node.promptIds) return ["/v1/completions", { ...body, prompt: [...node.promptIds, ...(node.ids || [])] }];
  if (kind === "complete") return ["/v1/completions", { ...body, prompt: before.map((one) => one.text).join("") + node.text }];
  const messages = before.map((one) => ({ role: one.role, content: one.text }));
  if (systemPrompt()) messages.unshift({ role: "system", content: systemPrompt() });
  if (!node.text) return ["/v1/chat/completions", { ...body, messages }];
  messages.push({ role: "assistant", content: node.text });
  return ["/v1/chat/completions", { ...body, messages, continue_final_message: true, add_generation_prompt: false }];
}

/**
 * Write on at `node`, after the nodes `before` it, until the model or the signal stops; `changed(piece)` after each piece.
 * Exact by ids where the node has them: `promptIds` and then its own `ids`.
 */
export async function generate(kind, node, before, settings, { signal, changed, queued }) {
  while (node.ids?.length && node.ids.length === node.inspect?.length && isMarker(node.inspect.at(-1))) { // it goes on before its end
    node.ids.pop();
    node.inspect.pop();
  }
  const [path, body] = request(kind, node, before, settings);
  const byText = !node.promptIds && Boolean(node.text);
  if (byText) node.prefix = node.text; // its tokens belong to the prompt
  let first = 0;
  let written = 0;
  node.ids ??= [];
  node.inspect ??= [];
  Object.assign(node, { seed: body.seed, model: body.model, finish: null, stopReason: null, problem: null });
  const take = (event) => {
    const choice = event.choices?.[0];
    if (!choice) return;
    const promptIds = choice.prompt_token_ids || event.prompt_token_ids;
    if (promptIds && !node.promptIds) node.promptIds = promptIds;
    const piece = choice.delta ? choice.delta.content || "" : choice.text || "";
    const ids = choice.token_ids || [];
    if (ids.length) {
      first ||= performance.now();
      written += ids.length;
      node.ids.push(...ids);
      node.inspect.push(...(choice.inspect || []));
    }
    node.text += piece;
    if (choice.finish_reason) Object.assign(node, { finish: choice.finish_reason, stopReason: choice.stop_reason });
    if (written > 1) node.rate = (1000 * (written - 1)) / (performance.now() - first);
    changed(piece);
  };
  const began = performance.now();
  try {
    await stream(path, body, { take, queued, signal });
  } catch (problem) {
    node.finish = "stopped";
    if (problem.name !== "AbortError") node.problem = problem.message;
  }
  node.wait = first ? first - began : null;
}
