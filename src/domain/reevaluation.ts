import type { AuditEvent } from './audit.ts';
import { decide } from './decision.ts';
import { auditEvent } from './issue.ts';
import type { NewId } from './ids.ts';
import type { Lease, Task } from './model.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import type { Emit } from './telemetry.ts';
import { leaseFields } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

/** An active lease that another revision than the running one allowed. */
export interface OpenLease {
  lease: Lease;
  task: Task;
  /** Whether people approved this tool and tier for this task. */
  approved: boolean;
}

/** A lease that is to be settled, and the decision that says so. */
export interface Ending {
  lease: Lease;
  event: AuditEvent;
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
    judge: (open: readonly OpenLease[]) => readonly Ending[],
  ): Promise<{ looked: number; ended: readonly Ending[]; more: boolean } | undefined>;
  /** Active leases of other revisions than this one, at most `limit`. */
  open(tenant: string, digest: string, limit: number): Promise<OpenLease[]>;
}

export interface ReevaluatorOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  store: ReevaluationStore;
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
  return {
    /** True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const revision = policy.current();
      const now = clock.now();
      const done = await store.step(tenant, revision.digest, batch, passes, now, (open) =>
        open.flatMap((one) => ending(revision, one, now)),
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
      return { decided: open.length, ended: open.flatMap((one) => ending(revision, one, now)).length };
    },
  };

  /** Decided as if it were asked for now: limits on renewals are for the renewal to meet. */
  function ending(revision: PolicyRevision, { lease, task, approved }: OpenLease, now: Instant): Ending[] {
    const decision = decide(revision, task, lease, { workload: lease.workload, now, renewal: undefined });
    if (decision.effect === 'allow' || decision.effect === 'too_late') return [];
    if (decision.effect === 'needs_approval' && approved) return [];
    const detail = {
      decision_id: options.newId('dec'),
      tool: lease.tool,
      tier: lease.tier,
      effect: decision.effect,
      rule: decision.rule,
      reason: decision.reason,
      policy_revision: revision.digest,
      reevaluation: true,
    };
    return [{ lease, event: auditEvent(task, 'decision.made', 'broker', now, detail, lease.leaseId) }];
  }
}
