import { describe, expect, test } from 'vitest';
import { createLockGuard } from '../../src/domain/locks/guard.ts';
import { indexLocks, lockedBy, type LockSubject } from '../../src/domain/locks/locked-by.ts';
import type { Lock, LockScope } from '../../src/domain/locks/model.ts';
import { openLockWatch } from '../../src/domain/locks/watch.ts';
import type { Task } from '../../src/domain/model.ts';
import { newLock } from './support.ts';

function lock(scope: LockScope, overrides: Partial<Lock> = {}): Lock {
  const { requestId: _, ...rest } = newLock(scope);
  return {
    ...rest,
    state: 'active',
    settledAt: undefined,
    liftAskedBy: undefined,
    liftAskedAt: undefined,
    liftReason: '',
    endedBy: undefined,
    endedAt: undefined,
    ...overrides,
  };
}

const subject: LockSubject = {
  tenant: 'default',
  agents: ['analyst', 'lead'],
  workloads: ['spiffe://a.test/agent/analyst', 'spiffe://a.test/orchestrator'],
  tool: 'reports',
  tier: 'read',
  chain: ['tsk_c', 'tsk_b', 'tsk_a'],
};

describe('a lock', () => {
  test.each<[LockScope, boolean]>([
    [{ kind: 'all' }, true],
    [{ kind: 'tenant' }, true],
    [{ kind: 'agent', agent: 'analyst' }, true],
    [{ kind: 'agent', agent: 'lead' }, true],
    [{ kind: 'agent', agent: 'analyst2' }, false],
    [{ kind: 'workload', pattern: 'spiffe://a.test/agent/analyst' }, true],
    [{ kind: 'workload', pattern: 'spiffe://a.test/orchestrator' }, true],
    [{ kind: 'workload', pattern: 'spiffe://a.test/*' }, true],
    [{ kind: 'workload', pattern: 'spiffe://a.test/agent/*' }, true],
    [{ kind: 'workload', pattern: 'spiffe://a.test/agent/analyst/*' }, false],
    [{ kind: 'workload', pattern: 'spiffe://a.test/agent' }, false],
    [{ kind: 'workload', pattern: 'spiffe://a.test/agent/ana/*' }, false],
    [{ kind: 'workload', pattern: 'spiffe://b.test/*' }, false],
    [{ kind: 'tool', tool: 'reports', tier: undefined }, true],
    [{ kind: 'tool', tool: 'reports', tier: 'read' }, true],
    [{ kind: 'tool', tool: 'reports', tier: 'write' }, false],
    [{ kind: 'tool', tool: 'warehouse', tier: undefined }, false],
    [{ kind: 'task', taskId: 'tsk_a', rootTaskId: 'tsk_a' }, true],
    [{ kind: 'task', taskId: 'tsk_b', rootTaskId: 'tsk_a' }, true],
    [{ kind: 'task', taskId: 'tsk_c', rootTaskId: 'tsk_a' }, true],
    [{ kind: 'task', taskId: 'tsk_d', rootTaskId: 'tsk_a' }, false],
  ])('on %j covers what it names: %s', (scope, covered) => {
    const placed = lock(scope);
    expect(lockedBy(indexLocks([placed]), subject)).toBe(covered ? placed : undefined);
  });

  test('of one tenant is none of another, but for one on everything', () => {
    const other = { ...subject, tenant: 'other' };
    expect(
      lockedBy(indexLocks([lock({ kind: 'tenant' }), lock({ kind: 'agent', agent: 'analyst' })]), other),
    ).toBeUndefined();
    expect(lockedBy(indexLocks([lock({ kind: 'all' })]), other)).toBeDefined();
  });

  test('on a tool is none on a task that is being opened', () => {
    const { tool: _tool, tier: _tier, ...opening } = subject;
    expect(lockedBy(indexLocks([lock({ kind: 'tool', tool: 'reports', tier: undefined })]), opening)).toBeUndefined();
  });
});

describe('the guard', () => {
  const task = (taskId: string, parentTaskId: string | undefined) =>
    ({
      tenant: 'default',
      taskId,
      rootTaskId: 't0',
      parentTaskId,
      agent: 'analyst',
      opener: 'x',
      agentWorkload: undefined,
    }) as Task;
  const tree = new Map(
    ['t0', 't1', 't2', 't3', 't4'].map((id, depth) => [id, task(id, depth === 0 ? undefined : `t${depth - 1}`)]),
  );

  test('knows a lock anywhere above a task, and cannot say that it is free when a task above is missing', async () => {
    const placed = lock({ kind: 'task', taskId: 't1', rootTaskId: 't0' });
    const watch = await openLockWatch({ view: () => Promise.resolve({ epoch: 7, locks: [placed] }) });
    const guard = createLockGuard({ watch, get: (_, taskId) => tree.get(taskId) });
    const standing = async (id: string) => await guard.standing(tree.get(id)!, undefined, undefined);
    expect(await standing('t4')).toEqual({ epoch: 7, lock: placed });
    expect(await standing('t1')).toEqual({ epoch: 7, lock: placed });
    expect(await standing('t0')).toEqual({ epoch: 7, lock: undefined });
    const orphan = task('t9', 'gone');
    await expect(guard.standing(orphan, undefined, undefined)).rejects.toThrow('cannot be told');
  });

  test('lets nobody be refused for a lock that has ended, and nothing pass when the locks cannot be read', async () => {
    const placed = lock({ kind: 'all' });
    let view = () => Promise.resolve({ epoch: 1, locks: [placed] });
    const watch = await openLockWatch({ view: () => view() });
    const guard = createLockGuard({ watch, get: () => undefined });
    view = () => Promise.reject(new Error('the database is gone'));
    await expect(guard.standing(tree.get('t0')!, undefined, undefined)).rejects.toThrow('gone');
    view = () => Promise.resolve({ epoch: 2, locks: [] });
    expect(await guard.standing(tree.get('t0')!, undefined, undefined)).toEqual({ epoch: 2, lock: undefined });
  });

  test('reads anew for whoever asks during a read, once for all of them, and keeps the newer of two answers', async () => {
    const answers: ((epoch: number) => void)[] = [];
    let reads = 0;
    const watch = await openLockWatch({
      view: () => {
        reads += 1;
        return reads === 1
          ? Promise.resolve({ epoch: 1, locks: [] })
          : new Promise((resolve) => answers.push((epoch) => resolve({ epoch, locks: [] })));
      },
    });
    const [first, second, third] = [watch.fresh(), watch.fresh(), watch.fresh()];
    answers[0]!(5);
    expect((await first).epoch).toBe(5);
    await new Promise((resolve) => setImmediate(resolve));
    answers[1]!(4);
    expect((await second).epoch).toBe(5);
    expect(await third).toBe(await second);
    expect(reads).toBe(3);
  });
});
