import type { Task, ToolAccess } from './model.ts';
import type { Decision, PolicyRevision, RenewalContext, Tool, ToolTier } from './policy.ts';
import type { Instant, Millis } from './time.ts';

/** A decision bounded by everything that policy does not know: what the task asked for, and how long it may last. */
export type BoundedDecision =
  | { effect: 'allow'; rule: string; reason: string; life: Millis; tool: Tool; tier: ToolTier }
  | { effect: 'deny' | 'needs_approval' | 'too_late'; rule: string; reason: string };

export interface DecisionContext {
  workload: string | undefined;
  now: Instant;
  renewal: RenewalContext | undefined;
}

/** Decides one tool and tier for one task under one revision (invariants 1, 4, 8). Pure. */
export function decide(
  revision: PolicyRevision,
  task: Task,
  access: ToolAccess,
  context: DecisionContext,
): BoundedDecision {
  const name = `${access.tool}:${access.tier}`;
  if (!task.tools.some((wanted) => wanted.tool === access.tool && wanted.tier === access.tier)) {
    return { effect: 'deny', rule: '', reason: `the task did not ask for ${name} when it was opened` };
  }
  const tool = revision.tools.get(access.tool);
  const tier = tool?.tiers[access.tier];
  if (tool === undefined || tier === undefined) {
    return { effect: 'deny', rule: '', reason: `${name} is not registered in the running policy revision` };
  }
  const decision = revision.decide({ task, access, ...context });
  if (decision.effect !== 'allow') return { effect: decision.effect, rule: decision.rule, reason: decision.reason };
  const life = lifeOf(decision, tier, task.deadline - context.now);
  if (life < leastLife(tier, task)) {
    return {
      effect: 'too_late',
      rule: decision.rule,
      reason: `the task ends in ${Math.max(0, Math.round(life / 1_000))} s, less than the least life of ${name}`,
    };
  }
  return { effect: 'allow', rule: decision.rule, reason: decision.reason, life, tool, tier };
}

function lifeOf(decision: Decision, tier: ToolTier, untilDeadline: Millis): Millis {
  return Math.min(decision.ttl ?? tier.ttl.default, tier.ttl.max, untilDeadline);
}

/**
 * Shorter than the tier's minimum is useless to an agent. A task that has not room for two such lives takes less, so that
 * whatever its length its agent has the tier's minimum of time to ask in.
 */
function leastLife(tier: ToolTier, task: Task): Millis {
  return Math.max(1_000, Math.min(tier.ttl.min, task.deadline - task.openedAt - tier.ttl.min));
}
