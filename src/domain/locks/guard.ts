import { tasksAbove } from '../delegation/chain.ts';
import { BrokerError } from '../errors.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { Instant } from '../time.ts';
import { lockedBy, needsAbove, type LockSubject } from './locked-by.ts';
import type { Lock } from './model.ts';
import type { LoadedLocks, LockWatch } from './watch.ts';

/** What a write has to name, and what stands in its way. */
export interface Standing {
  epoch: number;
  /** Undefined: nothing is locked here. */
  lock: Lock | undefined;
}

type Place = Pick<Task, 'tenant' | 'taskId' | 'rootTaskId' | 'parentTaskId' | 'agent' | 'opener' | 'agentWorkload'>;

export interface LockGuard {
  /**
   * Whether this task's agent may go on, by the locks that this replica knows; what is found locked is read anew first, so
   * that nobody is refused for a lock that has ended. `workload` is who asks; undefined for a plan. Without `access` it is
   * about the task alone.
   */
  standing(task: Place, workload: string | undefined, access: ToolAccess | undefined): Standing | Promise<Standing>;
  /** The same by what the database says now: after a write was refused. */
  fresh(task: Place, workload: string | undefined, access: ToolAccess | undefined): Promise<Standing>;
}

export interface LockGuardOptions {
  watch: LockWatch;
  /** What a stale task could get wrong does not matter here: parents, openers and agents below a hand-over are its own. */
  get: (tenant: string, taskId: string) => Task | undefined | Promise<Task | undefined>;
}

/** Asked before each decision; the write that follows holds it to the answer (src/storage/lock-gate.ts). */
export function createLockGuard({ watch, get }: LockGuardOptions): LockGuard {
  return {
    standing: (task, workload, access) => {
      const view = watch.current();
      if (view.index.size === 0) return { epoch: view.epoch, lock: undefined };
      return stillStanding(view, task, workload, access);
    },
    fresh: async (task, workload, access) => await find(await watch.fresh(), task, workload, access),
  };

  async function stillStanding(
    view: LoadedLocks,
    task: Place,
    workload: string | undefined,
    access: ToolAccess | undefined,
  ): Promise<Standing> {
    const found = await find(view, task, workload, access);
    return found.lock === undefined ? found : await find(await watch.fresh(), task, workload, access);
  }

  async function find(
    { epoch, index }: LoadedLocks,
    task: Place,
    workload: string | undefined,
    access: ToolAccess | undefined,
  ): Promise<Standing> {
    // Throws when they cannot be told: neither can whether they are locked.
    const above = needsAbove(index, task) ? await tasksAbove(get, task) : [];
    const chain = [task, ...above];
    const people = [
      workload ?? task.agentWorkload,
      ...above.map(({ agentWorkload }) => agentWorkload),
      ...chain.map(({ opener }) => opener),
    ];
    const subject: LockSubject = {
      tenant: task.tenant,
      agents: chain.map(({ agent }) => agent),
      workloads: people.filter((one) => one !== undefined),
      ...access,
      chain: chain.map(({ taskId }) => taskId),
    };
    return { epoch, lock: lockedBy(index, subject) };
  }
}

/** For whoever is refused: that it is locked and what to do, not who did it and why. */
export function lockedReason(lock: Pick<Lock, 'scope'>): string {
  return `${lockedWhat(lock)} is locked`;
}

function lockedWhat({ scope }: Pick<Lock, 'scope'>): string {
  switch (scope.kind) {
    case 'agent':
      return 'this agent, or one above it,';
    case 'workload':
      return 'this workload, or another that has a hand in the task,';
    case 'tool':
      return `the tool ${scope.tool}${scope.tier === undefined ? '' : `:${scope.tier}`}`;
    case 'task':
      return 'this task, or one above it,';
    case 'tenant':
      return 'this tenant';
    case 'all':
      return 'everything';
  }
}

export function lockedError(lock: Lock, metadata: Record<string, string> = {}, livesUntil?: Instant): BrokerError {
  const until = livesUntil === undefined ? undefined : new Date(livesUntil).toISOString();
  const present = until === undefined ? '' : `; the present credential lives until ${until} unless it is revoked`;
  return new BrokerError(
    'LOCKED',
    `${lockedReason(lock)}: nothing is issued before the lock has ended; stop, and ask the operators${present}`,
    { metadata: { ...metadata, scope: lock.scope.kind, ...(until === undefined ? {} : { lives_until: until }) } },
  );
}
