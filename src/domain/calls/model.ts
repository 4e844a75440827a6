import type { Arguments } from '../arguments.ts';
import type { Tier } from '../model.ts';
import type { Instant } from '../time.ts';

/** In what capacity a record was written: the task's agent in its own words, or the tool about a call that it received. */
export type CallReporter = 'agent' | 'tool';
export type CallOutcome = 'succeeded' | 'failed' | 'refused' | 'unknown';

/** Ways in which a call does not fit what was granted; explained in tool_call_service.proto, in the same order. */
export const callViolations = [
  'no_lease',
  'lease_unknown',
  'lease_ended',
  'task_ended',
  'other_tool',
  'other_tier',
  'undeclared_tool',
  'undeclared_action',
  'other_arguments',
  'other_workload',
  'contradicted',
  'ended_late',
] as const;
export type CallViolation = (typeof callViolations)[number];

/** One task of the delegation that a call was made under. */
export interface CallHop {
  taskId: string;
  agent: string;
  workload: string | undefined;
  opener: string;
}

export interface CallEffect {
  objects: readonly string[];
  rows: number | undefined;
  externalIds: readonly string[];
  /** Free text: never decides. */
  note: string;
}

export interface CallPeer {
  workload: string;
  address: string;
}

/** Host, database and role, or resource: where a call went. Never a secret. */
export type CallTarget = Readonly<Record<string, string>>;

export interface CallEnd {
  outcome: CallOutcome;
  /** Free text: never decides. */
  error: string;
  effect: CallEffect | undefined;
}

/** The record of one call by one party. What was asked never changes; the end is written once. */
export interface ToolCall {
  tenant: string;
  callId: string;
  taskId: string;
  rootTaskId: string;
  requestId: string;
  requestDigest: string;
  agent: string;
  workload: string;
  /** The tasks above, nearest first. */
  chain: readonly CallHop[];
  /** The task's; not kept a second time. */
  intent: string;
  reporter: CallReporter;
  reportedBy: string;
  tool: string;
  tier: Tier;
  /** As named by the reporter; `lease_unknown` says that it is none of the task's. */
  leaseId: string | undefined;
  action: string;
  argumentsDigest: string | undefined;
  /** Only those that the tool's tier declares. */
  arguments: Arguments | undefined;
  target: CallTarget | undefined;
  aboutCallId: string | undefined;
  peer: CallPeer | undefined;
  /** Recorded when it was over: its times are the reporter's word. */
  timesStated: boolean;
  startedAt: Instant;
  recordedAt: Instant;
  endedAt: Instant | undefined;
  end: CallEnd | undefined;
  endRequestId: string | undefined;
  endDigest: string | undefined;
  unfinishedAt: Instant | undefined;
  violations: readonly CallViolation[];
}

export type CallState = 'running' | 'ended' | 'unfinished';

export function stateOf(call: Pick<ToolCall, 'endedAt' | 'unfinishedAt'>): CallState {
  if (call.endedAt !== undefined) return 'ended';
  return call.unfinishedAt === undefined ? 'running' : 'unfinished';
}
