import type { ASTNode } from '@marcbachmann/cel-js';
import { parseDuration } from '../config/duration.ts';
import { mergeNeeds, noNeeds } from '../domain/facts.ts';
import type { FactNeeds, RateNeed } from '../domain/facts.ts';
import { children } from './expand.ts';

/** What an expression has to know from storage. The check has made sure that windows and tools of rates are literals. */
export function needsOf(node: ASTNode): FactNeeds | undefined {
  let needs: FactNeeds | undefined;
  if (node.op === 'id' && (node.args === 'held' || node.args === 'count')) {
    needs = { ...noNeeds, held: true };
  } else if (node.op === 'id' && node.args === 'called') {
    needs = { ...noNeeds, called: true };
  } else if (node.op === 'id' && (node.args === 'signals' || node.args === 'risk')) {
    needs = { ...noNeeds, signals: true };
  } else if (node.op === '.' && node.args[0].op === 'id' && node.args[0].args === 'task') {
    const lineage = node.args[1] === 'depth' || node.args[1] === 'orchestrator';
    if (lineage) needs = { ...noNeeds, lineage };
  } else {
    const rate = rateOf(node);
    if (rate !== undefined) needs = { ...noNeeds, rates: [rate] };
  }
  for (const child of children(node.args)) needs = mergeNeeds(needs, needsOf(child));
  return needs;
}

/** Whether a signal can change what it comes to. A review that falls due is told as a signal. */
export function watchesOf(node: ASTNode): boolean {
  if (node.op === 'id') return node.args === 'signals' || node.args === 'risk';
  if (node.op === '.' && node.args[0].op === 'id' && node.args[0].args === 'agent') {
    return node.args[1] === 'overdue' || node.args[1] === 'reviewBy';
  }
  return [...children(node.args)].some((child) => watchesOf(child));
}

export function rateOf(node: ASTNode): RateNeed | undefined {
  if (node.op !== 'rcall' || node.args[1].op !== 'id' || node.args[1].args !== 'rate') return undefined;
  const [scope, , [window, tool]] = node.args;
  return {
    scope: scope as RateNeed['scope'],
    window: parseDuration(window!.args as string)!,
    tool: tool?.args as string | undefined,
  };
}
