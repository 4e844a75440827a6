import type pg from 'pg';
import type { Signal } from '../domain/signals/model.ts';
import type { SignalStore, SignalWrite } from '../domain/signals/store.ts';
import type { Instant } from '../domain/time.ts';
import { guarded } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest } from './rows.ts';
import { signalChannel } from './wake.ts';

type Row = Record<string, unknown>;

/** Longer than any transaction of ours can live (its time-outs are in storage/pool.ts). */
const commitWindow = `interval '60 seconds'`;

/** Of the row that is written: it is of now, whatever the clocks of the replicas that took it and the one before. */
const undated = '(SELECT NOT i.dated FROM input i WHERE i.signal_id = excluded.signal_id)';

/**
 * One statement, one transaction: the request is taken, the newest word of each source on each subject is kept, and what
 * changed is audited and put into the queue of reevaluation.
 */
const writeSignals = `
WITH request AS (
  INSERT INTO signal_requests (tenant, reporter, request_id, digest, signal_ids)
  VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING request_id
), input AS MATERIALIZED (
  SELECT * FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::int4[], $11::text[], $12::text[],
    $13::float8[], $14::float8[], $15::float8[], $16::float8[], $17::bool[])
    AS i(signal_id, subject_kind, subject, kind, source, value, reason, reported_by, reported_at, occurred_at, expires_at,
      cleared_at, dated)
  WHERE EXISTS (SELECT FROM request)
), written AS (
  INSERT INTO signals AS s (tenant, signal_id, subject_kind, subject, kind, source, value, reason, reported_by, reported_at,
    occurred_at, expires_at, cleared_at)
  SELECT $1, i.signal_id, i.subject_kind, i.subject, i.kind, i.source, i.value, i.reason, i.reported_by,
    to_timestamp(i.reported_at / 1000), to_timestamp(i.occurred_at / 1000), to_timestamp(i.expires_at / 1000),
    to_timestamp(i.cleared_at / 1000)
  FROM input i ORDER BY i.subject_kind, i.subject, i.kind, i.source
  ON CONFLICT (tenant, subject_kind, subject, kind, source) DO UPDATE
  SET signal_id = excluded.signal_id, value = excluded.value, reason = excluded.reason, reported_by = excluded.reported_by,
    reported_at = excluded.reported_at,
    occurred_at = GREATEST(excluded.occurred_at, s.occurred_at + (${undated})::int * interval '1 millisecond'),
    expires_at = excluded.expires_at, cleared_at = excluded.cleared_at, expiry_queued = false,
    changed_at = clock_timestamp(), txid = pg_current_xact_id()
  WHERE s.occurred_at <= excluded.occurred_at OR ${undated}
  RETURNING s.*
), queued AS (
  INSERT INTO signal_reevaluations (tenant, subject_kind, subject, signal_id, began_at, due_at)
  SELECT w.tenant, w.subject_kind, w.subject, w.signal_id, t.at, t.at
  FROM written w CROSS JOIN (SELECT clock_timestamp() AS at) t
), logged AS (
  ${auditInsert} ${auditSelect} FROM ${auditUnnest(18)}
  WHERE (e.detail::json ->> 'signal_id') IN (SELECT w.signal_id FROM written w)
), woken AS (
  SELECT pg_notify('${signalChannel}', '') WHERE EXISTS (SELECT FROM written)
)
SELECT w.*, (SELECT count(*) FROM woken) AS woken FROM written w`;

/** What was allowed because of a signal is decided again when it has run out. Index signals_expiring. */
const queueExpired = `
WITH over AS (
  UPDATE signals s SET expiry_queued = true
  WHERE (s.tenant, s.subject_kind, s.subject, s.kind, s.source) IN (
    SELECT e.tenant, e.subject_kind, e.subject, e.kind, e.source FROM signals e
    WHERE e.expires_at <= clock_timestamp() AND e.expires_at IS NOT NULL AND e.cleared_at IS NULL AND NOT e.expiry_queued
    ORDER BY e.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)
  RETURNING s.tenant, s.subject_kind, s.subject, s.signal_id
)
INSERT INTO signal_reevaluations (tenant, subject_kind, subject, signal_id)
SELECT o.tenant, o.subject_kind, o.subject, o.signal_id FROM over o`;

export function createSignalStore(pool: pg.Pool): SignalStore {
  return {
    write: (write) => guarded(() => writeOnce(pool, write)),

    byIds: (tenant, signalIds) => guarded(() => byIds(pool, tenant, signalIds)),

    list: (filter) =>
      guarded(async () => {
        // The primary key; the page token is the key of the last row.
        const after = filter.after === undefined ? ['', '', '', ''] : (JSON.parse(filter.after) as string[]);
        const { rows } = await pool.query(
          `SELECT * FROM signals
           WHERE tenant = $1 AND (subject_kind, subject, kind, source) > ($2, $3, $4, $5)
             AND ($6::text IS NULL OR subject_kind = $6) AND ($7::text IS NULL OR subject = $7)
             AND (cardinality($8::text[]) = 0 OR kind = ANY($8)) AND ($9::text IS NULL OR source = $9)
             AND ($10 OR (cleared_at IS NULL AND (expires_at IS NULL OR expires_at > $11)))
           ORDER BY subject_kind, subject, kind, source LIMIT $12`,
          [
            filter.tenant,
            ...after,
            filter.subjectKind ?? null,
            filter.subject ?? null,
            filter.kinds,
            filter.source ?? null,
            filter.past,
            new Date(filter.now),
            filter.pageSize + 1,
          ],
        );
        const items = rows.slice(0, filter.pageSize).map((row) => signalFromRow(row as Row));
        const last = items.at(-1);
        const next =
          rows.length > filter.pageSize && last !== undefined
            ? JSON.stringify([last.subject.kind, last.subject.name, last.kind, last.source])
            : undefined;
        return { items, next };
      }),

    load: (now) =>
      guarded(async () => {
        const { rows } = await pool.query(
          `SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon, s.*
           FROM (VALUES (1)) AS always LEFT JOIN signals s
             ON s.cleared_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > $1)`,
          [new Date(now)],
        );
        return withHorizon(rows as Row[]);
      }),

    tail: (horizon) =>
      guarded(async () => {
        // Index signals_tail. One statement, one snapshot: the new horizon belongs to the rows. A foreign transaction that
        // stays open holds the horizon back; nothing of ours commits later than this window.
        const { rows } = await pool.query({
          name: 'tail-signals',
          text: `SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon, s.*
            FROM (VALUES (1)) AS always LEFT JOIN signals s ON s.txid >= $1::xid8
              AND s.changed_at >= clock_timestamp() - ${commitWindow}`,
          values: [horizon],
        });
        return withHorizon(rows as Row[]);
      }),

    queueExpired: (limit) =>
      guarded(async () => {
        const { rowCount } = await pool.query({ name: 'queue-expired-signals', text: queueExpired, values: [limit] });
        return rowCount ?? 0;
      }),

    forget: (before) =>
      guarded(async () => {
        const { rowCount } = await pool.query(
          'DELETE FROM signals WHERE COALESCE(cleared_at, expires_at) < $1 AND occurred_at < $1',
          [new Date(before)],
        );
        await pool.query('DELETE FROM signal_requests WHERE made_at < $1', [new Date(before)]);
        return rowCount ?? 0;
      }),
  };
}

async function writeOnce(pool: pg.Pool, { tenant, reporter, requestId, digest, signals, dated, events }: SignalWrite) {
  const column = (value: (signal: Signal) => unknown) => signals.map(value);
  const { rows } = await pool.query({
    name: 'write-signals',
    text: writeSignals,
    values: [
      tenant,
      reporter,
      requestId,
      digest,
      column((s) => s.signalId),
      column((s) => s.subject.kind),
      column((s) => s.subject.name),
      column((s) => s.kind),
      column((s) => s.source),
      column((s) => s.value),
      column((s) => s.reason),
      column((s) => s.reportedBy),
      column((s) => s.reportedAt),
      column((s) => s.occurredAt),
      column((s) => s.expiresAt ?? null),
      column((s) => s.clearedAt ?? null),
      dated,
      ...auditColumns(events),
    ],
  });
  if (rows.length === signals.length) {
    const written = rows.map((row) => signalFromRow(row as Row));
    return {
      digest,
      signals: inOrder(
        written,
        signals.map(({ signalId }) => signalId),
      ),
      written: rows.length,
    };
  }
  // An earlier request with this id, or a source that had said something newer: what it says now is the answer.
  const { rows: earlier } = await pool.query<{ digest: string; signal_ids: string[] }>(
    'SELECT digest, signal_ids FROM signal_requests WHERE tenant = $1 AND reporter = $2 AND request_id = $3',
    [tenant, reporter, requestId],
  );
  const [first] = earlier;
  const ids = first?.signal_ids ?? [];
  return {
    digest: first?.digest ?? digest,
    signals: inOrder(await byIds(pool, tenant, ids), ids),
    written: rows.length,
  };
}

async function byIds(pool: pg.Pool, tenant: string, signalIds: readonly string[]): Promise<Signal[]> {
  // Index signals_by_id.
  const { rows } = await pool.query('SELECT * FROM signals WHERE tenant = $1 AND signal_id = ANY($2)', [
    tenant,
    signalIds,
  ]);
  return rows.map((row) => signalFromRow(row as Row));
}

function inOrder(signals: readonly Signal[], ids: readonly string[]): Signal[] {
  return signals.toSorted((a, b) => ids.indexOf(a.signalId) - ids.indexOf(b.signalId));
}

function withHorizon(rows: readonly Row[]): { signals: Signal[]; horizon: string } {
  return {
    signals: rows.filter(({ signal_id: id }) => id !== null).map((row) => signalFromRow(row)),
    horizon: rows[0]!.horizon as string,
  };
}

function signalFromRow(row: Row): Signal {
  const optional = (value: unknown): Instant | undefined => (value === null ? undefined : (value as Date).getTime());
  return {
    tenant: row.tenant as string,
    signalId: row.signal_id as string,
    subject: { kind: row.subject_kind as Signal['subject']['kind'], name: row.subject as string },
    kind: row.kind as string,
    value: row.value as number,
    reason: row.reason as string,
    source: row.source as string,
    reportedBy: row.reported_by as string,
    reportedAt: (row.reported_at as Date).getTime(),
    occurredAt: (row.occurred_at as Date).getTime(),
    expiresAt: optional(row.expires_at),
    clearedAt: optional(row.cleared_at),
  };
}
