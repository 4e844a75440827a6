import type { ASTNode } from '@marcbachmann/cel-js';
import type { ArgumentSpecs } from '../domain/arguments.ts';
import { rateKey } from '../domain/facts.ts';
import { ArgsView } from './activation.ts';
import type { Activation } from './activation.ts';
import { children } from './expand.ts';
import { rateOf } from './expression-needs.ts';

/** What a condition came to: whether it holds, or why that cannot be said. */
export type ConditionResult = boolean | { failed: string };

/** What cannot be known before a request is made. */
export interface Open {
  /** What the tier takes: each may have any value. Undefined when the arguments are known. */
  arguments: ArgumentSpecs | undefined;
  /** No workload is pinned yet. */
  caller: boolean;
  held: boolean;
  called: boolean;
  lineage: boolean;
  signals: boolean;
  /** By `rateKey`. */
  knownRates: { has(key: string): boolean };
}

/** All that a condition can still come to, and what decides between them, as the condition names it. */
export interface Prospect {
  true: boolean;
  false: boolean;
  /** It could not be evaluated, and says why where that is certain. */
  fails: false | { failed: string };
  names: ReadonlySet<string>;
}

export type ForecastCondition = (activation: Activation, open: Open) => Prospect;

const nothing: ReadonlySet<string> = new Set();
const surely: Prospect = { true: true, false: false, fails: false, names: nothing };
const never: Prospect = { true: false, false: true, fails: false, names: nothing };
/** Of a request without arguments. */
const noArgs = new ArgsView({}, {});

/**
 * Evaluates a condition without the request. The parts that look at nothing open are evaluated as they are; the others can
 * come to anything; `&&`, `||`, `!` and `?:` are put together as CEL does, which lets a certain side outweigh one that
 * fails. So what comes out is never narrower than what a request can meet.
 */
export function forecaster(
  root: ASTNode,
  text: string,
  parse: (text: string) => (activation: Activation) => ConditionResult,
): ForecastCondition {
  const compiled = new Map<ASTNode, (activation: Activation) => ConditionResult>();

  const leaf = (node: ASTNode, activation: Activation, open: Open): Prospect => {
    const names = new Set<string>();
    const missing = new Set<string>();
    collect(node, text, open, names, missing);
    if (names.size > 0) {
      return { true: true, false: true, fails: mayFail(node, open) && { failed: 'it failed' }, names };
    }
    let program = compiled.get(node);
    if (program === undefined) compiled.set(node, (program = parse(text.slice(node.start, node.end))));
    // Arguments that the tier does not take are in no request.
    const result = program(missing.size === 0 ? activation : { ...activation, args: noArgs });
    if (typeof result === 'boolean') return result ? surely : never;
    return { true: false, false: false, fails: result, names: nothing };
  };

  const prospect = (node: ASTNode, activation: Activation, open: Open): Prospect => {
    const of = (part: ASTNode) => prospect(part, activation, open);
    switch (node.op) {
      case '&&':
        return both(of(node.args[0]), of(node.args[1]), false);
      case '||':
        return both(of(node.args[0]), of(node.args[1]), true);
      case '!_': {
        const inner = of(node.args);
        return { ...inner, true: inner.false, false: inner.true };
      }
      case '?:': {
        const [condition, then, otherwise] = node.args.map(of) as [Prospect, Prospect, Prospect];
        const taken = [...(condition.true ? [then] : []), ...(condition.false ? [otherwise] : [])];
        return {
          true: taken.some((one) => one.true),
          false: taken.some((one) => one.false),
          fails: condition.fails || (taken.find((one) => one.fails)?.fails ?? false),
          names: new Set([condition, ...taken].flatMap(({ names }) => [...names])),
        };
      }
      default:
        return leaf(node, activation, open);
    }
  };
  return (activation, open) => prospect(root, activation, open);
}

/** `outweighs`: the value of one side that settles the whole, whatever the other is: true for `||`, false for `&&`. */
function both(left: Prospect, right: Prospect, outweighs: boolean): Prospect {
  const strong = outweighs ? 'true' : 'false';
  const weak = outweighs ? 'false' : 'true';
  const settles = (side: Prospect) => side[strong] && !side[weak] && side.fails === false;
  if (settles(left) || settles(right)) return outweighs ? surely : never;
  const strongly = left[strong] || right[strong];
  const weakly = left[weak] && right[weak];
  // A side that fails makes the whole fail, unless the other outweighs it.
  const failure = (side: Prospect, other: Prospect) => (other[weak] || other.fails !== false) && side.fails;
  return {
    true: outweighs ? strongly : weakly,
    false: outweighs ? weakly : strongly,
    fails: failure(left, right) || failure(right, left),
    names: new Set([...left.names, ...right.names]),
  };
}

function collect(node: ASTNode, text: string, open: Open, names: Set<string>, missing: Set<string>): void {
  const argument = argumentOf(node);
  if (argument !== undefined) {
    if (open.arguments === undefined) return;
    if (Object.hasOwn(open.arguments, argument)) names.add(`args.${argument}`);
    else missing.add(argument);
    return;
  }
  if (node.op === 'id') {
    if (node.args === 'args' && open.arguments !== undefined) names.add('args');
    else if ((node.args === 'held' || node.args === 'count') && open.held) names.add(node.args);
    else if (node.args === 'called' && open.called) names.add(node.args);
    else if ((node.args === 'signals' || node.args === 'risk') && open.signals) names.add(node.args);
    else if (node.args === 'caller' && open.caller) names.add('caller.workload');
    return;
  }
  if (node.op === '.' && node.args[0].op === 'id' && node.args[0].args === 'task' && open.lineage) {
    const field = node.args[1];
    if (field === 'depth' || field === 'orchestrator') names.add(`task.${field}`);
  }
  const rate = rateOf(node);
  if (rate !== undefined && !open.knownRates.has(rateKey(rate))) names.add(text.slice(node.start, node.end));
  for (const child of children(node.args)) collect(child, text, open, names, missing);
}

function argumentOf(node: ASTNode): string | undefined {
  if (node.op !== '.' && node.op !== '[]') return undefined;
  const [owner, field] = node.args;
  if (owner.op !== 'id' || owner.args !== 'args') return undefined;
  if (typeof field === 'string') return field;
  return field.op === 'value' && typeof field.args === 'string' ? field.args : undefined;
}

const comparisons = new Set(['==', '!=', '<', '<=', '>', '>=', 'in']);
const sureCalls = new Set(['has', 'size', 'startsWith', 'endsWith', 'contains', 'matches', 'lowerAscii', 'upperAscii']);

/** Whether a part may fail for some request: an argument that need not be given, arithmetic, conversions. */
function mayFail(node: ASTNode, open: Open): boolean {
  if ((node.op === 'call' || node.op === 'rcall') && node.args[0] === 'has') return false;
  const argument = argumentOf(node);
  if (argument !== undefined) return open.arguments?.[argument]?.required !== true;
  const isSure =
    node.op === 'id' ||
    node.op === 'value' ||
    node.op === 'list' ||
    node.op === '.' ||
    comparisons.has(node.op) ||
    ((node.op === 'call' || node.op === 'rcall') && sureCalls.has(node.args[0])) ||
    rateOf(node) !== undefined;
  if (!isSure) return true;
  // Other fields that are not there fail as well: text of a context, a label.
  if (node.op === '.' && !(node.args[0].op === 'id')) return true;
  for (const child of children(node.args)) if (mayFail(child, open)) return true;
  return false;
}
