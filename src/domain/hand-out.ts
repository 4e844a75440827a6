import { auditEvent } from './audit.ts';
import { BrokerError } from './errors.ts';
import { issuedEvent } from './issue-records.ts';
import { renewAfter } from './lease-terms.ts';
import type { Lease, Task } from './model.ts';
import type { Grant, Material, Provider, SelfContainedProvider } from './provider.ts';
import type { LeaseStore, LeaseWrite, LeaseWriter } from './store.ts';
import { leaseFields, type Emit, type Reached } from './telemetry.ts';
import type { Clock, Instant } from './time.ts';

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
  leases: Pick<LeaseStore, 'abandon'>;
  writer: LeaseWriter;
  /** Resolves when what was begun in this turn of the event loop has been sent. */
  sent: () => Promise<void>;
  reached: Reached;
  emit: Emit;
}

/** The task changed between the decision and the last step: looked at again, but not for ever. */
const maxRounds = 4;

/**
 * From a decision to a credential in the agent's hands (design §5). Each way answers undefined when the write was refused:
 * nobody received anything then, and the caller decides again.
 */
export function createHandOut(options: HandOutOptions) {
  const { clock, leases, writer } = options;

  return { issueSelfContained, issueInTwoSteps };

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
    return done(grant, material);
  }

  /** A pending lease first, then the credential, then `active`: what is in between is settled, whatever happens. */
  async function issueInTwoSteps(
    provider: Provider,
    grant: PreparedGrant,
    stillAllowed: () => Promise<void>,
  ): Promise<Issued | undefined> {
    const { lease, write } = grant;
    if (!(await writer.insert({ ...write, supersedeAt: undefined }))) return undefined;
    options.reached('issue.pending-committed');
    try {
      await stillAllowed();
    } catch (error) {
      await abandon(grant, 'policy does not allow it beside what was issued at the same moment');
      throw error;
    }
    let material: Material;
    try {
      material = provider.selfContained
        ? provider.sign(grant)
        : await provider.issue(grant, AbortSignal.timeout(provider.issueTimeout));
    } catch (error) {
      options.emit('provider.failed', { provider: lease.provider, tool: lease.tool, operation: 'issue', error });
      await abandon(grant, 'the provider did not make the credential');
      if (error instanceof BrokerError) throw error;
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        `the target of ${lease.tool}:${lease.tier} did not make a credential: retry with the same request_id`,
        { cause: error, retryAfterMs: 1_000 },
      );
    }
    options.reached('issue.credential-made');
    if (await activate(grant)) {
      options.reached('issue.activated');
      return done(grant, material);
    }
    await abandon(grant, 'the task changed before the credential was handed out');
    return undefined;
  }

  /** `pending` → `active`. A deadline that moved but still covers the lease is no reason to throw the credential away. */
  async function activate(grant: PreparedGrant): Promise<boolean> {
    const { lease, write } = grant;
    const events = [issuedEvent(grant)];
    let epoch = write.epoch;
    for (let round = 0; round < maxRounds; round++) {
      try {
        if (await writer.activate({ ...write, lease, epoch, settleAt: lease.expiresAt, events })) return true;
      } catch (error) {
        await abandon(grant, 'the broker could not record the credential');
        throw error;
      }
      const task = await options.refreshTask(lease.tenant, lease.taskId);
      if (task?.state !== 'open' || task.epoch === epoch || task.deadline < lease.expiresAt) return false;
      epoch = task.epoch;
    }
    return false;
  }

  /** Nobody received it: settled at once, and by the settler in any case when this fails too (its `settleAt` stands). */
  async function abandon(grant: PreparedGrant, reason: string): Promise<void> {
    const { lease, task } = grant;
    const event = auditEvent(task, 'lease.abandoned', 'broker', clock.now(), { reason }, lease.leaseId);
    try {
      await leases.abandon(lease, clock.now(), event);
      options.emit('lease.abandoned', { ...leaseFields(lease), reason });
    } catch (error) {
      options.emit('storage.failed', { operation: 'abandon', error });
    }
  }

  function done(grant: PreparedGrant, material: Material): Issued {
    const lease: Lease = { ...grant.lease, state: 'active' };
    const fields = { ...leaseFields(lease), agent: lease.agent, expiresAt: lease.expiresAt };
    if (lease.renewedFrom === undefined) options.emit('lease.issued', fields);
    else options.emit('lease.renewed', { ...fields, renewedFrom: lease.renewedFrom });
    return { lease, material, renewAfter: renewAfter(lease) };
  }
}
