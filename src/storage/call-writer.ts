import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { ToolCall } from '../domain/calls/model.ts';
import type { CallEndWrite, CallStore, CallWrite } from '../domain/calls/store.ts';
import { callFromRow, chainColumn, effectColumn, jsonColumn } from './call-rows.ts';
import { GroupCommit } from './group-commit.ts';
import { guarded } from './pool.ts';
import { auditColumns, auditInsert, auditSelect } from './rows.ts';
import { isDatabaseRefusal, WriterConnection } from './writer-connection.ts';

/** Beginning at parameter `$first`: audit events with the call that each is about, by which they are written or not. */
const events = (first: number) => {
  const types = ['text', 'text', 'float8', 'text', 'text', 'text', 'text', 'text', 'boolean'];
  const parameters = types.map((type, index) => `$${first + index}::${type}[]`).join(', ');
  return `unnest(${parameters}) AS e(tenant, kind, at, actor, task_id, lease_id, detail, call_id, when_late)`;
};

/**
 * The record, its count and its events, in one statement for all that wait. The tasks of calls that have no end yet are
 * held FOR SHARE, as the lease writer holds them: a settlement either marks such a call, or is seen here. Uses the primary
 * keys of tasks and counts and the unique key of calls.
 */
const insertCalls = `
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::text[], $20::text[], $21::text[], $22::boolean[], $23::float8[], $24::float8[], $25::float8[], $26::text[],
    $27::text[], $28::text[], $29::text[]
  ) AS i(tenant, call_id, task_id, root_task_id, request_id, request_digest, reporter, reported_by, agent,
    workload, chain, tool, tier, lease_id, action, arguments_digest, arguments, target,
    about_call_id, peer_workload, peer_address, times_stated, started_at, recorded_at, ended_at, outcome,
    error, effect, violations)
), gate AS MATERIALIZED (
  -- Every task is locked, settled or not: a condition here would be tried on the row as it was before the wait.
  SELECT t.tenant, t.task_id, t.settled_at
  FROM (SELECT DISTINCT tenant, task_id FROM input WHERE ended_at IS NULL ORDER BY tenant, task_id) i
  CROSS JOIN LATERAL (
    SELECT t.tenant, t.task_id, t.settled_at FROM tasks t WHERE t.tenant = i.tenant AND t.task_id = i.task_id FOR SHARE
  ) t
), written AS (
  INSERT INTO tool_calls (tenant, call_id, task_id, root_task_id, request_id, request_digest, reporter, reported_by, agent,
    workload, chain, tool, tier, lease_id, action, arguments_digest, arguments, target, about_call_id, peer_workload,
    peer_address, times_stated, started_at, recorded_at, ended_at, outcome, error, effect, violations, unfinished_at)
  SELECT i.tenant, i.call_id, i.task_id, i.root_task_id, i.request_id, i.request_digest, i.reporter, i.reported_by, i.agent,
    i.workload, i.chain::json, i.tool, i.tier, i.lease_id, i.action, i.arguments_digest, i.arguments::json, i.target::json,
    i.about_call_id, i.peer_workload, i.peer_address, i.times_stated, to_timestamp(i.started_at / 1000),
    to_timestamp(i.recorded_at / 1000), to_timestamp(i.ended_at / 1000), i.outcome, i.error, i.effect::json,
    string_to_array(i.violations, ','),
    CASE WHEN i.ended_at IS NULL
        AND ((i.tenant, i.task_id) IN (SELECT g.tenant, g.task_id FROM gate g WHERE g.settled_at IS NOT NULL)) IS TRUE
      THEN to_timestamp(i.recorded_at / 1000) END
  FROM input i
  ON CONFLICT (tenant, task_id, reported_by, request_id) DO NOTHING
  RETURNING tenant, task_id, call_id, unfinished_at
), added AS (
  SELECT tenant, task_id, count(*)::int4 AS calls FROM written GROUP BY tenant, task_id ORDER BY tenant, task_id
), counted AS (
  INSERT INTO tool_call_counts AS c (tenant, task_id, recorded)
  SELECT tenant, task_id, calls FROM added
  ON CONFLICT (tenant, task_id) DO UPDATE SET recorded = c.recorded + excluded.recorded
  RETURNING tenant, task_id, recorded
), logged AS (
  ${auditInsert} ${auditSelect} FROM ${events(30)} WHERE (e.call_id IN (SELECT w.call_id FROM written w)) IS TRUE
), limited AS (
  -- The one write that takes the count to its bound says so.
  INSERT INTO audit_events (tenant, kind, at, actor, task_id, detail)
  SELECT c.tenant, 'call.limit_reached', clock_timestamp(), 'broker', c.task_id, json_build_object('recorded', c.recorded)
  FROM counted c JOIN added a ON a.tenant = c.tenant AND a.task_id = c.task_id
  WHERE c.recorded >= $39 AND c.recorded - a.calls < $39
)
SELECT w.call_id, w.unfinished_at, c.recorded >= $39 AS is_full
FROM written w JOIN counted c ON c.tenant = w.tenant AND c.task_id = w.task_id`;

const endCalls = `
WITH input AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
    AS i(tenant, call_id, reported_by, ended_at, outcome, error, effect, end_request_id, end_digest)
), done AS (
  UPDATE tool_calls c
  SET ended_at = to_timestamp(i.ended_at / 1000), outcome = i.outcome, error = i.error, effect = i.effect::json,
    end_request_id = i.end_request_id, end_digest = i.end_digest,
    violations = CASE WHEN c.unfinished_at IS NULL THEN c.violations ELSE array_append(c.violations, 'ended_late') END
  FROM input i
  WHERE c.tenant = i.tenant AND c.call_id = i.call_id AND c.reported_by = i.reported_by AND c.ended_at IS NULL
  RETURNING c.*
), logged AS (
  ${auditInsert} ${auditSelect} FROM ${events(10)}
  WHERE (e.call_id IN (SELECT d.call_id FROM done d WHERE d.unfinished_at IS NOT NULL OR NOT e.when_late)) IS TRUE
)
SELECT d.*, t.intent FROM done d JOIN tasks t ON t.tenant = d.tenant AND t.task_id = d.task_id`;

export interface CallWriterOptions {
  connection: pg.ClientConfig;
  onError: (error: Error) => void;
  maxPerTask: number;
}

/** The write path of tool calls: two lanes of group commit, each with a connection of its own. */
export function createCallWriter(
  options: CallWriterOptions,
): Pick<CallStore, 'insert' | 'end'> & { close(): Promise<void> } {
  const connections = [0, 1].map(() => new WriterConnection(options.connection, options.onError));
  const lane = <T, R>(tenantOf: (item: T) => string, flush: (items: readonly T[]) => Promise<readonly R[]>) =>
    new GroupCommit<T, R>({ maxBatch: 256, maxQueue: 8_192, tenantOf, flush, isRefusal: isDatabaseRefusal });

  type Inserted = Awaited<ReturnType<CallStore['insert']>>;
  const inserts = lane<CallWrite, Inserted>(
    ({ call }) => call.tenant,
    async (writes) => {
      const values = [...insertValues(writes), options.maxPerTask];
      const { rows } = await connections[0]!.query('insert-calls', insertCalls, values);
      const found = new Map(
        (rows as { call_id: string; unfinished_at: Date | null; is_full: boolean }[]).map((row) => [row.call_id, row]),
      );
      return writes.map(({ call }) => {
        const row = found.get(call.callId);
        if (row === undefined) return { written: false, full: false, unfinishedAt: undefined };
        return { written: true, full: row.is_full, unfinishedAt: row.unfinished_at?.getTime() };
      });
    },
  );

  const ends = lane<CallEndWrite, ToolCall | undefined>(
    ({ call }) => call.tenant,
    async (writes) => {
      // One call is ended once in a statement: the first who asks.
      const first = new Map(writes.map((write) => [write.call.callId, write] as const).reverse());
      const { rows } = await connections[1]!.query('end-calls', endCalls, endValues([...first.values()]));
      const calls = new Map(
        rows.map((row) => callFromRow(row as Record<string, unknown>)).map((call) => [call.callId, call]),
      );
      return writes.map((write) => {
        const mine = first.get(write.call.callId) === write;
        return mine ? calls.get(write.call.callId) : undefined;
      });
    },
  );

  return {
    insert: (write) => guarded(() => inserts.write(write)),
    end: (write) => guarded(() => ends.write(write)),
    close: async () => {
      await Promise.all([inserts.drained(), ends.drained()]);
      await Promise.all(connections.map((connection) => connection.close()));
    },
  };
}

function insertValues(writes: readonly CallWrite[]): unknown[] {
  const column = (value: (call: ToolCall) => unknown) => writes.map(({ call }) => value(call));
  return [
    column((c) => c.tenant),
    column((c) => c.callId),
    column((c) => c.taskId),
    column((c) => c.rootTaskId),
    column((c) => c.requestId),
    column((c) => c.requestDigest),
    column((c) => c.reporter),
    column((c) => c.reportedBy),
    column((c) => c.agent),
    column((c) => c.workload),
    column((c) => chainColumn(c.chain)),
    column((c) => c.tool),
    column((c) => c.tier),
    column((c) => c.leaseId ?? null),
    column((c) => c.action),
    column((c) => c.argumentsDigest ?? null),
    column((c) => jsonColumn(c.arguments)),
    column((c) => jsonColumn(c.target)),
    column((c) => c.aboutCallId ?? null),
    column((c) => c.peer?.workload || null),
    column((c) => c.peer?.address || null),
    column((c) => c.timesStated),
    column((c) => c.startedAt),
    column((c) => c.recordedAt),
    column((c) => c.endedAt ?? null),
    column((c) => c.end?.outcome ?? null),
    column((c) => c.end?.error || null),
    column((c) => effectColumn(c.end?.effect)),
    column((c) => c.violations.join(',')),
    ...eventValues(writes.map(({ call, events }) => ({ callId: call.callId, events, isLate: false }))),
  ];
}

function endValues(writes: readonly CallEndWrite[]): unknown[] {
  const column = (value: (write: CallEndWrite) => unknown) => writes.map(value);
  return [
    column((w) => w.call.tenant),
    column((w) => w.call.callId),
    column((w) => w.call.reportedBy),
    column((w) => w.endedAt),
    column((w) => w.end.outcome),
    column((w) => w.end.error || null),
    column((w) => effectColumn(w.end.effect)),
    column((w) => w.requestId),
    column((w) => w.digest),
    ...eventValues(
      writes.flatMap(({ call: { callId }, events, lateEvents }) => [
        { callId, events, isLate: false },
        { callId, events: lateEvents, isLate: true },
      ]),
    ),
  ];
}

function eventValues(groups: readonly { callId: string; events: AuditEvent[]; isLate: boolean }[]): unknown[][] {
  const each = groups.flatMap(({ callId, events, isLate }) => events.map((event) => ({ callId, event, isLate })));
  return [
    ...auditColumns(each.map(({ event }) => event)),
    each.map(({ callId }) => callId),
    each.map(({ isLate }) => isLate),
  ];
}
