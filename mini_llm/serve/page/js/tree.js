// A conversation is a tree: what was regenerated or edited stays beside what replaced it, as branch ‹ 2/3 ›.

/** Return an empty conversation of a kind: chat or complete. */
export function newConversation(kind) {
  return { id: crypto.randomUUID?.() || String(Date.now() + Math.random()), kind, title: "", created: Date.now(), nodes: [], chosen: {} };
}

/** Add a node below a parent (null: at the top) and make it the chosen one. */
export function add(conversation, parent, role, text, more) {
  const node = { id: conversation.nodes.length, parent, role, text, ...more };
  conversation.nodes.push(node);
  conversation.chosen[String(parent)] = node.id;
  return node;
}

/** Return the chosen nodes from the top down. */
export function path(conversation) {
  const found = [];
  let key = "null";
  while (key in conversation.chosen) {
    const node = conversation.nodes[conversation.chosen[key]];
    found.push(node);
    key = String(node.id);
  }
  return found;
}

/** Return all nodes that answer the same parent, oldest first. */
export function siblings(conversation, node) {
  return conversation.nodes.filter((other) => other.parent === node.parent);
}

/** Go to the branch so many steps beside a node. */
export function step(conversation, node, by) {
  const all = siblings(conversation, node);
  const next = all[all.indexOf(node) + by];
  if (next) conversation.chosen[String(node.parent)] = next.id;
}

/** Return a conversation read from a file, checked field by field; null where it is none. */
export function checked(found) {
  if (!found || typeof found !== "object" || !["chat", "complete"].includes(found.kind) || !Array.isArray(found.nodes)) return null;
  const fresh = newConversation(found.kind);
  fresh.title = String(found.title || "").slice(0, 200);
  fresh.created = Number(found.created) || Date.now();
  for (const [id, node] of found.nodes.entries()) {
    const parent = node?.parent ?? null;
    if (!node || typeof node.text !== "string" || !(parent === null || (Number.isInteger(parent) && parent >= 0 && parent < id))) return null;
    if (!["user", "assistant"].includes(node.role)) return null;
    const whole = (list) => (Array.isArray(list) && list.every((one) => Number.isInteger(one)) ? list : undefined);
    add(fresh, parent, node.role, node.text, {
      ids: whole(node.ids), promptIds: whole(node.promptIds), seed: Number.isInteger(node.seed) ? node.seed : undefined,
      model: typeof node.model === "string" ? node.model : undefined, finish: typeof node.finish === "string" ? node.finish : undefined,
    });
  }
  for (const [key, id] of Object.entries(found.chosen || {})) {
    if (fresh.nodes[id] && String(fresh.nodes[id].parent) === key) fresh.chosen[key] = id;
  }
  return fresh;
}
