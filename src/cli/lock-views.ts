import { Tier } from '../gen/leasehold/v1/common_pb.js';
import { LockState, type Lock, type LockReach, type LockScope } from '../gen/leasehold/v1/lock_service_pb.js';
import { tierName } from './names.ts';
import { fields, line, moment, relative, table, type Tone } from './output.ts';

const stateName = (state: LockState) => LockState[state]?.toLowerCase() ?? '';
const tone = (state: LockState): Tone | undefined => (state === LockState.ACTIVE ? 'bad' : undefined);

function scopeText(sent: LockScope | undefined): string {
  const scope = sent?.scope;
  switch (scope?.case) {
    case 'tool': {
      const { tool, tier } = scope.value;
      return `tool ${tool}${tier === Tier.UNSPECIFIED ? '' : `:${tierName(tier)}`}`;
    }
    case 'taskId':
      return `task ${scope.value} and below`;
    case 'all':
      return 'EVERYTHING';
    case 'agent':
    case 'workload':
    case 'tenant':
      return `${scope.case} ${scope.value}`;
    default:
      return '';
  }
}

export function showLock(lock: Lock | undefined, reach?: LockReach): void {
  if (lock === undefined) return;
  const settling = lock.settleTime === undefined ? 'under way' : moment(lock.settleTime);
  const person = lock.liftRequestedBy === '' ? '' : `${lock.liftRequestedBy}, ${relative(lock.liftRequestTime)}`;
  fields([
    ['lock', lock.lockId],
    ['on', scopeText(lock.scope)],
    ['state', { text: stateName(lock.state), tone: tone(lock.state) }],
    ['reason', lock.reason],
    ['placed by', lock.placedBy],
    ['placed', moment(lock.createTime)],
    ['ends', lock.expireTime === undefined ? 'when it is lifted' : moment(lock.expireTime)],
    ['settled', lock.settle ? settling : ''],
    ['to lift', lock.peopleToLift > 1 ? `${lock.peopleToLift} different people` : ''],
    ['lift asked', person],
    ['lift reason', lock.liftReason],
    ['ended by', lock.endedBy],
    ['ended', moment(lock.endTime)],
    ['open tasks', reach === undefined ? '' : String(reach.openTasks)],
    ['unsettled', reach === undefined ? '' : `${reach.unsettledLeases} credentials`],
    ['irrevocable', reach === undefined ? '' : `${reach.boundedLeases} credentials that nothing can revoke`],
    ['alive until', moment(reach?.aliveUntil)],
  ]);
}

export function showLocks(locks: readonly Lock[]): void {
  if (locks.length === 0) {
    line('no locks');
    return;
  }
  table(
    ['LOCK', 'STATE', 'ON', 'PLACED', 'ENDS', 'BY', 'REASON'],
    locks.map((lock) => [
      lock.lockId,
      { text: stateName(lock.state), tone: tone(lock.state) },
      scopeText(lock.scope),
      relative(lock.createTime),
      lock.endTime !== undefined
        ? relative(lock.endTime)
        : lock.expireTime === undefined
          ? 'when lifted'
          : relative(lock.expireTime),
      lock.placedBy,
      lock.reason,
    ]),
  );
}
