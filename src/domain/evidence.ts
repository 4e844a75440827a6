import { auditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import type { Task } from './model.ts';
import type { LeaseWriter } from './store.ts';
import type { Emit } from './telemetry.ts';
import type { Clock } from './time.ts';

/** What evidence holds, in this order. */
export const evidenceTypes = ['task', 'lease', 'approval', 'call', 'event'] as const;
export type EvidenceType = (typeof evidenceTypes)[number];
export type EvidenceCounts = Record<EvidenceType, number>;

export interface EvidenceStore {
  /** The task and those below it, from the top. */
  tree(tenant: string, taskId: string, limit: number): Promise<string[]>;
  /**
   * All rows of this type of these tasks in pages, each a JSON object, in a fixed order. Never secret material. With `top`
   * also what the task above that one holds for it, and it has used.
   */
  rows(
    tenant: string,
    type: EvidenceType,
    taskIds: readonly string[],
    top: string | undefined,
  ): AsyncIterable<string[]>;
}

export interface Digest {
  update(text: string): void;
  /** Hexadecimal. */
  end(): string;
}

export interface EvidenceOptions {
  clock: Clock;
  store: EvidenceStore;
  visible: (caller: Caller, taskId: string) => Promise<Task>;
  record: LeaseWriter['record'];
  /** SHA-256. */
  newDigest: () => Digest;
  emit: Emit;
}

export interface EvidenceSummary {
  digest: string;
  counts: EvidenceCounts;
  /** There was more than one export may hold. */
  truncated: boolean;
}

export type Evidence = ReturnType<typeof createEvidence>;

const mostTasks = 20_000;
const mostRecords = 2_000_000;
const tasksAtOnce = 200;

/**
 * Everything that is recorded about a task and what is below it, one JSON object to a line. The digest is over exactly the
 * bytes that went out, and is in the audit before the last of them does: a file that was changed later does not match.
 */
export function createEvidence(options: EvidenceOptions) {
  return {
    export: async function* (
      caller: Caller,
      taskId: string,
      signal: AbortSignal,
    ): AsyncIterable<{ lines: string } | EvidenceSummary> {
      const task = await options.visible(caller, taskId);
      const { tenant } = task;
      const digest = options.newDigest();
      const counts: EvidenceCounts = { task: 0, lease: 0, approval: 0, call: 0, event: 0 };
      const told = (lines: readonly string[]) => {
        const text = lines.map((line) => `${line}\n`).join('');
        digest.update(text);
        return { lines: text };
      };
      const begun = new Date(options.clock.now()).toISOString();
      const head = { type: 'evidence', format: 1, tenant, task: taskId, root: task.rootTaskId };
      yield told([JSON.stringify({ ...head, exported_by: caller.workload, exported_at: begun })]);

      const ids = await options.store.tree(tenant, taskId, mostTasks + 1);
      let truncated = ids.length > mostTasks;
      let left = mostRecords;
      for (const type of evidenceTypes) {
        for (let from = 0; from < Math.min(ids.length, mostTasks) && left > 0; from += tasksAtOnce) {
          const some = ids.slice(from, from + tasksAtOnce);
          for await (const page of options.store.rows(tenant, type, some, from === 0 ? taskId : undefined)) {
            if (signal.aborted) return;
            const rows = page.slice(0, left);
            truncated ||= rows.length < page.length;
            left -= rows.length;
            counts[type] += rows.length;
            yield told(rows.map((row) => `{"type":"${type}",${row.slice(1)}`));
            if (left === 0) break;
          }
        }
      }
      yield told([JSON.stringify({ type: 'end', ...counts, truncated })]);
      const summary: EvidenceSummary = { digest: `sha256:${digest.end()}`, counts, truncated };
      const detail = { digest: summary.digest, ...counts, truncated };
      await options.record([auditEvent(task, 'evidence.exported', caller.workload, options.clock.now(), detail)]);
      options.emit('evidence.exported', { tenant, taskId, ...counts });
      yield summary;
    },
  };
}
