import type { AuditEvent } from '../audit.ts';
import type { Lease, Task } from '../model.ts';
import type { Page } from '../store.ts';
import type { Instant } from '../time.ts';
import type { CallEnd, CallHop, ToolCall } from './model.ts';

export interface CallWrite {
  call: ToolCall;
  /** Written with the record, or not at all. */
  events: AuditEvent[];
}

export interface CallEndWrite {
  call: ToolCall;
  end: CallEnd;
  endedAt: Instant;
  requestId: string;
  digest: string;
  events: AuditEvent[];
  /** Written only when the call had been marked unfinished before. */
  lateEvents: AuditEvent[];
}

export interface CallFilter {
  tenant: string;
  taskId: string | undefined;
  agent: string | undefined;
  tool: string | undefined;
  since: Instant | undefined;
  until: Instant | undefined;
  violationsOnly: boolean;
  pageSize: number;
  after: string | undefined;
}

/** Look-ups and writes that wait are made together (design §5). */
export interface CallStore {
  lease(tenant: string, leaseId: string): Promise<Lease | undefined>;
  /** The tasks above this one, nearest first. */
  chain(task: Pick<Task, 'tenant' | 'taskId'>): Promise<CallHop[]>;
  /**
   * Inserts the record. Not written: this reporter has used the request_id for this task before. A call without an end is
   * unfinished at once when its task is settled. `full`: the task now has as many records as it may have.
   */
  insert(write: CallWrite): Promise<{ written: boolean; full: boolean; unfinishedAt: Instant | undefined }>;
  /** The record with its end. Undefined when it had one before. */
  end(write: CallEndWrite): Promise<ToolCall | undefined>;
  get(tenant: string, callId: string): Promise<ToolCall | undefined>;
  byRequest(tenant: string, taskId: string, reportedBy: string, requestId: string): Promise<ToolCall | undefined>;
  /** Newest first. */
  list(filter: CallFilter): Promise<Page<ToolCall>>;
}
