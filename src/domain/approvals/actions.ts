import { checkArguments, type DeclaredArguments } from '../arguments.ts';
import { decide, type BoundedDecision } from '../decision.ts';
import { loadFacts, needsOf } from '../delegation/chain.ts';
import { BrokerError } from '../errors.ts';
import type { DecisionFacts } from '../facts.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { PolicyRevision } from '../policy.ts';
import type { Instant } from '../time.ts';
import { childToBe, factsOfChildToBe, whyNotHandedOn, type NamedChild } from './for-child.ts';

/** One exact use that approvals are asked for ahead of it. */
export interface Action {
  access: ToolAccess;
  arguments: DeclaredArguments;
  /** Set: tasks directly below will make it, which need not be there yet. */
  child?: NamedChild | undefined;
}

/** Whose use it is, as decisions see it. */
interface Actor {
  task: Task;
  /** Nearest first; undefined for a root. */
  above: readonly Task[] | undefined;
  facts: DecisionFacts;
}

export function actorOf(
  { access, child }: Action,
  task: Task,
  above: readonly Task[] | undefined,
  facts: DecisionFacts,
  opener: string,
  now: Instant,
): Actor {
  if (child === undefined) return { task, above, facts };
  return {
    task: childToBe(task, child, access, opener, now),
    above: [task, ...(above ?? [])],
    facts: factsOfChildToBe(facts, task),
  };
}

export async function decideAction(
  revision: PolicyRevision,
  { access, arguments: declared, child }: Action,
  { task, above, facts }: Actor,
  now: Instant,
): Promise<BoundedDecision> {
  const refused = child === undefined ? undefined : whyNotHandedOn(revision, child.agent, above);
  if (refused !== undefined) return { effect: 'deny', rule: '', reason: refused };
  const needs = needsOf(revision, task, above, access, false, now);
  return decide(revision, task, access, {
    workload: task.agentWorkload,
    now,
    renewal: undefined,
    arguments: declared.values,
    // Which key it is bound to is said when the credential is asked for.
    boundTo: 'any',
    ...(await loadFacts(facts, task, above, access, needs, now)),
  });
}

/** The arguments have to be what the tier takes: people are not asked about what would be refused anyway. */
export function checkAction(index: number, { access, arguments: declared, child }: Action, revision: PolicyRevision) {
  const prefix = `actions[${index}].`;
  if (child !== undefined && !revision.agents.has(child.agent)) {
    throw new BrokerError(
      'NAME_UNKNOWN',
      `${prefix}agent: no agent ${child.agent} is registered; see the Agent documents`,
      { violations: [{ field: `${prefix}agent`, description: 'not registered' }] },
    );
  }
  const tier = revision.tools.get(access.tool)?.tiers[access.tier];
  if (tier === undefined) return;
  try {
    checkArguments(`${access.tool}:${access.tier}`, tier.arguments ?? {}, declared.values);
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error;
    const violations = error.violations.map(({ field, description }) => ({ field: `${prefix}${field}`, description }));
    throw new BrokerError(error.reason, `${prefix}${error.message}`, { violations });
  }
}
