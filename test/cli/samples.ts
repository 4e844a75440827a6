import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { LeaseState, RevocationKind, TaskState, Tier, type LeaseSchema } from '../../src/gen/leasehold/v1/common_pb.js';
import type { TaskSchema } from '../../src/gen/leasehold/v1/task_service_pb.js';

export const taskId = `tsk_${'0'.repeat(31)}1`;
export const leaseId = `lse_${'0'.repeat(31)}2`;
export const requestId = '6f2c8d1e-3a4b-4c5d-8e6f-708192a3b4c5';

/** Half hours: what `relative` says then does not depend on how fast a test runs. */
const minute = 60_000;

export function sampleTask(more: MessageInitShape<typeof TaskSchema> = {}): MessageInitShape<typeof TaskSchema> {
  return {
    taskId,
    rootTaskId: taskId,
    intent: 'Reconcile invoices',
    agent: 'reconciler',
    opener: 'spiffe://example.org/orchestrator',
    tools: [{ tool: 'warehouse', tier: Tier.READ }],
    state: TaskState.OPEN,
    openTime: timestampFromMs(Date.now() - 90 * minute),
    deadline: timestampFromMs(Date.now() + 630 * minute),
    ...more,
  } as MessageInitShape<typeof TaskSchema>;
}

export function sampleLease(more: MessageInitShape<typeof LeaseSchema> = {}): MessageInitShape<typeof LeaseSchema> {
  return {
    leaseId,
    taskId,
    agent: 'reconciler',
    workload: 'spiffe://example.org/agent/reconciler',
    tool: 'warehouse',
    tier: Tier.READ,
    provider: 'postgres',
    state: LeaseState.ACTIVE,
    revocationKind: RevocationKind.IMMEDIATE,
    issueTime: timestampFromMs(Date.now() - 90 * minute),
    expireTime: timestampFromMs(Date.now() + 630 * minute),
    policyRule: 'analysts/read',
    ...more,
  } as MessageInitShape<typeof LeaseSchema>;
}
