import { narrower, type ArgumentLimit, type ArgumentLimits } from '../arguments.ts';
import type { Facts } from '../facts.ts';
import type { Task, ToolAccess } from '../model.ts';
import type {
  ApprovalTerms,
  ConsideredRule,
  Decision,
  DecisionInput,
  Effect,
  Obligations,
  OpenDecision,
  PolicyRevision,
  Quorum,
  RenewalContext,
  ToolTier,
} from '../policy.ts';

/** One task above the one that asks, and what policy has to know of it. */
export interface Above {
  task: Task;
  facts: Facts | undefined;
  /** Whether it was opened with a heartbeat and has not missed it. */
  heartbeat: boolean;
}

interface Hop {
  /** Task whose agent's policy decided; undefined: the task's own. */
  hop?: string;
  /** A task above may not do it: two people cannot allow it to this task alone. */
  outright?: boolean;
}

/** What is left of a decision below other tasks. */
export type Narrowed = Decision & Hop;
export type NarrowedForecast = (Decision | OpenDecision) & Hop;

type Asked = Omit<DecisionInput, 'task' | 'facts' | 'workload'>;
type Ask = (input: DecisionInput, considered?: (rule: ConsideredRule) => void) => Decision | OpenDecision;

/**
 * A child gets at most what every task above it has (design §3.3): each of those has to list the tool and tier, its agent
 * has to delegate to the one below, and the running policy must not deny it to that agent. The strictest of all holds:
 * the shortest life, the union of those who have to approve, every limit.
 */
export function narrow(
  revision: PolicyRevision,
  own: Decision,
  tier: ToolTier,
  agent: string,
  above: readonly Above[],
  asked: Asked,
  considered: ((rule: ConsideredRule) => void) | undefined,
): Narrowed {
  const narrowed = narrowWith(revision, own, tier, agent, above, asked, revision.decide, considered);
  if (narrowed.effect !== 'depends') return narrowed;
  return { effect: 'deny', rule: narrowed.rule, reason: narrowed.reason, ttl: undefined, outright: true };
}

/** The same before a request is made: what any of them leaves open is open. */
export function narrowForecast(
  revision: PolicyRevision,
  own: Decision | OpenDecision,
  tier: ToolTier,
  agent: string,
  above: readonly Above[],
  asked: Asked,
): NarrowedForecast {
  return narrowWith(revision, own, tier, agent, above, asked, revision.forecast, undefined);
}

function narrowWith(
  revision: PolicyRevision,
  own: Decision | OpenDecision,
  tier: ToolTier,
  agent: string,
  above: readonly Above[],
  asked: Asked,
  ask: Ask,
  considered: ((rule: ConsideredRule) => void) | undefined,
): NarrowedForecast {
  let narrowed: NarrowedForecast = own;
  let below = agent;
  for (const hop of above) {
    const refused = (rule: string, reason: string): NarrowedForecast =>
      own.effect === 'deny'
        ? { ...own, outright: true }
        : { effect: 'deny', rule, reason, ttl: undefined, hop: hop.task.taskId, outright: true };
    const { task } = hop;
    if (!lists(task, asked.access)) {
      return refused('', `task ${task.taskId} above it did not ask for ${asked.access.tool}:${asked.access.tier}`);
    }
    if (revision.agents.get(task.agent)?.delegation?.to.includes(below) !== true) {
      return refused('', `agent ${task.agent} of task ${task.taskId} above it does not delegate to agent ${below}`);
    }
    below = task.agent;
    const theirs = ask(
      { ...asked, task, workload: task.agentWorkload, facts: hop.facts, renewal: renewalOf(asked.renewal, hop) },
      considered && ((rule) => considered({ ...rule, taskId: task.taskId })),
    );
    if (theirs.effect === 'deny') {
      return refused(
        theirs.rule,
        `agent ${task.agent} of task ${task.taskId} above it is denied the same: ${theirs.reason}`,
      );
    }
    // Only whether a task above refuses outright was left to find out.
    if (own.effect === 'deny') continue;
    narrowed = strictest(revision, narrowed, theirs, tier, task, asked);
    if (narrowed.effect === 'deny') return narrowed;
  }
  return narrowed;
}

export function lists(task: Pick<Task, 'tools'>, { tool, tier }: ToolAccess): boolean {
  return task.tools.some((wanted) => wanted.tool === tool && wanted.tier === tier);
}

function renewalOf(renewal: RenewalContext | undefined, { heartbeat }: Above): RenewalContext | undefined {
  return renewal && { ...renewal, heartbeat };
}

function lifeOf(decision: Decision | OpenDecision, tier: ToolTier): number {
  const approval = decision.effect === 'depends' ? undefined : decision.approval;
  return decision.ttl ?? approval?.ttl ?? tier.ttl.default;
}

function strictest(
  revision: PolicyRevision,
  mine: NarrowedForecast,
  theirs: Decision | OpenDecision,
  tier: ToolTier,
  task: Task,
  asked: Asked,
): NarrowedForecast {
  const life = lifeOf(mine, tier);
  const ttl = Math.min(life, lifeOf(theirs, tier));
  const obligations = mergeObligations(mine.obligations ?? {}, theirs.obligations ?? {});
  if (typeof obligations === 'string') {
    const reason = `${asked.access.tool}:${asked.access.tier} cannot be had below task ${task.taskId}: ${obligations}`;
    return { effect: 'deny', rule: theirs.rule, reason, ttl: undefined, hop: task.taskId, outright: true };
  }
  const bound = Object.keys(obligations).length === 0 ? {} : { obligations };
  const told = (one: { rule: string; reason: string; hop?: string }) => ({
    rule: one.rule,
    reason: one.reason,
    ...(one.hop === undefined ? {} : { hop: one.hop }),
  });
  const fromAbove = (verb: string) => ({
    rule: theirs.rule,
    reason: `agent ${task.agent} of task ${task.taskId} above it ${verb}: ${theirs.reason}`,
    hop: task.taskId,
  });
  if (mine.effect === 'depends' || theirs.effect === 'depends') {
    const open = [mine, theirs].flatMap((one) => (one.effect === 'depends' ? one.dependsOn : []));
    return {
      effect: 'depends',
      ...told(mine.effect === 'depends' ? mine : fromAbove('may do the same or not')),
      dependsOn: [...new Set(open)],
      possible: eachOf(possibleOf(mine), possibleOf(theirs)),
      ttl,
      ...bound,
    };
  }
  if (mine.approval === undefined && theirs.approval === undefined) {
    // Of two that allow, the one with the shorter life is told.
    return { effect: 'allow', ...told(ttl < life ? { ...theirs, hop: task.taskId } : mine), ttl, ...bound };
  }
  return {
    effect: 'needs_approval',
    ...told(mine.approval !== undefined ? mine : fromAbove('needs an approval for the same')),
    ttl: undefined,
    approval: mergeTerms(mine.approval, termsOf(revision, theirs, task), ttl),
    ...bound,
  };
}

const severity = ['allow', 'needs_approval', 'deny'] as const satisfies readonly Effect[];

function possibleOf(one: Decision | OpenDecision): readonly Effect[] {
  return one.effect === 'depends' ? one.possible : [one.effect];
}

/** All that two can come to together: the severer of each pair. */
function eachOf(a: readonly Effect[], b: readonly Effect[]): Effect[] {
  const pairs = a.flatMap((one) => b.map((other) => Math.max(severity.indexOf(one), severity.indexOf(other))));
  return severity.filter((_, index) => pairs.includes(index));
}

/** The owner that a rule means is that of the agent which it is about, not of the one below. */
function termsOf(revision: PolicyRevision, { approval }: Decision, task: Task): ApprovalTerms | undefined {
  if (approval === undefined) return undefined;
  const owner = revision.agents.get(task.agent)?.owner;
  const owners = owner === undefined ? [] : [owner];
  const named = (approvers: Quorum['approvers']) =>
    approvers.length === 0
      ? ['tool-owner', ...owners]
      : approvers.flatMap((name) => (name === 'agent-owner' ? owners : [name]));
  return {
    ...approval,
    quorums: approval.quorums.map((quorum) => ({ ...quorum, approvers: named(quorum.approvers) })),
  };
}

function mergeTerms(a: ApprovalTerms | undefined, b: ApprovalTerms | undefined, ttl: number): ApprovalTerms {
  if (a === undefined || b === undefined) return { ...(a ?? b)!, ttl };
  const known = new Set(a.quorums.map((quorum) => JSON.stringify(quorum)));
  return {
    // The same demand from two tasks is one.
    quorums: [...a.quorums, ...b.quorums.filter((quorum) => !known.has(JSON.stringify(quorum)))],
    uses: Math.min(a.uses, b.uses),
    decideWithin: Math.min(a.decideWithin, b.decideWithin),
    validFor: Math.min(a.validFor, b.validFor),
    coolDown: Math.max(a.coolDown, b.coolDown),
    ttl,
  };
}

/** A text says why nothing could keep to both. */
function mergeObligations(a: Obligations, b: Obligations): Obligations | string {
  const merged: Obligations = {};
  const constraint = a.senderConstraint ?? b.senderConstraint;
  if (constraint !== undefined) {
    if ((b.senderConstraint ?? constraint) !== constraint) {
      return `it would have to be bound by ${a.senderConstraint!} and by ${b.senderConstraint!}`;
    }
    merged.senderConstraint = constraint;
  }
  const notBefore = Math.max(a.renewNotBefore ?? 0, b.renewNotBefore ?? 0);
  if (notBefore > 0) merged.renewNotBefore = notBefore;
  const limits = mergeLimits(a.argumentLimits, b.argumentLimits);
  if (typeof limits === 'string') return limits;
  if (limits !== undefined) merged.argumentLimits = limits;
  return merged;
}

function mergeLimits(
  a: ArgumentLimits | undefined,
  b: ArgumentLimits | undefined,
): ArgumentLimits | undefined | string {
  if (a === undefined || b === undefined) return a ?? b;
  const merged: Record<string, ArgumentLimit> = { ...a };
  for (const [name, limit] of Object.entries(b)) {
    const both = Object.hasOwn(merged, name) ? narrower(merged[name]!, limit) : limit;
    if (both.enum?.length === 0 || (both.minimum ?? -Infinity) > (both.maximum ?? Infinity)) {
      return `no value of arguments.${name} fits the limits of both`;
    }
    merged[name] = both;
  }
  return merged;
}
