import { auditEvent, type AuditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import { BrokerError } from './errors.ts';
import type { Abandonment, Lease } from './model.ts';
import { targetOf } from './provider.ts';
import type { Settler } from './settlement.ts';
import type { LeaseStore, Page } from './store.ts';
import { settleFields, type Emit } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

export type RetrySelection =
  { by: 'leases'; leaseIds: readonly string[] } | { by: 'task'; taskId: string } | { by: 'trouble' };

export interface LeaseCareStore {
  /** Makes the chosen leases due now, attempts reset, abandonment taken back, and writes an event for each. */
  retry(
    tenant: string,
    selection: RetrySelection,
    page: { size: number; after: string | undefined },
    act: { now: Instant; actor: string; requestId: string; dryRun: boolean },
  ): Promise<Page<Lease>>;
  /** Claims one lease that is settling or irrevocable; undefined when it is neither any more. */
  claimOne(tenant: string, leaseId: string, now: Instant, claimFor: Millis): Promise<Lease | undefined>;
  /** Undefined when it has another outcome by now. */
  abandon(lease: Lease, abandonment: Abandonment, error: string, event: AuditEvent): Promise<Lease | undefined>;
}

export interface LeaseCareOptions {
  clock: Clock;
  store: LeaseCareStore;
  leases: Pick<LeaseStore, 'get'>;
  settler: Pick<Settler, 'attempt' | 'claimFor' | 'lookAtIrrevocable'>;
  kickSettler: () => void;
  emit: Emit;
}

export type LeaseCare = ReturnType<typeof createLeaseCare>;

/** What operators do about credentials that could not be revoked. */
export function createLeaseCare(options: LeaseCareOptions) {
  const { clock, store, emit } = options;

  return {
    get: known,

    retry: async (
      caller: Caller,
      selection: RetrySelection,
      page: { size: number; after: string | undefined },
      act: { requestId: string; dryRun: boolean },
    ): Promise<Page<Lease>> => {
      const { tenant, workload: actor } = caller;
      const result = await store.retry(tenant, selection, page, { ...act, now: clock.now(), actor });
      if (!act.dryRun && result.items.length > 0) {
        emit('settle.retried', { by: actor, leases: result.items.length });
        options.settler.lookAtIrrevocable();
        options.kickSettler();
      }
      return result;
    },

    /**
     * The last thing that can be done about a credential, so it is not for one that could simply be revoked: the broker has
     * failed before, fails once more now, and the credential has run out by itself, so that what is left behind at the
     * target lets nobody in anew.
     */
    abandon: async (caller: Caller, leaseId: string, reason: string, requestId: string): Promise<Lease> => {
      const lease = await known(caller, leaseId);
      if (lease.abandoned !== undefined) return lease;
      const now = clock.now();
      const refusal = notYet(lease, now);
      if (refusal !== undefined) throw new BrokerError('ABANDON_REFUSED', refusal);
      const claimed = await store.claimOne(caller.tenant, leaseId, now, options.settler.claimFor);
      const error = claimed === undefined ? undefined : await options.settler.attempt(claimed);
      if (claimed === undefined || error === undefined) return await known(caller, leaseId);

      const at = clock.now();
      const abandonment = { at, by: caller.workload, reason };
      const { tool, tier, settleAttempts: attempts } = claimed;
      const detail = { tool, tier, target: targetOf(claimed.handle), handle: claimed.handle, reason, attempts, error };
      const event = auditEvent(
        claimed,
        'lease.given_up',
        caller.workload,
        at,
        { ...detail, request_id: requestId },
        leaseId,
      );
      const abandoned = await store.abandon(claimed, abandonment, error, event);
      if (abandoned === undefined) return await known(caller, leaseId);
      emit('lease.given_up', { ...settleFields(claimed), by: caller.workload, attempts });
      options.kickSettler();
      return abandoned;
    },
  };

  async function known(caller: Caller, leaseId: string): Promise<Lease> {
    const lease = await options.leases.get(caller.tenant, leaseId);
    if (lease !== undefined) return lease;
    throw new BrokerError('LEASE_NOT_FOUND', `no lease ${leaseId}: look for it with \`leasehold lease list\``);
  }
}

/** Why a lease cannot be abandoned, and what to do instead. */
function notYet(lease: Lease, now: Instant): string | undefined {
  const { leaseId, state, outcome } = lease;
  if (lease.handle === '') return `lease ${leaseId} is a token: it has no target and gets its outcome by itself`;
  if (state === 'active' || state === 'pending') {
    return `lease ${leaseId} is ${state}: close its task (${lease.taskId}), which revokes it`;
  }
  if (state === 'settled' && outcome !== 'irrevocable') return `lease ${leaseId} is settled already: ${outcome}`;
  if (lease.settleError === undefined) return `lease ${leaseId} is being revoked: wait for what comes of it`;
  if (lease.expiresAt > now) {
    return `the credential of lease ${leaseId} lives until ${new Date(lease.expiresAt).toISOString()}: until then the broker has to go on trying; mend what settle_error says`;
  }
  return undefined;
}

/** What an operator does next about a lease; empty: nothing. */
export function adviceFor(lease: Lease, now: Instant): string {
  const { leaseId, handle } = lease;
  const target = targetOf(handle);
  const retry = `leasehold lease settle ${leaseId} --retry`;
  const abandon = `leasehold lease abandon ${leaseId} --reason …`;
  if (lease.abandoned !== undefined) return '';
  if (lease.outcome === 'irrevocable') {
    return `mend what the error says, or end ${handle} by hand, then: ${retry}; if ${target} is gone for good: ${abandon}`;
  }
  if (lease.state !== 'settling' || lease.settleError === undefined) return '';
  const gone = lease.expiresAt <= now ? `; if ${target} is gone for good: ${abandon}` : '';
  return `mend what the error says; the broker tries again by itself, and at once with: ${retry}${gone}`;
}

/** When the broker tries next; undefined when it does not. */
export function nextAttempt(lease: Lease): Instant | undefined {
  if (lease.abandoned !== undefined) return undefined;
  return lease.state === 'settling' || lease.outcome === 'irrevocable' ? lease.settleAt : undefined;
}
