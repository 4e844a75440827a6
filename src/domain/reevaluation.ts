import type { AuditEvent } from './audit.ts';
import { decide, type DecisionContext } from './decision.ts';
import { asked } from './decision-record.ts';
import { loadFacts, needsOf } from './delegation/chain.ts';
import { noneEarlier, type DecisionFacts, type Facts } from './facts.ts';
import { auditEvent } from './audit.ts';
import type { NewId } from './ids.ts';
import { constraintOf } from './key-binding.ts';
import { argumentsOf } from './lease-terms.ts';
import type { Lease, Task } from './model.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import type { Emit } from './telemetry.ts';
import { leaseFields } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

/** An active lease that another revision than the running one allowed. */
export interface OpenLease {
  lease: Lease;
  task: Task;
  /** The tasks above it, nearest first; undefined for a root. */
  above: readonly Task[] | undefined;
  /** Whether people approved this tool and tier for this task. */
  approved: boolean;
  /** Whether two people set policy aside for it. */
  emergency: boolean;
}

/** A lease that is to be settled, and the decision that says so. */
export interface Ending {
  lease: Lease;
  event: AuditEvent;
  /** That refuses it. */
  rule: string;
}

export interface ReevaluationStore {
  /**
   * The next batch of a due reevaluation under this digest, in one transaction: hands the open leases to `judge`, marks
   * those that it names for settlement, and writes their events. `passes` are the times after the activation at which
   * the open leases are gone through. Undefined when nothing is due.
   */
  step(
    tenant: string,
    digest: string,
    limit: number,
    passes: readonly Millis[],
    now: Instant,
    judge: (open: readonly OpenLease[]) => Promise<readonly Ending[]>,
  ): Promise<{ looked: number; ended: readonly Ending[]; more: boolean } | undefined>;
  /** Active leases of other revisions than this one, at most `limit`. */
  open(tenant: string, digest: string, limit: number): Promise<OpenLease[]>;
}

export interface ReevaluatorOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  store: ReevaluationStore;
  facts: DecisionFacts;
  tenant: string;
  kickSettler: () => void;
  emit: Emit;
}

/** One transaction's worth: short, so that no renewal or close waits for it. */
const batch = 500;
/**
 * A replica that has not heard of the revision yet may still issue under the earlier one, and a target may be making a
 * credential that was decided before: the later passes meet those.
 */
const passes: readonly Millis[] = [0, 5_000, 60_000];
const previewLimit = 10_000;

/** Takes away at once what a revision with `reevaluate` no longer allows. Any replica does the next batch. */
export function createReevaluator(options: ReevaluatorOptions) {
  const { policy, store, tenant, clock } = options;
  const endings = createJudge(options);
  return {
    /** True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const revision = policy.current(tenant);
      const now = clock.now();
      const done = await store.step(tenant, revision.digest, batch, passes, now, (open) =>
        endings(revision, open, now),
      );
      if (done === undefined) return false;
      for (const { lease } of done.ended) {
        options.emit('lease.taken_away', { ...leaseFields(lease), policyRevision: revision.digest });
      }
      if (done.ended.length > 0) options.kickSettler();
      return done.more;
    },

    preview: async (revision: PolicyRevision): Promise<{ decided: number; ended: number }> => {
      const open = await store.open(tenant, revision.digest, previewLimit);
      const now = clock.now();
      return { decided: open.length, ended: (await endings(revision, open, now)).length };
    },
  };
}

export type Judge = (revision: PolicyRevision, open: readonly OpenLease[], now: Instant) => Promise<Ending[]>;

/** Says which open leases no longer stand, decided as if they were asked for now: limits on renewals are for the renewal. */
export function createJudge(options: Pick<ReevaluatorOptions, 'newId' | 'facts'>): Judge {
  return async (revision, open, now) => {
    const found: Ending[] = [];
    for (const one of open) {
      const end = await ending(revision, one, now);
      if (end !== undefined) found.push(end);
    }
    return found;
  };

  async function ending(
    revision: PolicyRevision,
    { lease, task, above, approved }: OpenLease,
    now: Instant,
  ): Promise<Ending | undefined> {
    const needs = needsOf(revision, task, above, lease, false, now);
    const { lineStartedAt, taskId } = lease;
    const { values } = argumentsOf(lease);
    const known = await loadFacts(options.facts, task, above, lease, needs, now, { lineStartedAt, taskId });
    const context: DecisionContext = {
      workload: lease.workload,
      now,
      renewal: undefined,
      arguments: values,
      boundTo: constraintOf(lease.terms?.boundTo),
      facts: asFirst(known.facts),
      above: known.above?.map((hop) => ({ ...hop, facts: asFirst(hop.facts) })),
    };
    const decision = decide(revision, task, lease, context);
    if (decision.effect === 'allow' || decision.effect === 'too_late') return undefined;
    if (decision.effect === 'needs_approval' && approved) return undefined;
    const detail = {
      decision_id: options.newId('dec'),
      tool: lease.tool,
      tier: lease.tier,
      effect: decision.effect,
      rule: decision.rule,
      reason: decision.reason,
      policy_revision: revision.digest,
      ...(decision.hop === undefined ? {} : { decided_by: decision.hop }),
      reevaluation: true,
      ...(Object.keys(values).length === 0 ? {} : { arguments: values }),
      asked: asked(task, context),
    };
    return {
      lease,
      rule: decision.rule,
      event: auditEvent(task, 'decision.made', 'broker', now, detail, lease.leaseId),
    };
  }
}

/** What the task had of it before is for the next renewal to meet as well. */
function asFirst(facts: Facts | undefined): Facts | undefined {
  return facts?.earlier === undefined ? facts : { ...facts, earlier: noneEarlier };
}
