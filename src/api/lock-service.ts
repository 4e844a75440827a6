import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { fieldInvalid } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';
import type { Locks, WantedScope } from '../domain/locks/locks.ts';
import type * as domain from '../domain/locks/model.ts';
import type { LockReach } from '../domain/locks/store.ts';
import { Tier } from '../gen/leasehold/v1/common_pb.js';
import {
  LockService,
  LockState,
  type LockReachSchema,
  type LockSchema,
  type LockScope,
  type LockScopeSchema,
} from '../gen/leasehold/v1/lock_service_pb.js';
import { service } from './call.ts';
import { instantOf, tierMessage, tierOf } from './convert.ts';
import { lockIdField, name, nextPageToken, pageSize, pageToken, taskIdField, text } from './fields.ts';

export interface LockServiceOptions {
  locks: Locks;
  newRequestId: () => string;
  /** A workload, or a pattern that ends in `/*`. */
  isWorkloadPattern: (text: string) => boolean;
}

const states = { active: LockState.ACTIVE, lifted: LockState.LIFTED, expired: LockState.EXPIRED } as const;

export function lockService({ locks, newRequestId, isWorkloadPattern }: LockServiceOptions) {
  return service(LockService, {
    createLock: async (request, { caller }) => ({
      lock: lockMessage(
        await locks.create(caller, {
          requestId: request.requestId === '' ? newRequestId() : request.requestId,
          scope: scopeOf(request.scope),
          reason: reasonOf(request.reason),
          expiresAt: instantOf(request.expireTime),
          settle: request.settle,
        }),
      ),
    }),

    liftLock: async (request, { caller }) => ({
      lock: lockMessage(await locks.lift(caller, lockIdField(request.lockId), reasonOf(request.reason))),
    }),

    getLock: async (request, { caller }) => {
      const { lock, reach } = await locks.get(caller, lockIdField(request.lockId));
      return { lock: lockMessage(lock), reach: reachMessage(reach) };
    },

    listLocks: async (request, { caller }) => {
      const page = await locks.list(caller, {
        inForce: !request.includeEnded,
        taskId: request.taskId === '' ? undefined : taskIdField(request.taskId),
        pageSize: pageSize(request.pageSize, 50),
        after: pageToken(request.pageToken, (id) => isId('lck', id)),
      });
      return { locks: page.items.map(lockMessage), nextPageToken: nextPageToken(page.next) };
    },
  });

  function scopeOf(sent: LockScope | undefined): WantedScope {
    const scope = sent?.scope;
    switch (scope?.case) {
      case 'agent':
        return { kind: 'agent', agent: name('scope.agent', scope.value) };
      case 'workload':
        if (!isWorkloadPattern(scope.value)) {
          throw fieldInvalid(
            'scope.workload',
            'must be a workload, or one that ends in /* to cover everything below it',
          );
        }
        return { kind: 'workload', pattern: scope.value };
      case 'tool': {
        const { tool, tier } = scope.value;
        return {
          kind: 'tool',
          tool: name('scope.tool.tool', tool),
          tier: tier === Tier.UNSPECIFIED ? undefined : tierOf('scope.tool.tier', tier),
        };
      }
      case 'taskId':
        return { kind: 'task', taskId: taskIdField(scope.value) };
      case 'tenant':
        return { kind: 'tenant', tenant: name('scope.tenant', scope.value) };
      case 'all':
        if (!scope.value) throw fieldInvalid('scope.all', 'must be true, or another scope');
        return { kind: 'all' };
      default:
        throw fieldInvalid('scope', 'must name an agent, a workload, a tool, a task, a tenant, or all');
    }
  }
}

function reasonOf(sent: string): string {
  if (sent.trim() === '') throw fieldInvalid('reason', 'must say why');
  return text('reason', sent, 1, 2_000);
}

function lockMessage(lock: domain.Lock): MessageInitShape<typeof LockSchema> {
  const time = <K extends string>(key: K, at: number | undefined) =>
    (at === undefined ? {} : { [key]: timestampFromMs(at) }) as Partial<Record<K, ReturnType<typeof timestampFromMs>>>;
  return {
    lockId: lock.lockId,
    scope: scopeMessage(lock),
    reason: lock.reason,
    state: states[lock.state],
    placedBy: lock.placedBy,
    createTime: timestampFromMs(lock.placedAt),
    ...time('expireTime', lock.expiresAt),
    settle: lock.settle,
    ...time('settleTime', lock.settledAt),
    peopleToLift: lock.peopleToLift,
    liftRequestedBy: lock.liftAskedBy ?? '',
    ...time('liftRequestTime', lock.liftAskedAt),
    liftReason: lock.liftReason,
    endedBy: lock.endedBy ?? '',
    ...time('endTime', lock.endedAt),
  };
}

function scopeMessage({ scope, tenant }: domain.Lock): MessageInitShape<typeof LockScopeSchema> {
  switch (scope.kind) {
    case 'agent':
      return { scope: { case: 'agent', value: scope.agent } };
    case 'workload':
      return { scope: { case: 'workload', value: scope.pattern } };
    case 'tool': {
      const tier = scope.tier === undefined ? Tier.UNSPECIFIED : tierMessage(scope.tier);
      return { scope: { case: 'tool', value: { tool: scope.tool, tier } } };
    }
    case 'task':
      return { scope: { case: 'taskId', value: scope.taskId } };
    case 'tenant':
      return { scope: { case: 'tenant', value: tenant } };
    case 'all':
      return { scope: { case: 'all', value: true } };
  }
}

function reachMessage(reach: LockReach): MessageInitShape<typeof LockReachSchema> {
  const { openTasks, unsettledLeases, boundedLeases, aliveUntil } = reach;
  const until = aliveUntil === undefined ? {} : { aliveUntil: timestampFromMs(aliveUntil) };
  return { openTasks, unsettledLeases, boundedLeases, ...until };
}
