import { parse } from '@marcbachmann/cel-js';
import type { ASTNode } from '@marcbachmann/cel-js';

/** One value that a condition used, as it was at that moment. */
export interface Seen {
  expression: string;
  /** JSON, or `absent`. */
  value: string;
}

const maxValues = 50;
const maxLength = 500;

/** What a condition saw: each field that it names with its value, in the order of the text. */
export function seenBy(condition: string, activation: Readonly<Record<string, unknown>>): Seen[] {
  const seen = new Map<string, string>();
  let ast: ASTNode;
  try {
    ast = parse(condition).ast;
  } catch {
    return [];
  }
  for (const node of paths(ast)) {
    if (seen.size >= maxValues) break;
    const steps = stepsOf(node)!;
    const [root] = steps;
    // Variables of loops (`x` in `list.exists(x, …)`) are no fields of what is seen.
    if (root === undefined || !(root in activation)) continue;
    seen.set(condition.slice(node.start, node.end), text(valueAt(activation, steps)));
  }
  return [...seen].map(([expression, value]) => ({ expression, value }));
}

/** The longest chains `a.b.c` and `a.b["c"]`, each once. */
function* paths(node: ASTNode): Generator<ASTNode> {
  if (stepsOf(node) !== undefined) {
    yield node;
    return;
  }
  for (const child of children(node.args)) yield* paths(child);
}

function stepsOf(node: ASTNode): string[] | undefined {
  if (node.op === 'id') return [node.args];
  if (node.op === '.') {
    const above = stepsOf(node.args[0]);
    return above === undefined ? undefined : [...above, node.args[1]];
  }
  if (node.op === '[]') {
    const [owner, key] = node.args;
    const above = stepsOf(owner);
    if (above === undefined || key.op !== 'value' || typeof key.args !== 'string') return undefined;
    return [...above, key.args];
  }
  return undefined;
}

function valueAt(activation: Readonly<Record<string, unknown>>, steps: readonly string[]): unknown {
  let value: unknown = activation;
  for (const step of steps) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Record<string, unknown>)[step];
  }
  return value;
}

function text(value: unknown): string {
  if (value === undefined) return 'absent';
  const json = JSON.stringify(value, (_key, part: unknown) => (typeof part === 'bigint' ? Number(part) : part)) ?? '';
  return json.length > maxLength ? `${json.slice(0, maxLength)}…` : json;
}

function* children(args: unknown): Generator<ASTNode> {
  if (Array.isArray(args)) for (const arg of args) yield* children(arg);
  else if (typeof args === 'object' && args !== null && 'op' in args && 'args' in args) yield args as ASTNode;
}
