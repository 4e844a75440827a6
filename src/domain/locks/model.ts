import type { Tier } from '../model.ts';
import type { Instant } from '../time.ts';

/** What a lock covers. */
export type LockScope =
  | { kind: 'agent'; agent: string }
  /** A workload, or a pattern with a trailing `/*`: as the agent that asks, and as the opener of the task. */
  | { kind: 'workload'; pattern: string }
  /** Without a tier, all of them. */
  | { kind: 'tool'; tool: string; tier: Tier | undefined }
  /** A task and everything below it. */
  | { kind: 'task'; taskId: string; rootTaskId: string }
  | { kind: 'tenant' }
  /** Every tenant. */
  | { kind: 'all' };

export type LockState = 'active' | 'lifted' | 'expired';

/** Stands for every tenant in `Lock.tenant`. */
export const everyTenant = '*';

/** The kill switch for one scope. In force from the commit that placed it until the one that ends it. */
export interface Lock {
  /** Whose work is locked. */
  tenant: string;
  lockId: string;
  scope: LockScope;
  reason: string;
  /** Tenant of whoever placed it: lifting it is for the same people. */
  placedIn: string;
  /** Attested workload, or `broker` for a detector. */
  placedBy: string;
  placedAt: Instant;
  /** Undefined: until it is lifted. */
  expiresAt: Instant | undefined;
  /** Whether what is open under it is closed and settled as well. */
  settle: boolean;
  /** When nothing was left open under it. */
  settledAt: Instant | undefined;
  peopleToLift: number;
  state: LockState;
  /** The first of two people who want it lifted. */
  liftAskedBy: string | undefined;
  liftAskedAt: Instant | undefined;
  liftReason: string;
  endedBy: string | undefined;
  endedAt: Instant | undefined;
}

/** In words, for people: `agent analyst`, `tool warehouse:write`. */
export function scopeText(lock: Pick<Lock, 'scope' | 'tenant'>): string {
  const { scope } = lock;
  switch (scope.kind) {
    case 'agent':
      return `agent ${scope.agent}`;
    case 'workload':
      return `workload ${scope.pattern}`;
    case 'tool':
      return `tool ${scope.tool}${scope.tier === undefined ? '' : `:${scope.tier}`}`;
    case 'task':
      return `task ${scope.taskId} and what is below it`;
    case 'tenant':
      return `tenant ${lock.tenant}`;
    case 'all':
      return 'everything';
  }
}
