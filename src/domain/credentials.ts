import { holds, leaseNotFound } from './access.ts';
import type { Caller } from './caller.ts';
import { BrokerError } from './errors.ts';
import { auditEvent } from './audit.ts';
import type { Issued } from './hand-out.ts';
import type { Issuer, IssueRequest, TaskCache } from './issue.ts';
import type { Lease } from './model.ts';
import type { Settler } from './settlement.ts';
import type { LeaseStore, Wake } from './store.ts';
import { leaseFields, type Emit } from './telemetry.ts';
import type { Clock, Millis } from './time.ts';

export interface CredentialsOptions {
  clock: Clock;
  issuer: Issuer;
  settler: Pick<Settler, 'settleNow' | 'claimFor'>;
  leases: LeaseStore;
  cache: TaskCache;
  wake: Wake;
  /** The same attested workload, with what it is under the running policy revision. */
  asOfNow: (caller: Caller) => Caller;
  newRequestId: () => string;
  sleep: (ms: Millis, signal: AbortSignal) => Promise<void>;
  emit: Emit;
}

export type Credentials = ReturnType<typeof createCredentials>;

const transient = new Set(['STORAGE_UNAVAILABLE', 'PROVIDER_UNAVAILABLE', 'IN_PROGRESS', 'RATE_LIMITED']);
const retryPause: Millis = 1_000;

export function createCredentials(options: CredentialsOptions) {
  const { clock, issuer, leases } = options;

  return {
    issue: issuer.issue,
    renew: issuer.renew,

    /** Revoked when this returns, unless its target cannot be reached: then it is `settling` and the settler goes on. */
    giveBack: async (caller: Caller, leaseId: string): Promise<Lease> => {
      const lease = await leases.get(caller.tenant, leaseId);
      if (lease === undefined || !holds(caller, lease)) throw leaseNotFound(leaseId);
      if (lease.state === 'pending') {
        throw new BrokerError('IN_PROGRESS', 'the credential is still being made: retry shortly', {
          retryAfterMs: 500,
        });
      }
      const now = clock.now();
      const event = auditEvent(
        lease,
        'lease.returned',
        caller.workload,
        now,
        { tool: lease.tool, tier: lease.tier },
        leaseId,
      );
      const claimed = await leases.beginReturn(lease, now + options.settler.claimFor, event);
      if (claimed !== undefined) {
        options.emit('lease.returned', leaseFields(lease));
        await options.settler.settleNow(claimed);
      }
      return (await leases.get(caller.tenant, leaseId)) ?? lease;
    },

    /** One credential after the other, each before the last one runs out. Ends when the task does. */
    stream: async function* (caller: Caller, request: IssueRequest, signal: AbortSignal): AsyncIterable<Issued> {
      let current = await issuer.issue(caller, request);
      yield current;
      for (;;) {
        await untilDue(current, signal);
        if (signal.aborted || !(await stillOpen(current.lease))) return;
        const next = await renewPatiently(caller, current, signal);
        if (next === undefined) return;
        current = next;
        yield current;
      }
    },
  };

  async function untilDue(issued: Issued, signal: AbortSignal): Promise<void> {
    let woken = new AbortController();
    const off = options.wake.onTask((tenant, taskId) => {
      if (tenant === issued.lease.tenant && taskId === issued.lease.taskId) woken.abort();
    });
    try {
      while (clock.now() < issued.renewAfter && !signal.aborted) {
        const pause = Math.min(issued.renewAfter - clock.now(), 5_000);
        await options.sleep(pause, AbortSignal.any([signal, woken.signal]));
        // Anew before the look, so that a change during it is not missed. Not every change is the end of the task.
        woken = new AbortController();
        if (!(await stillOpen(issued.lease))) return;
      }
    } finally {
      off();
    }
  }

  async function stillOpen(lease: Lease): Promise<boolean> {
    const task = await options.cache.refresh(lease.tenant, lease.taskId).catch(() => undefined);
    return task === undefined || task.state === 'open';
  }

  /** A stream is no session: each renewal asks again what a call of its own would be asked (invariant 1). */
  function stillAttested(caller: Caller, lease: Lease): Caller {
    const until = new Date(lease.expiresAt).toISOString();
    const metadata = { lives_until: until };
    if (caller.expiresAt <= clock.now()) {
      throw new BrokerError(
        'ATTESTATION_EXPIRED',
        `the attestation that opened this stream has run out: call again with a fresh one; the present credential lives until ${until}`,
        { metadata },
      );
    }
    const present = options.asOfNow(caller);
    if (!present.agents.has(lease.agent)) {
      throw new BrokerError(
        'RENEWAL_REFUSED',
        `this workload is not one of agent ${lease.agent} any more; the present credential lives until ${until}`,
        { metadata },
      );
    }
    return present;
  }

  /** A refusal ends the stream with its reason; a passing fault is retried while the present credential lives. */
  async function renewPatiently(caller: Caller, current: Issued, signal: AbortSignal): Promise<Issued | undefined> {
    const requestId = options.newRequestId();
    for (;;) {
      try {
        return await issuer.renew(stillAttested(caller, current.lease), current.lease.leaseId, requestId, 'unasked');
      } catch (error) {
        if (error instanceof BrokerError && error.reason === 'TASK_CLOSED') return undefined;
        const worthAnotherTry = error instanceof BrokerError && transient.has(error.reason);
        if (!worthAnotherTry || clock.now() + retryPause >= current.lease.expiresAt) throw error;
        await options.sleep(retryPause, signal);
        if (signal.aborted) return undefined;
      }
    }
  }
}
