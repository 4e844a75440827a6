import { taskNotFound } from '../access.ts';
import type { Caller } from '../caller.ts';
import { BrokerError, fieldInvalid } from '../errors.ts';
import type { NewId } from '../ids.ts';
import type { Tier } from '../model.ts';
import type { PolicySource } from '../policy.ts';
import type { Page, TaskStore } from '../store.ts';
import type { Emit } from '../telemetry.ts';
import type { Clock, Instant, Millis } from '../time.ts';
import { indexLocks, lockedBy } from './locked-by.ts';
import { everyTenant, scopeText, type Lock, type LockScope } from './model.ts';
import { lockEvent, lockFields } from './settling.ts';
import type { LockReach, LockStore, NewLock } from './store.ts';
import type { LockWatch } from './watch.ts';

export interface LocksOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  store: LockStore;
  watch: LockWatch;
  tasks: Pick<TaskStore, 'get'>;
  /** Its operators run the broker: they lock everything, and other tenants. */
  homeTenant: string;
  /** Longest life of a lock that is placed with an end. */
  maxTtl: Millis;
  peopleToLift: number;
  /** Wakes this replica's worker that closes what is open under a lock. */
  kickSettling: () => void;
  emit: Emit;
}

export type Locks = ReturnType<typeof createLocks>;

/** What a caller asks to be locked. */
export type WantedScope =
  | { kind: 'agent'; agent: string }
  | { kind: 'workload'; pattern: string }
  | { kind: 'tool'; tool: string; tier: Tier | undefined }
  | { kind: 'task'; taskId: string }
  | { kind: 'tenant'; tenant: string }
  | { kind: 'all' };

export interface LockRequest {
  requestId: string;
  scope: WantedScope;
  reason: string;
  expiresAt: Instant | undefined;
  settle: boolean;
}

/** A lock that the broker itself places: a detector, for instance. */
export interface Placement extends Omit<LockRequest, 'scope'> {
  tenant: string;
  scope: LockScope;
  by: string;
  placedIn?: string;
}

/** How long the first of two people waits for the second. */
const liftWindow: Millis = 3_600_000;
/** In force at once, of one tenant. A tenant, and everything, can always be locked. */
const mostLocks = 1_000;

export function createLocks(options: LocksOptions) {
  const { clock, store, watch, policy, emit } = options;

  return {
    /** In force on every replica when it returns. Repeating it with its requestId is harmless. */
    place,

    create: async (caller: Caller, request: LockRequest): Promise<Lock> => {
      const now = clock.now();
      const { expiresAt } = request;
      if (expiresAt !== undefined && expiresAt <= now) throw fieldInvalid('expire_time', 'lies in the past');
      if (expiresAt !== undefined && expiresAt > now + options.maxTtl) {
        const latest = new Date(now + options.maxTtl).toISOString();
        throw fieldInvalid(
          'expire_time',
          `is later than a lock may end by itself here; the latest is ${latest}, or none at all`,
        );
      }
      const { tenant, scope } = await resolved(caller, request.scope);
      if (!isRegistered(tenant, scope) && !(await store.knows({ tenant, scope }))) {
        throw new BrokerError(
          'NAME_UNKNOWN',
          `scope: ${scopeText({ scope, tenant })} is not registered, and nothing is open under that name: check how it is written`,
          { violations: [{ field: 'scope', description: 'not registered' }] },
        );
      }
      const lock = await place({ ...request, tenant, scope, by: caller.workload, placedIn: caller.tenant });
      if (!sameLock(lock, { ...request, tenant, scope })) {
        throw new BrokerError('REQUEST_ID_REUSED', 'this request_id placed another lock: send a new one');
      }
      return lock;
    },

    /** Lifted, or with the first of two people's word on it. */
    lift: async (caller: Caller, lockId: string, reason: string): Promise<Lock> => {
      const now = clock.now();
      let told: 'lock.lifted' | 'lock.lift_requested' | undefined;
      const lock = await store.change(caller.tenant, lockId, (current) => {
        told = undefined;
        if (current.placedIn !== caller.tenant) throw notTheirs(lockId);
        if (current.state !== 'active') return undefined;
        if (locksOut(current, caller)) throw lockedThemselves(lockId);
        const people = Math.max(current.peopleToLift, options.peopleToLift);
        const asked = current.liftAskedAt !== undefined && now - current.liftAskedAt < liftWindow;
        if (asked && current.liftAskedBy === caller.workload && people > 1) return undefined;
        told = people === 1 || asked ? 'lock.lifted' : 'lock.lift_requested';
        const event = lockEvent(current, told, caller.workload, now, {
          reason,
          ...(told === 'lock.lifted' && asked
            ? { asked_by: current.liftAskedBy, asked_because: current.liftReason }
            : {}),
        });
        return told === 'lock.lifted'
          ? {
              set: {
                state: 'lifted',
                endedBy: caller.workload,
                endedAt: now,
                ...(asked ? {} : { liftReason: reason }),
              },
              event,
            }
          : { set: { liftAskedBy: caller.workload, liftAskedAt: now, liftReason: reason }, event };
      });
      if (lock === undefined) throw lockNotFound(lockId);
      if (told !== undefined) emit(told, lockFields(lock));
      if (told === 'lock.lifted') await watch.fresh();
      return lock;
    },

    get: async (caller: Caller, lockId: string): Promise<{ lock: Lock; reach: LockReach }> => {
      const lock = await store.get(caller.tenant, lockId);
      if (lock === undefined) throw lockNotFound(lockId);
      return { lock: asSeenBy(caller, lock), reach: await store.reach(onlyOwn(caller, lock), clock.now()) };
    },

    list: async (
      caller: Caller,
      filter: { inForce: boolean; taskId: string | undefined; pageSize: number; after: string | undefined },
    ): Promise<Page<Lock>> => {
      const page = await store.list({ ...filter, tenant: caller.tenant });
      return { ...page, items: page.items.map((lock) => asSeenBy(caller, lock)) };
    },

    /** For the tenant's operators: what of it is locked at present. */
    status: (tenant: string) => {
      const locks = watch.current().locks.filter((lock) => lock.tenant === tenant || lock.tenant === everyTenant);
      const kinds = [...new Set(locks.map(({ scope }) => scope.kind))].join(', ');
      const detail = locks.length === 0 ? 'none in force' : `${locks.length} in force (${kinds}): leasehold lock list`;
      return { name: 'locks', ready: true, detail };
    },

    /** Ends those whose time is over, and hears of those that other replicas placed. */
    tick: async (): Promise<boolean> => {
      const { locks } = watch.current();
      if (locks.some(({ expiresAt }) => expiresAt !== undefined && expiresAt <= clock.now() + clockTolerance)) {
        const ended = await store.expire(100, (lock) => lockEvent(lock, 'lock.expired', 'broker', clock.now()));
        for (const lock of ended) emit('lock.expired', lockFields(lock));
      }
      await watch.fresh();
      return false;
    },
  };

  async function place(wanted: Placement): Promise<Lock> {
    const { requestId, tenant, scope, reason, expiresAt, settle, by, placedIn = tenant } = wanted;
    const lock: NewLock = {
      tenant,
      lockId: options.newId('lck'),
      requestId,
      scope,
      reason,
      placedIn,
      placedBy: by,
      placedAt: clock.now(),
      expiresAt,
      settle,
      peopleToLift: options.peopleToLift,
    };
    const event = lockEvent(lock, 'lock.created', by, lock.placedAt, {
      reason,
      settle,
      people_to_lift: lock.peopleToLift,
      ...(expiresAt === undefined ? {} : { expires_at: new Date(expiresAt).toISOString() }),
    });
    const most = scope.kind === 'tenant' || scope.kind === 'all' ? Number.MAX_SAFE_INTEGER : mostLocks;
    const result = await store.place(lock, most, event);
    if (result === undefined) {
      throw new BrokerError(
        'RATE_LIMITED',
        `the tenant has ${mostLocks} locks in force: lift some, or lock the whole tenant`,
      );
    }
    if (result.placed) {
      emit('lock.created', lockFields(result.lock));
      if (settle) options.kickSettling();
      // It is in force already; a replica that has not read it yet only wastes its writes.
      await watch.fresh().catch(() => undefined);
    }
    return result.lock;
  }

  async function resolved(caller: Caller, wanted: WantedScope): Promise<{ tenant: string; scope: LockScope }> {
    const { tenant } = caller;
    switch (wanted.kind) {
      case 'task': {
        const task = await options.tasks.get(tenant, wanted.taskId);
        if (task === undefined) throw taskNotFound(wanted.taskId);
        return { tenant, scope: { kind: 'task', taskId: task.taskId, rootTaskId: task.rootTaskId } };
      }
      case 'tenant':
        if (wanted.tenant !== tenant) broad(caller);
        if (!policy.tenants.includes(wanted.tenant)) {
          throw new BrokerError(
            'NAME_UNKNOWN',
            `scope.tenant: there is no tenant ${wanted.tenant}: use one of ${policy.tenants.join(', ')}`,
            { violations: [{ field: 'scope.tenant', description: 'is not configured' }] },
          );
        }
        return { tenant: wanted.tenant, scope: { kind: 'tenant' } };
      case 'all':
        broad(caller);
        return { tenant: everyTenant, scope: wanted };
      default:
        return { tenant, scope: wanted };
    }
  }

  function broad(caller: Caller): void {
    if (caller.tenant === options.homeTenant) return;
    throw new BrokerError(
      'ROLE_REQUIRED',
      `other tenants, and everything, are locked by operators of tenant ${options.homeTenant}: lock your own tenant`,
    );
  }

  function isRegistered(tenant: string, scope: LockScope): boolean {
    if (scope.kind === 'agent') return policy.current(tenant).agents.has(scope.agent);
    if (scope.kind !== 'tool') return true;
    const tool = policy.current(tenant).tools.get(scope.tool);
    return tool !== undefined && (scope.tier === undefined || tool.tiers[scope.tier] !== undefined);
  }

  /** Who among the broker's operators placed it is not for other tenants. */
  function asSeenBy(caller: Caller, lock: Lock): Lock {
    if (lock.placedIn === caller.tenant) return lock;
    const hidden = (who: string | undefined) =>
      who === undefined || who === 'broker' ? who : 'the operators of the broker';
    return {
      ...lock,
      placedBy: hidden(lock.placedBy)!,
      liftAskedBy: hidden(lock.liftAskedBy),
      endedBy: hidden(lock.endedBy),
    };
  }

  /** What a lock on everything holds of other tenants is counted for those who run the broker only. */
  function onlyOwn(caller: Caller, lock: Lock): Lock {
    if (lock.tenant !== everyTenant || caller.tenant === options.homeTenant) return lock;
    return { ...lock, tenant: caller.tenant, scope: { kind: 'tenant' } };
  }
}

/** Within it two clocks that agree may differ; the database's own decides. */
const clockTolerance: Millis = 10_000;

/** An agent that also happens to be an operator does not free itself. A pattern that covers operators alone locks nobody out. */
function locksOut(lock: Lock, caller: Caller): boolean {
  if (caller.agents.size === 0 || (lock.scope.kind !== 'agent' && lock.scope.kind !== 'workload')) return false;
  const index = indexLocks([lock]);
  const { tenant, workload } = caller;
  return lockedBy(index, { tenant, agents: [...caller.agents], workloads: [workload], chain: [] }) !== undefined;
}

/** The end is that of the first call: a command line that is repeated counts from another moment. */
function sameLock(a: Lock, b: Pick<Lock, 'tenant' | 'scope' | 'reason' | 'settle'>): boolean {
  const shape = (lock: typeof b) => JSON.stringify([scopeText(lock), lock.tenant, lock.reason, lock.settle]);
  return shape(a) === shape(b);
}

function lockNotFound(lockId: string): BrokerError {
  return new BrokerError(
    'LOCK_NOT_FOUND',
    `no lock ${lockId} that this caller may see: \`leasehold lock list\` shows them`,
  );
}

function notTheirs(lockId: string): BrokerError {
  return new BrokerError(
    'ROLE_REQUIRED',
    `lock ${lockId} was placed by the operators of the broker: they lift it, or its end does`,
  );
}

function lockedThemselves(lockId: string): BrokerError {
  return new BrokerError('ROLE_REQUIRED', `lock ${lockId} is on this very caller: somebody else has to lift it`);
}
