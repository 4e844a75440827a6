import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { BrokerError, fieldInvalid } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';
import type { LeaseCare, RetrySelection } from '../domain/lease-care.ts';
import type { Finding, Reconciler, Step } from '../domain/reconciliation.ts';
import type { Clock } from '../domain/time.ts';
import {
  FindingKind,
  SettlementService,
  type RetrySettlementRequest,
} from '../gen/leasehold/v1/settlement_service_pb.js';
import { service } from './call.ts';
import { leaseForOperators } from './convert.ts';
import { leaseIdField, nextPageToken, pageSize, pageToken, taskIdField, text } from './fields.ts';

export interface SettlementServiceOptions {
  clock: Clock;
  care: LeaseCare;
  reconciler: Reconciler;
  newRequestId: () => string;
}

const mostLeases = 1_000;

export function settlementService(options: SettlementServiceOptions) {
  const { clock, care } = options;
  const requestIdOf = (value: string) => (value === '' ? options.newRequestId() : value);

  return service(SettlementService, {
    getLease: async (request, { caller }) => ({
      lease: leaseForOperators(await care.get(caller, leaseIdField(request.leaseId)), clock.now()),
    }),

    retrySettlement: async (request, { caller }) => {
      const page = {
        size: pageSize(request.pageSize, 500),
        after: pageToken(request.pageToken, (id) => isId('lse', id)),
      };
      const act = { requestId: requestIdOf(request.requestId), dryRun: request.dryRun };
      const { items, next } = await care.retry(caller, selectionOf(request), page, act);
      return {
        leases: items.map((lease) => leaseForOperators(lease, clock.now())),
        nextPageToken: nextPageToken(next),
      };
    },

    abandonLease: async (request, { caller }) => {
      const leaseId = leaseIdField(request.leaseId);
      const reason = text('reason', request.reason.trim(), 0, 1_000);
      if (reason.length < 10) throw fieldInvalid('reason', 'must say in at least 10 characters what was done, and why');
      const lease = await care.abandon(caller, leaseId, reason, requestIdOf(request.requestId));
      return { lease: leaseForOperators(lease, clock.now()) };
    },

    reconcile: async function* (request, { caller, signal }) {
      const { target, settle } = request;
      if (!/^(?:[a-z0-9-]{1,63}:)?[a-z0-9-]{0,63}$/.test(target))
        throw fieldInvalid('target', 'must be the name of a target in leasehold.yaml');
      if (settle && !caller.roles.has('operator')) {
        throw new BrokerError('ROLE_REQUIRED', 'settle: only an operator revokes what a comparison finds');
      }
      const { tenant, workload: actor } = caller;
      const requestId = requestIdOf(request.requestId);
      for await (const step of options.reconciler.run({ tenant, actor, requestId, target, settle }, signal)) {
        yield { provider: step.provider, target: step.target, step: stepMessage(step) };
      }
    },
  });
}

const findingKinds = {
  stray_unknown: FindingKind.STRAY_UNKNOWN,
  stray_settled: FindingKind.STRAY_SETTLED,
  missing: FindingKind.MISSING,
} as const;

function stepMessage(step: Step) {
  switch (step.step) {
    case 'progress':
      return { case: 'progress' as const, value: { held: BigInt(step.held), leases: BigInt(step.leases) } };
    case 'finding':
      return { case: 'finding' as const, value: findingMessage(step.finding) };
    case 'result': {
      const { held, leases, strays, settled, missing, unmarked, young, irrevocable, error = '' } = step.result;
      return {
        case: 'result' as const,
        value: {
          held: BigInt(held),
          leases: BigInt(leases),
          strays: BigInt(strays),
          settled: BigInt(settled),
          missing: BigInt(missing),
          unmarked: BigInt(unmarked),
          young: BigInt(young),
          irrevocable: BigInt(irrevocable),
          error,
        },
      };
    }
  }
}

function findingMessage({ kind, handle, leaseId, taskId, madeAt, settled, error }: Finding) {
  return {
    kind: findingKinds[kind],
    handle,
    leaseId: leaseId ?? '',
    taskId: taskId ?? '',
    ...(madeAt === undefined ? {} : { makeTime: timestampFromMs(madeAt) }),
    settled,
    error: error ?? '',
  };
}

function selectionOf(request: RetrySettlementRequest): RetrySelection {
  const given = [request.leaseIds.length > 0, request.taskId !== '', request.troubled].filter(Boolean).length;
  if (given !== 1) throw fieldInvalid('lease_ids', 'give exactly one of lease_ids, task_id and troubled');
  if (request.leaseIds.length > mostLeases) throw fieldInvalid('lease_ids', `must name at most ${mostLeases}`);
  if (request.leaseIds.length > 0) {
    return { by: 'leases', leaseIds: request.leaseIds.map((id, index) => leaseIdField(id, `lease_ids[${index}]`)) };
  }
  return request.troubled ? { by: 'trouble' } : { by: 'task', taskId: taskIdField(request.taskId) };
}
