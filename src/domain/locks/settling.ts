import { auditEvent, type AuditEvent } from '../audit.ts';
import type { Task } from '../model.ts';
import { leaseFields, type Emit } from '../telemetry.ts';
import type { Clock, Millis } from '../time.ts';
import { everyTenant, type Lock } from './model.ts';
import type { LockStore } from './store.ts';

export interface LockSettlingOptions {
  clock: Clock;
  store: LockStore;
  close: (task: Pick<Task, 'tenant' | 'taskId'>, lock: Lock) => Promise<unknown>;
  /** Wakes this replica's settler. */
  kickSettler: () => void;
  emit: Emit;
}

const claimFor: Millis = 15_000;
/** Well within a claim; what is left is for the next round, on any replica. */
const roundTime: Millis = 5_000;
const atOnce = 8;
const batch = 64;
const leaseBatch = 500;

/**
 * Closes what is open under a lock that settles, those at the top of their trees first. It is in force by then, so what is
 * closed stays closed, and a broker that dies in the middle leaves the rest to the next claim.
 */
export function createLockSettling(options: LockSettlingOptions) {
  const { store, clock } = options;

  return {
    /** One round. True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const lock = await store.claimSettling(claimFor);
      if (lock === undefined) return false;
      const until = clock.now() + roundTime;
      let found = await step(lock);
      while (found === 'more' && clock.now() < until) found = await step(lock);
      if (found === 'nothing') {
        await store.settled(lock, lockEvent(lock, 'lock.settled', 'broker', clock.now()));
        options.emit('lock.settled', lockFields(lock));
      } else await store.releaseSettling(lock);
      return found !== 'busy';
    },
  };

  /** `busy`: what is left is in somebody else's hands for a moment. */
  async function step(lock: Lock): Promise<'nothing' | 'more' | 'busy'> {
    if (lock.scope.kind === 'tool') {
      const { ended, left } = await store.endLeases(lock, clock.now(), leaseBatch, (lease) =>
        auditEvent(
          lease,
          'lease.locked',
          'broker',
          clock.now(),
          { tool: lease.tool, tier: lease.tier, lock: lock.lockId },
          lease.leaseId,
        ),
      );
      for (const lease of ended) options.emit('lease.locked', { ...leaseFields(lease), lockId: lock.lockId });
      if (ended.length > 0) options.kickSettler();
      return !left ? 'nothing' : ended.length > 0 ? 'more' : 'busy';
    }
    if (lock.scope.kind === 'task') {
      // One transaction for the whole tree, also when its top is closed already.
      await options.close({ tenant: lock.tenant, taskId: lock.scope.taskId }, lock);
      return 'nothing';
    }
    const tasks = await store.tasksUnder(lock, batch);
    let next = 0;
    const closing = async () => {
      while (next < tasks.length) await options.close(tasks[next++]!, lock);
    };
    await Promise.all(Array.from({ length: atOnce }, closing));
    return tasks.length < batch ? 'nothing' : 'more';
  }
}

/** With the task where it is about one, so that its trail has it; told in the tenant of whoever placed it. */
export function lockEvent(
  lock: Pick<Lock, 'lockId' | 'tenant' | 'placedIn' | 'scope'>,
  kind: AuditEvent['kind'],
  actor: string,
  at: number,
  detail: Record<string, unknown> = {},
): AuditEvent {
  const { scope } = lock;
  const named = lock.tenant === everyTenant || lock.tenant === lock.placedIn ? {} : { tenant: lock.tenant };
  return {
    tenant: lock.placedIn,
    kind,
    at,
    actor,
    taskId: scope.kind === 'task' ? scope.taskId : '',
    detail: { lock: lock.lockId, scope, ...named, ...detail },
  };
}

export function lockFields(lock: Pick<Lock, 'lockId' | 'tenant' | 'scope' | 'settle'>) {
  const { tenant, lockId, scope, settle } = lock;
  return { tenant, lockId, scope: scope.kind, settle };
}
