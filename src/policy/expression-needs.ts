import type { ASTNode } from '@marcbachmann/cel-js';
import { parseDuration } from '../config/duration.ts';
import { mergeNeeds } from '../domain/facts.ts';
import type { FactNeeds, RateNeed } from '../domain/facts.ts';
import { children } from './expand.ts';

/** What an expression has to know from storage. The check has made sure that windows and tools of rates are literals. */
export function needsOf(node: ASTNode): FactNeeds | undefined {
  let needs: FactNeeds | undefined;
  if (node.op === 'id' && (node.args === 'held' || node.args === 'count')) {
    needs = { held: true, lineage: false, rates: [] };
  } else if (node.op === '.' && node.args[0].op === 'id' && node.args[0].args === 'task') {
    const lineage = node.args[1] === 'depth' || node.args[1] === 'orchestrator';
    if (lineage) needs = { held: false, lineage, rates: [] };
  } else {
    const rate = rateOf(node);
    if (rate !== undefined) needs = { held: false, lineage: false, rates: [rate] };
  }
  for (const child of children(node.args)) needs = mergeNeeds(needs, needsOf(child));
  return needs;
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
