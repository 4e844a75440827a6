import { auditEvent, type AuditEvent } from './audit.ts';
import { BrokerError } from './errors.ts';
import { issuedEvent } from './issue-records.ts';
import { renewAfter } from './lease-terms.ts';
import type { Standing } from './locks/guard.ts';
import type { Lease, Task } from './model.ts';
import {
  IssueFailure,
  type Grant,
  type Made,
  type Material,
  type Provider,
  type SelfContainedProvider,
  type TargetProvider,
} from './provider.ts';
import type { LeaseStore, LeaseWrite, LeaseWriter } from './store.ts';
import { leaseFields, type Emit, type Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';
import { within } from './within.ts';

export interface Issued {
  lease: Lease;
  material: Material;
  renewAfter: Instant;
}

export interface PreparedGrant extends Grant {
  write: LeaseWrite;
}

export interface HandOutOptions {
  clock: Clock;
  refreshTask: (tenant: string, taskId: string) => Promise<Task | undefined>;
  /** By what the database says now. */
  locksNow: (task: Task, lease: Lease) => Promise<Standing>;
  leases: Pick<LeaseStore, 'abandon' | 'reopen'>;
  writer: LeaseWriter;
  /** Resolves when what was begun in this turn of the event loop has been sent. */
  sent: () => Promise<void>;
  reached: Reached;
  emit: Emit;
}

/** Beyond the provider's own time-out: what the broker itself may take before the settler looks after a pending lease. */
export const pendingMargin: Millis = 5_000;

/** The task or the locks changed between the decision and the last step: looked at again, but not for ever. */
const maxRounds = 8;

/**
 * From a decision to a credential in the agent's hands (design §5). Each way answers undefined when the write was refused:
 * nobody received anything then, and the caller decides again.
 */
export function createHandOut(options: HandOutOptions) {
  const { clock, leases, writer } = options;

  return { issueSelfContained, issueInTwoSteps, issueAnew };

  /** One commit: the provider needs no target. */
  async function issueSelfContained(
    provider: SelfContainedProvider,
    grant: PreparedGrant,
  ): Promise<Issued | undefined> {
    grant.write.events.push(issuedEvent(grant));
    const written = writer.insert(grant.write);
    // It may fail before it is waited for below.
    written.catch(() => undefined);
    // Signing takes the CPU while the database takes the write; the token leaves only after the commit (design §5.5).
    await options.sent();
    let material: Material;
    try {
      material = provider.sign(grant);
    } catch (error) {
      await written.catch(() => undefined);
      throw error;
    }
    if (!(await written)) return undefined;
    return done(grant.lease, material, announce);
  }

  /** A pending lease first, then the credential, then `active`: what is in between is settled, whatever happens. */
  async function issueInTwoSteps(
    provider: Provider,
    grant: PreparedGrant,
    stillAllowed: (made: boolean) => Promise<void>,
  ): Promise<Issued | undefined> {
    const prepared = await prepare(provider, grant);
    if (!(await writer.insert({ ...prepared.write, supersedeAt: undefined }))) return undefined;
    options.reached('issue.pending-committed');
    try {
      await stillAllowed(false);
    } catch (error) {
      await abandon(provider, prepared, 'policy does not allow it beside what was issued at the same moment');
      throw error;
    }
    return await make(
      provider,
      prepared,
      (lease) => [issuedEvent({ ...prepared, lease })],
      announce,
      () => stillAllowed(true),
    );
  }

  /** The lease is pending again until the target has made another credential in the place of the one that was lost. */
  async function issueAnew(
    provider: TargetProvider,
    grant: PreparedGrant,
    event: AuditEvent,
  ): Promise<Issued | undefined> {
    const prepared = await prepare(provider, grant);
    if (!(await leases.reopen(grant.lease, prepared.lease.handle, prepared.write.settleAt, event))) return undefined;
    options.reached('issue.pending-committed');
    return await make(
      provider,
      prepared,
      () => [],
      () => undefined,
      () => Promise.resolve(),
    );
  }

  /** What the target has to say before the pending lease is committed. The attempt is timed from here. */
  async function prepare(provider: Provider, grant: PreparedGrant): Promise<PreparedGrant> {
    if (provider.selfContained || provider.prepare === undefined) return grant;
    const { prepare: ready, issueTimeout: timeout } = provider;
    let handle: string;
    try {
      handle = await within(timeout, (signal) => ready(grant, signal));
    } catch (error) {
      throw providerFailed(grant.lease, 'prepare', error);
    }
    const lease: Lease = { ...grant.lease, handle };
    return { ...grant, lease, write: { ...grant.write, lease, settleAt: clock.now() + timeout + pendingMargin } };
  }

  function providerFailed(lease: Lease, operation: string, error: unknown): BrokerError {
    options.emit('provider.failed', { provider: lease.provider, tool: lease.tool, operation, error });
    if (error instanceof BrokerError) return error;
    return new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `the target of ${lease.tool}:${lease.tier} did not make a credential: retry with the same request_id`,
      { cause: error, retryAfterMs: 1_000 },
    );
  }

  async function make(
    provider: Provider,
    pending: PreparedGrant,
    events: (lease: Lease) => AuditEvent[],
    told: (lease: Lease) => void,
    stillAllowed: () => Promise<void>,
  ): Promise<Issued | undefined> {
    let made: Made;
    try {
      made = provider.selfContained
        ? { material: provider.sign(pending) }
        : await within(provider.issueTimeout, (signal) => provider.issue(pending, signal));
    } catch (error) {
      const failure = providerFailed(pending.lease, 'issue', error);
      const handle = error instanceof IssueFailure ? error.handle : pending.lease.handle;
      const left = { ...pending, lease: { ...pending.lease, handle } };
      await abandon(provider, left, 'the provider did not make the credential');
      throw failure;
    }
    options.reached('issue.credential-made');
    const lease: Lease = {
      ...pending.lease,
      handle: made.handle ?? pending.lease.handle,
      expiresAt: Math.min(pending.lease.expiresAt, made.expiresAt ?? Infinity),
    };
    const grant: PreparedGrant = { ...pending, lease, write: { ...pending.write, lease } };
    try {
      await stillAllowed();
    } catch (error) {
      await abandon(provider, grant, 'policy does not allow it any more');
      throw error;
    }
    if (await activate(provider, grant, events(lease))) {
      options.reached('issue.activated');
      return done(lease, made.material, told);
    }
    await abandon(provider, grant, 'the task or its locks changed before the credential was handed out');
    return undefined;
  }

  /**
   * `pending` → `active`. A deadline that moved but still covers the lease is no reason to throw the credential away, and
   * neither is a lock on something else.
   */
  async function activate(provider: Provider, grant: PreparedGrant, events: AuditEvent[]): Promise<boolean> {
    const { lease, write } = grant;
    let { epoch, lockEpoch } = write;
    for (let round = 0; round < maxRounds; round++) {
      try {
        if (await writer.activate({ ...write, epoch, lockEpoch, settleAt: lease.expiresAt, events })) return true;
      } catch (error) {
        await abandon(provider, grant, 'the broker could not record the credential');
        throw error;
      }
      const task = await options.refreshTask(lease.tenant, lease.taskId);
      if (task?.state !== 'open' || task.deadline < lease.expiresAt) return false;
      // Handed over to somebody else: what was made for the one before is thrown away.
      if (task.agent !== lease.agent || task.agentWorkload !== lease.workload) return false;
      const locks = await options.locksNow(task, lease).catch(() => undefined);
      if (locks === undefined || locks.lock !== undefined) return false;
      // Neither: the lease is not pending any more.
      if (task.epoch === epoch && locks.epoch === lockEpoch) return false;
      epoch = task.epoch;
      lockEpoch = locks.epoch;
    }
    return false;
  }

  /** Nobody received it: settled at once, and by the settler in any case when this fails too (its `settleAt` stands). */
  async function abandon(provider: Provider, grant: PreparedGrant, reason: string): Promise<void> {
    const { lease, task } = grant;
    const event = auditEvent(task, 'lease.abandoned', 'broker', clock.now(), { reason }, lease.leaseId);
    try {
      const left = await leases.abandon(lease, clock.now(), event);
      options.emit('lease.abandoned', { ...leaseFields(lease), reason });
      // So late that the settler has been there before the credential was: nobody else looks for it any more.
      if (!left && !provider.selfContained)
        await within(provider.issueTimeout, (signal) => provider.revoke(lease.handle, signal));
    } catch (error) {
      options.emit('storage.failed', { operation: 'abandon', error });
    }
  }

  function done(made: Lease, material: Material, told: (lease: Lease) => void): Issued {
    const lease: Lease = { ...made, state: 'active' };
    told(lease);
    return { lease, material, renewAfter: renewAfter(lease) };
  }

  function announce(lease: Lease): void {
    const fields = { ...leaseFields(lease), agent: lease.agent, expiresAt: lease.expiresAt };
    if (lease.renewedFrom === undefined) options.emit('lease.issued', fields);
    else options.emit('lease.renewed', { ...fields, renewedFrom: lease.renewedFrom });
  }
}
