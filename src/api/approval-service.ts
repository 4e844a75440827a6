import { createHash } from 'node:crypto';
import { create, type JsonObject, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { Approvals } from '../domain/approvals/approvals.ts';
import type { NamedChild } from '../domain/approvals/for-child.ts';
import * as domain from '../domain/approvals/model.ts';
import { argumentsDigest, boundedArguments, type DeclaredArguments } from '../domain/arguments.ts';
import { fieldInvalid } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';
import {
  ApprovalKind,
  ApprovalSchema,
  ApprovalService,
  ApprovalState,
  Verdict,
  type Approval,
  type ApprovalAction,
} from '../gen/leasehold/v1/approval_service_pb.js';
import { service } from './call.ts';
import { effectMessage, tierMessage, tierOf } from './convert.ts';
import {
  approvalIdField,
  contextField,
  labelsField,
  name,
  nextPageToken,
  pageSize,
  pageToken,
  taskIdField,
  text,
} from './fields.ts';

const states = {
  pending: ApprovalState.PENDING,
  approved: ApprovalState.APPROVED,
  used: ApprovalState.USED,
  expired: ApprovalState.EXPIRED,
  denied: ApprovalState.DENIED,
  timed_out: ApprovalState.TIMED_OUT,
  cancelled: ApprovalState.CANCELLED,
} as const;

const kinds = {
  request: ApprovalKind.REQUEST,
  break_glass: ApprovalKind.BREAK_GLASS,
  for_child: ApprovalKind.FOR_CHILD,
} as const;
const verdicts = { approve: Verdict.APPROVE, deny: Verdict.DENY } as const;
const mostActions = 64;

export function approvalService(approvals: Approvals) {
  return service(ApprovalService, {
    getApproval: async (request, { caller }) => ({
      approval: approvalMessage(await approvals.get(caller, approvalIdField('approval_id', request.approvalId))),
    }),

    listApprovals: async (request, { caller }) => {
      const page = await approvals.list(caller, {
        states: request.states.map((state, index) => stateOf(`states[${index}]`, state)),
        taskId: request.taskId === '' ? undefined : taskIdField(request.taskId),
        groupId: request.groupId === '' ? undefined : approvalIdField('group_id', request.groupId),
        pageSize: pageSize(request.pageSize, 50),
        after: pageToken(request.pageToken, (id) => isId('apr', id)),
      });
      return { approvals: page.items.map(approvalMessage), nextPageToken: nextPageToken(page.next) };
    },

    decideApproval: async (request, { caller }) => {
      const { approval, others } = await approvals.decide(
        caller,
        approvalIdField('approval_id', request.approvalId),
        verdictOf(request.verdict),
        text('comment', request.comment, 0, 2_000),
        request.wholeGroup,
      );
      return { approval: approvalMessage(approval), others: others.map(approvalMessage) };
    },

    watchApproval: async function* (request, { caller, signal }) {
      const approvalId = approvalIdField('approval_id', request.approvalId);
      for await (const approval of approvals.watch(caller, approvalId, signal)) {
        yield { approval: approvalMessage(approval) };
      }
    },

    requestApprovals: async (request, { caller }) => {
      const taskId = taskIdField(request.taskId);
      if (request.actions.length === 0) throw fieldInvalid('actions', 'must name at least one action');
      if (request.actions.length > mostActions) throw fieldInvalid('actions', `must be at most ${mostActions}`);
      const actions = request.actions.map((action, index) => ({
        access: {
          tool: name(`actions[${index}].tool`, action.tool),
          tier: tierOf(`actions[${index}].tier`, action.tier),
        },
        arguments: declared(action.arguments),
        child: childOf(`actions[${index}]`, action),
      }));
      const justification = text('justification', request.justification, 0, 2_000);
      const results = await approvals.request(caller, taskId, actions, justification);
      return {
        results: results.map(({ decision, approval }) => ({
          effect: effectMessage(decision.effect),
          reason: decision.reason,
          ...(approval === undefined ? {} : { approval: approvalMessage(approval) }),
        })),
      };
    },

    breakGlass: async (request, { caller }) => {
      const taskId = taskIdField(request.taskId);
      const access = { tool: name('tool', request.tool), tier: tierOf('tier', request.tier) };
      if (request.reason.trim().length < 10) {
        throw fieldInvalid('reason', 'must say in at least 10 characters why policy is set aside');
      }
      const reason = text('reason', request.reason, 10, 2_000);
      return { approval: approvalMessage(await approvals.breakGlass(caller, taskId, access, reason)) };
    },
  });
}

function childOf(field: string, { agent, context, labels }: ApprovalAction): NamedChild | undefined {
  if (agent !== '') {
    return {
      agent: name(`${field}.agent`, agent),
      context: contextField(`${field}.context`, context),
      labels: labelsField(`${field}.labels`, labels),
    };
  }
  for (const [stated, map] of Object.entries({ context, labels })) {
    if (Object.keys(map).length === 0) continue;
    throw fieldInvalid(`${field}.${stated}`, 'is for an action of a task below: name its agent');
  }
  return undefined;
}

function declared(sent: JsonObject | undefined): DeclaredArguments {
  const values = boundedArguments(sent ?? {});
  return { values, digest: argumentsDigest(values, sha256) };
}

function sha256(content: string): string {
  return createHash('sha256').update(content).digest('hex');
}

export function approvalMessage(approval: domain.Approval): Approval {
  const given = domain.given(approval);
  const time = <K extends string>(key: K, at: number | undefined) =>
    (at === undefined ? {} : { [key]: timestampFromMs(at) }) as Partial<Record<K, ReturnType<typeof timestampFromMs>>>;
  const message: MessageInitShape<typeof ApprovalSchema> = {
    approvalId: approval.approvalId,
    kind: kinds[approval.kind],
    state: states[approval.state],
    taskId: approval.taskId,
    intent: approval.intent,
    opener: approval.opener,
    agent: approval.agent,
    parentAgent: approval.parentAgent ?? '',
    workload: approval.workload ?? '',
    tool: approval.tool,
    tier: tierMessage(approval.tier),
    arguments: { ...approval.arguments.values },
    argumentsDigest: approval.arguments.digest,
    policyRevision: approval.policyRevision,
    policyRule: approval.policyRule,
    reason: approval.reason,
    justification: approval.justification,
    quorums: approval.quorums.map(({ rule, approvers, count }, index) => ({
      policyRule: rule,
      approvers: [...approvers],
      count,
      given: given[index]!,
    })),
    votes: approval.votes.map(({ approver, verdict, comment, at }) => ({
      approver,
      verdict: verdicts[verdict],
      comment,
      voteTime: timestampFromMs(Math.round(at)),
    })),
    uses: approval.uses,
    usesLeft: approval.usesLeft,
    requestTime: timestampFromMs(approval.requestedAt),
    decideBy: timestampFromMs(approval.decideBy),
    ...time('decideTime', approval.decidedAt),
    ...time('expireTime', approval.expiresAt),
    ...time('coolDownUntil', approval.coolDownUntil),
    groupId: approval.groupId,
  };
  return create(ApprovalSchema, message);
}

function verdictOf(value: Verdict): domain.Verdict {
  if (value === Verdict.APPROVE) return 'approve';
  if (value === Verdict.DENY) return 'deny';
  throw fieldInvalid('verdict', 'must be VERDICT_APPROVE or VERDICT_DENY');
}

function stateOf(field: string, value: ApprovalState): domain.ApprovalState {
  const found = Object.entries(states).find(([, number]) => number === value);
  if (found === undefined) throw fieldInvalid(field, 'must name a state');
  return found[0] as domain.ApprovalState;
}
