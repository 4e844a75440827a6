import { everyTenant, type Lock, type LockScope } from '../../src/domain/locks/model.ts';
import type { NewLock } from '../../src/domain/locks/store.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { newId } from '../support/storage.ts';

export const operator = 'spiffe://dev.leasehold.test/operator';

export function newLock(scope: LockScope, overrides: Partial<NewLock> = {}): NewLock {
  return {
    tenant: scope.kind === 'all' ? everyTenant : 'default',
    lockId: newId('lck'),
    requestId: crypto.randomUUID(),
    scope,
    reason: 'test',
    placedIn: 'default',
    placedBy: operator,
    placedAt: Date.now(),
    expiresAt: undefined,
    settle: false,
    peopleToLift: 1,
    ...overrides,
  };
}

export function eventOf(lock: Pick<NewLock, 'lockId' | 'placedIn' | 'placedBy'>) {
  return {
    tenant: lock.placedIn,
    kind: 'lock.created' as const,
    at: Date.now(),
    actor: lock.placedBy,
    taskId: '',
    detail: { lock: lock.lockId },
  };
}

export async function placeLock(storage: Storage, scope: LockScope, overrides: Partial<NewLock> = {}): Promise<Lock> {
  const lock = newLock(scope, overrides);
  return (await storage.locks.place(lock, 1_000, eventOf(lock)))!.lock;
}

export async function liftLock(storage: Storage, lock: Lock): Promise<void> {
  await storage.locks.change(lock.placedIn, lock.lockId, () => ({
    set: { state: 'lifted', endedBy: operator, endedAt: Date.now() },
    event: { ...eventOf(lock), kind: 'lock.lifted' },
  }));
}
