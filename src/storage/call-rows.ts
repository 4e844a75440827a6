import type { Arguments } from '../domain/arguments.ts';
import type { CallEffect, CallHop, CallTarget, CallViolation, ToolCall } from '../domain/calls/model.ts';

type Row = Record<string, unknown>;

const instant = (value: unknown) => (value as Date).getTime();
const optionalInstant = (value: unknown) => (value === null ? undefined : instant(value));
const optional = <T>(value: unknown) => (value === null ? undefined : (value as T));

interface StoredHop {
  task_id: string;
  agent: string;
  workload: string | null;
  opener: string;
}

interface StoredEffect {
  objects?: string[];
  rows?: number;
  external_ids?: string[];
  note?: string;
}

export function hopFromRow(row: StoredHop): CallHop {
  return { taskId: row.task_id, agent: row.agent, workload: row.workload ?? undefined, opener: row.opener };
}

export function callFromRow(row: Row): ToolCall {
  const endedAt = optionalInstant(row.ended_at);
  const peer = { workload: optional<string>(row.peer_workload), address: optional<string>(row.peer_address) };
  return {
    tenant: row.tenant as string,
    callId: row.call_id as string,
    taskId: row.task_id as string,
    rootTaskId: row.root_task_id as string,
    requestId: row.request_id as string,
    requestDigest: row.request_digest as string,
    agent: row.agent as string,
    workload: row.workload as string,
    chain: ((row.chain ?? []) as StoredHop[]).map(hopFromRow),
    intent: row.intent as string,
    reporter: row.reporter as ToolCall['reporter'],
    reportedBy: row.reported_by as string,
    tool: row.tool as string,
    tier: row.tier as ToolCall['tier'],
    leaseId: optional(row.lease_id),
    action: row.action as string,
    argumentsDigest: optional(row.arguments_digest),
    arguments: optional<Arguments>(row.arguments),
    target: optional<CallTarget>(row.target),
    aboutCallId: optional(row.about_call_id),
    peer:
      peer.workload === undefined && peer.address === undefined
        ? undefined
        : { workload: peer.workload ?? '', address: peer.address ?? '' },
    timesStated: row.times_stated as boolean,
    startedAt: instant(row.started_at),
    recordedAt: instant(row.recorded_at),
    endedAt,
    end:
      endedAt === undefined
        ? undefined
        : {
            outcome: row.outcome as 'succeeded',
            error: (row.error as string | null) ?? '',
            effect: effectFromRow(row.effect as StoredEffect | null),
          },
    endRequestId: optional(row.end_request_id),
    endDigest: optional(row.end_digest),
    unfinishedAt: optionalInstant(row.unfinished_at),
    violations: row.violations as CallViolation[],
  };
}

function effectFromRow(stored: StoredEffect | null): CallEffect | undefined {
  if (stored === null) return undefined;
  const { objects = [], rows, external_ids: externalIds = [], note = '' } = stored;
  return { objects, rows, externalIds, note };
}

export function effectColumn(effect: CallEffect | undefined): string | null {
  if (effect === undefined) return null;
  const { objects, rows, externalIds, note } = effect;
  const stored: StoredEffect = {
    ...(objects.length === 0 ? {} : { objects: [...objects] }),
    ...(rows === undefined ? {} : { rows }),
    ...(externalIds.length === 0 ? {} : { external_ids: [...externalIds] }),
    ...(note === '' ? {} : { note }),
  };
  return JSON.stringify(stored);
}

export function chainColumn(chain: readonly CallHop[]): string | null {
  if (chain.length === 0) return null;
  const stored = chain.map((hop): StoredHop => ({
    task_id: hop.taskId,
    agent: hop.agent,
    workload: hop.workload ?? null,
    opener: hop.opener,
  }));
  return JSON.stringify(stored);
}

export const jsonColumn = (value: unknown) => (value === undefined ? null : JSON.stringify(value));
