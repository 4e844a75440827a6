import { create, type JsonObject, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs, timestampMs, type Duration, type Timestamp } from '@bufbuild/protobuf/wkt';
import type { BoundedDecision, PlannedDecision } from '../domain/decision.ts';
import { fieldInvalid } from '../domain/errors.ts';
import type { Issued } from '../domain/hand-out.ts';
import { adviceFor, nextAttempt } from '../domain/lease-care.ts';
import type * as domain from '../domain/model.ts';
import type { Material } from '../domain/provider.ts';
import type * as domainPolicy from '../domain/policy.ts';
import { targetOf } from '../domain/provider.ts';
import type { TaskView } from '../domain/tasks.ts';
import type { Instant, Millis } from '../domain/time.ts';
import {
  CloseCause,
  Effect,
  LeaseOutcome,
  LeaseSchema,
  LeaseSettlementSchema,
  LeaseState,
  RevocationKind,
  SenderConstraint,
  TaskState,
  Tier,
  type Lease,
  type PlanEntrySchema,
} from '../gen/leasehold/v1/common_pb.js';
import type { CredentialSchema } from '../gen/leasehold/v1/credential_service_pb.js';
import type { LeaseSummarySchema, TaskNodeSchema, TaskSchema } from '../gen/leasehold/v1/task_service_pb.js';

const tiers = { read: Tier.READ, write: Tier.WRITE, execute: Tier.EXECUTE } as const;
const tierNames = new Map(Object.entries(tiers).map(([name, value]) => [value as Tier, name as domain.Tier]));

const kinds = {
  immediate: RevocationKind.IMMEDIATE,
  bounded: RevocationKind.BOUNDED,
  none: RevocationKind.NONE,
} as const;

const leaseStates = {
  pending: LeaseState.PENDING,
  active: LeaseState.ACTIVE,
  settling: LeaseState.SETTLING,
  settled: LeaseState.SETTLED,
} as const;

const outcomes = {
  revoked: LeaseOutcome.REVOKED,
  expired: LeaseOutcome.EXPIRED,
  returned: LeaseOutcome.RETURNED,
  bounded: LeaseOutcome.BOUNDED,
  irrevocable: LeaseOutcome.IRREVOCABLE,
} as const;

const taskStates = {
  open: TaskState.OPEN,
  closing: TaskState.CLOSING,
  closed: TaskState.CLOSED,
  close_degraded: TaskState.CLOSE_DEGRADED,
} as const;

const causes = {
  requested: CloseCause.REQUESTED,
  deadline: CloseCause.DEADLINE,
  heartbeat_lost: CloseCause.HEARTBEAT_LOST,
  parent_closed: CloseCause.PARENT_CLOSED,
  locked: CloseCause.LOCKED,
  handed_over: CloseCause.HANDED_OVER,
} as const;

const constraints = { dpop: SenderConstraint.DPOP, mtls: SenderConstraint.MTLS } as const;

const effects = {
  allow: Effect.ALLOW,
  deny: Effect.DENY,
  too_late: Effect.DENY,
  needs_approval: Effect.NEEDS_APPROVAL,
} as const;

export function optional<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V };
}

export const time = (value: Instant | undefined): Timestamp | undefined =>
  value === undefined ? undefined : timestampFromMs(value);

export function tierOf(field: string, value: Tier): domain.Tier {
  const tier = tierNames.get(value);
  if (tier === undefined) throw fieldInvalid(field, 'must be TIER_READ, TIER_WRITE or TIER_EXECUTE');
  return tier;
}

export function tierMessage(tier: domain.Tier): Tier {
  return tiers[tier];
}

export function effectMessage(effect: BoundedDecision['effect']): Effect {
  return effects[effect];
}

/** An unknown one was refused with the request's generic bounds. */
export function constraintOf(value: SenderConstraint): domainPolicy.SenderConstraint | undefined {
  return (Object.keys(constraints) as domainPolicy.SenderConstraint[]).find((name) => constraints[name] === value);
}

export function kindMessage(kind: domain.RevocationKind): RevocationKind {
  return kinds[kind];
}

export function taskStateOf(field: string, value: TaskState): domain.TaskState {
  return named(field, taskStates, value);
}

export function leaseStateOf(field: string, value: LeaseState): domain.LeaseState {
  return named(field, leaseStates, value);
}

function named<T extends Record<string, number>>(field: string, names: T, value: number): keyof T {
  const found = Object.entries(names).find(([, number]) => number === value);
  if (found === undefined) throw fieldInvalid(field, 'must name a state');
  return found[0] as keyof T;
}

export function instantOf(value: Timestamp | undefined): Instant | undefined {
  return value === undefined ? undefined : timestampMs(value);
}

export function millisOf(value: Duration | undefined): Millis | undefined {
  return value === undefined ? undefined : Number(value.seconds) * 1_000 + Math.floor(value.nanos / 1e6);
}

export function leaseMessage(lease: domain.Lease): Lease {
  return create(LeaseSchema, {
    leaseId: lease.leaseId,
    taskId: lease.taskId,
    agent: lease.agent,
    workload: lease.workload,
    tool: lease.tool,
    tier: tiers[lease.tier],
    provider: lease.provider,
    state: leaseStates[lease.state],
    outcome: lease.outcome === undefined ? LeaseOutcome.UNSPECIFIED : outcomes[lease.outcome],
    revocationKind: kinds[lease.revocationKind],
    issueTime: timestampFromMs(lease.issuedAt),
    expireTime: timestampFromMs(lease.expiresAt),
    ...optional('settleTime', time(lease.settledAt)),
    ...optional('deadBy', time(lease.deadBy)),
    renewedFromLeaseId: lease.renewedFrom ?? '',
    policyRevision: lease.policyRevision,
    policyRule: lease.policyRule,
    settleAttempts: lease.settleAttempts,
    settleError: lease.settleError ?? '',
  });
}

/** With what only operators and auditors are told. */
export function leaseForOperators(lease: domain.Lease, now: Instant): Lease {
  const message = leaseMessage(lease);
  message.settlement = create(LeaseSettlementSchema, {
    cause: lease.settleCause ?? '',
    target: targetOf(lease.handle),
    handle: lease.handle,
    ...optional('beginTime', time(lease.settlingSince)),
    ...optional('nextAttemptTime', time(nextAttempt(lease))),
    abandonedBy: lease.abandoned?.by ?? '',
    ...optional('abandonTime', time(lease.abandoned?.at)),
    abandonReason: lease.abandoned?.reason ?? '',
    advice: adviceFor(lease, now),
  });
  return message;
}

export function taskMessage(task: domain.Task): MessageInitShape<typeof TaskSchema> {
  return {
    taskId: task.taskId,
    rootTaskId: task.rootTaskId,
    parentTaskId: task.parentTaskId ?? '',
    intent: task.intent,
    agent: task.agent,
    opener: task.opener,
    agentWorkload: task.agentWorkload ?? '',
    tools: task.tools.map((access) => ({ tool: access.tool, tier: tiers[access.tier] })),
    context: { ...task.context },
    labels: { ...task.labels },
    state: taskStates[task.state],
    closeCause: task.closeCause === undefined ? CloseCause.UNSPECIFIED : causes[task.closeCause],
    openTime: timestampFromMs(task.openedAt),
    deadline: timestampFromMs(task.deadline),
    ...optional('closeTime', time(task.closedAt)),
    ...optional('settleTime', time(task.settledAt)),
    ...optional(
      'heartbeatInterval',
      task.heartbeatInterval === undefined ? undefined : durationFromMs(task.heartbeatInterval),
    ),
    epoch: BigInt(task.epoch),
  };
}

export function summaryMessage(summary: domain.LeaseSummary): MessageInitShape<typeof LeaseSummarySchema> {
  return { ...summary };
}

export function viewMessage(view: Pick<TaskView, 'task' | 'leases' | 'summary'>) {
  return {
    task: taskMessage(view.task),
    leases: view.leases.map(leaseMessage),
    summary: summaryMessage(view.summary),
  };
}

export function nodeMessage({ task, depth, summary }: domain.TaskNode): MessageInitShape<typeof TaskNodeSchema> {
  return {
    taskId: task.taskId,
    parentTaskId: task.parentTaskId ?? '',
    depth,
    agent: task.agent,
    agentWorkload: task.agentWorkload ?? '',
    opener: task.opener,
    state: taskStates[task.state],
    closeCause: task.closeCause === undefined ? CloseCause.UNSPECIFIED : causes[task.closeCause],
    deadline: timestampFromMs(task.deadline),
    ...optional('settleTime', time(task.settledAt)),
    summary: summaryMessage(summary),
  };
}

export function planMessage(
  access: domain.ToolAccess,
  decision: PlannedDecision,
): MessageInitShape<typeof PlanEntrySchema> {
  const base = {
    tool: access.tool,
    tier: tiers[access.tier],
    effect: decision.effect === 'depends' ? Effect.DEPENDS : effects[decision.effect],
    reason: decision.reason,
    policyRule: decision.rule,
  };
  if (decision.effect === 'deny' || decision.effect === 'too_late') return base;
  const { life, tier, obligations } = decision.effect === 'allow' ? decision : decision.granted;
  const { senderConstraint } = obligations;
  const whole = {
    ...base,
    provider: tier.provider,
    revocationKind: kinds[tier.revocation],
    ...(senderConstraint === undefined ? {} : { senderConstraint: constraints[senderConstraint] }),
  };
  if (decision.effect === 'needs_approval') return whole;
  const ttl = durationFromMs(life);
  if (decision.effect === 'allow') return { ...whole, ttl };
  return {
    ...whole,
    ttl,
    dependsOn: [...decision.dependsOn],
    possible: decision.possible.map((effect) => effects[effect]),
  };
}

export function credentialMessage(issued: Issued): MessageInitShape<typeof CredentialSchema> {
  return {
    lease: leaseMessage(issued.lease),
    renewAfter: timestampFromMs(issued.renewAfter),
    material: materialMessage(issued.material),
  };
}

function materialMessage(material: Material): NonNullable<MessageInitShape<typeof CredentialSchema>['material']> {
  switch (material.kind) {
    case 'access_token':
      return { case: 'accessToken', value: { token: material.token, tokenType: material.tokenType } };
    case 'postgres_login': {
      const { host, port, database, username, password, sslmode } = material;
      return { case: 'postgresLogin', value: { host, port, database, username, password, sslmode } };
    }
    case 'vault_secret':
      // Parsed from JSON, and so a JSON object.
      return { case: 'vaultSecret', value: { data: material.data as JsonObject } };
    case 'vault_wrapped': {
      const { token, address, namespace, unwrapBefore } = material;
      return {
        case: 'wrappedSecret',
        value: { token, address, namespace, unwrapBefore: timestampFromMs(unwrapBefore) },
      };
    }
  }
}
