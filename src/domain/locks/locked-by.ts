import type { Task, Tier } from '../model.ts';
import { everyTenant, type Lock } from './model.ts';

/** What is about to happen, as far as locks can be about it. */
export interface LockSubject {
  tenant: string;
  /** Of the task and of those above it: what is below does no more than they may. */
  agents: readonly string[];
  /** Everybody who has a hand in it: who asks, who opened the task, and those above. */
  workloads: readonly string[];
  /** Absent where no tool is in play (a task is opened). */
  tool?: string;
  tier?: Tier;
  /** The task and those above it. */
  chain: readonly string[];
}

/** Locks in force, arranged so that looking costs the same however many there are. */
export interface LockIndex {
  readonly size: number;
  readonly all: Lock | undefined;
  readonly tenants: ReadonlyMap<string, TenantLocks>;
}

interface TenantLocks {
  whole: Lock | undefined;
  agents: Map<string, Lock>;
  workloads: Map<string, Lock>;
  /** By the part of the pattern before the `*`. */
  prefixes: Map<string, Lock>;
  /** By `tool` and `tool:tier`. */
  tools: Map<string, Lock>;
  tasks: Map<string, Lock>;
}

export function indexLocks(locks: readonly Lock[]): LockIndex {
  let all: Lock | undefined;
  const tenants = new Map<string, TenantLocks>();
  for (const lock of locks) {
    if (lock.tenant === everyTenant) {
      all ??= lock;
      continue;
    }
    let of = tenants.get(lock.tenant);
    if (of === undefined) tenants.set(lock.tenant, (of = noLocks()));
    const { scope } = lock;
    switch (scope.kind) {
      case 'agent':
        keepFirst(of.agents, scope.agent, lock);
        break;
      case 'workload':
        if (scope.pattern.endsWith('/*')) keepFirst(of.prefixes, scope.pattern.slice(0, -1), lock);
        else keepFirst(of.workloads, scope.pattern, lock);
        break;
      case 'tool':
        keepFirst(of.tools, scope.tier === undefined ? scope.tool : `${scope.tool}:${scope.tier}`, lock);
        break;
      case 'task':
        keepFirst(of.tasks, scope.taskId, lock);
        break;
      default:
        of.whole ??= lock;
    }
  }
  return { size: locks.length, all, tenants };
}

/** The lock that stands in the way, the widest first; undefined when none does. Pure. */
export function lockedBy(locks: LockIndex, subject: LockSubject): Lock | undefined {
  if (locks.size === 0) return undefined;
  if (locks.all !== undefined) return locks.all;
  const of = locks.tenants.get(subject.tenant);
  if (of === undefined) return undefined;
  return (
    of.whole ??
    first(subject.agents, (agent) => of.agents.get(agent)) ??
    first(subject.workloads, (workload) => lockOfWorkload(of, workload)) ??
    (subject.tool === undefined ? undefined : of.tools.get(subject.tool)) ??
    (subject.tier === undefined ? undefined : of.tools.get(`${subject.tool}:${subject.tier}`)) ??
    first(subject.chain, (taskId) => of.tasks.get(taskId))
  );
}

/** Whether locks can be about the tasks above this one. */
export function needsAbove(locks: LockIndex, task: Pick<Task, 'tenant' | 'parentTaskId'>): boolean {
  const of = task.parentTaskId === undefined ? undefined : locks.tenants.get(task.tenant);
  return of !== undefined && of.agents.size + of.workloads.size + of.prefixes.size + of.tasks.size > 0;
}

/**
 * A pattern ends in `/*`, so a prefix ends in a slash. Wider than where rights are granted, which asks for a workload that
 * is well formed: what is cut off here may be too much, never too little.
 */
function lockOfWorkload(of: TenantLocks, workload: string): Lock | undefined {
  const exact = of.workloads.get(workload);
  if (exact !== undefined || of.prefixes.size === 0) return exact;
  for (let slash = workload.indexOf('/'); slash !== -1; slash = workload.indexOf('/', slash + 1)) {
    const lock = of.prefixes.get(workload.slice(0, slash + 1));
    if (lock !== undefined) return lock;
  }
  return undefined;
}

function noLocks(): TenantLocks {
  return {
    whole: undefined,
    agents: new Map(),
    workloads: new Map(),
    prefixes: new Map(),
    tools: new Map(),
    tasks: new Map(),
  };
}

function keepFirst(map: Map<string, Lock>, key: string, lock: Lock): void {
  if (!map.has(key)) map.set(key, lock);
}

function first<T>(items: readonly T[], find: (item: T) => Lock | undefined): Lock | undefined {
  for (const item of items) {
    const lock = find(item);
    if (lock !== undefined) return lock;
  }
  return undefined;
}
