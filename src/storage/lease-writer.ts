import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { LeaseWrite, LeaseWriter } from '../domain/store.ts';
import { GroupCommit } from './group-commit.ts';
import { guarded } from './pool.ts';
import { atLockEpoch } from './lock-gate.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, termsColumn } from './rows.ts';
import { isDatabaseRefusal, WriterConnection } from './writer-connection.ts';

/** A lease that was made by a clock further ahead than this of the database's would outlive its ceiling: it is not written. */
const maxAhead = `interval '15 seconds'`;

/*
 * How these statements stay cheap in a large flush and in a large database:
 * - Tables are entered by primary key, once for each row that was sent (LATERAL). Left to choose, the planner walks a
 *   partial index over everything that is open, because it thinks that this is little.
 * - The sets of one flush are matched by `(… IN (SELECT …)) IS TRUE`, which PostgreSQL keeps as a hashed subplan. A plain
 *   IN would become a nested loop here: a flush of n rows compared n × n times.
 */

/**
 * The tasks of this flush, and the rows whose task is open and as it was when they were decided. The tasks are locked
 * against a close until the commit (a close updates the row, FOR SHARE holds it off), in one order everywhere, so that two
 * replicas cannot wait for each other. A task that a close got to first is read again by PostgreSQL after the wait and
 * drops out. Uses the primary key of tasks (an open task is one without closed_at).
 *
 * A close of a large tree holds its rows for as long as it takes, and a flush is of many callers: `hasty` does not wait
 * for a row that somebody holds, and leaves out what is about it. What it leaves out is tried again by a lane that waits.
 */
type Patience = 'hasty' | 'patient';

const gate = (patience: Patience) => `gate AS MATERIALIZED (
  SELECT t.tenant, t.task_id, t.epoch
  FROM (SELECT DISTINCT tenant, task_id FROM input ORDER BY tenant, task_id) i
  CROSS JOIN LATERAL (
    SELECT t.tenant, t.task_id, t.epoch FROM tasks t
    WHERE t.tenant = i.tenant AND t.task_id = i.task_id AND t.closed_at IS NULL AND t.deadline > clock_timestamp()
    FOR SHARE${patience === 'hasty' ? ' SKIP LOCKED' : ''}
  ) t
), passed AS MATERIALIZED (
  SELECT i.* FROM input i
  WHERE ((i.tenant, i.task_id, i.epoch) IN (SELECT g.tenant, g.task_id, g.epoch FROM gate g)) IS TRUE
)`;

/** Of `passed i`: it renews nothing, or the renewed lease was there to be superseded. */
const renews = `(i.supersede_at IS NULL OR i.lease_id IN (SELECT s.lease_id FROM superseded s))`;

/** Of `passed i`: it needs no approval, or has one. */
const isApproved = `(i.approval_id IS NULL OR i.lease_id IN (SELECT o.lease_id FROM approved o))`;

/** The events of what was written, and of nothing else. */
const logged = (first: number) => `logged AS (
  ${auditInsert} ${auditSelect} FROM ${auditUnnest(first)} WHERE (e.lease_id IN (SELECT w.lease_id FROM written w)) IS TRUE
)`;

/** Of the task of `i`. By the primary key, and only where an approval is held for those below: never a look at all tasks. */
const parentTask = '(SELECT t.parent_task_id FROM tasks t WHERE t.tenant = i.tenant AND t.task_id = i.task_id)';

/**
 * The approvals of this flush, locked until the commit; `approved` are the leases that they cover: no more than uses are
 * left, and only for exactly what was approved. Without a row that names one, nothing is read here. Uses the primary key.
 */
const approvalGate = `approval AS MATERIALIZED (
  SELECT a.tenant, a.approval_id, a.kind, a.task_id, a.agent, a.workload, a.tool, a.tier, a.arguments_digest,
    a.policy_revision, a.uses_left
  FROM (SELECT DISTINCT tenant, approval_id FROM input WHERE approval_id IS NOT NULL ORDER BY tenant, approval_id) i
  CROSS JOIN LATERAL (
    SELECT * FROM approvals a
    WHERE a.tenant = i.tenant AND a.approval_id = i.approval_id
      AND a.state = 'approved' AND a.uses_left > 0 AND a.expires_at > clock_timestamp()
    FOR UPDATE
  ) a
), approved AS MATERIALIZED (
  SELECT ranked.tenant, ranked.approval_id, ranked.lease_id
  FROM (
    SELECT i.tenant, i.approval_id, i.lease_id, a.uses_left,
      row_number() OVER (PARTITION BY i.tenant, i.approval_id ORDER BY i.lease_id) AS place
    FROM approval a
    JOIN passed i ON i.tenant = a.tenant AND i.approval_id = a.approval_id
    WHERE CASE a.kind WHEN 'for_child' THEN a.task_id = ${parentTask} ELSE a.task_id = i.task_id END
      AND a.agent = i.agent AND (a.workload IS NULL OR a.workload = i.workload)
      AND a.tool = i.tool AND a.tier = i.tier
      AND (a.kind = 'break_glass'
        OR (a.arguments_digest = i.arguments_digest AND a.policy_revision = i.policy_revision))
  ) ranked
  WHERE ranked.place <= ranked.uses_left
)`;

/** Every lease that was written takes its use with it. The row is locked: the count is that of its newest version. */
const approvalUse = `used AS (
  INSERT INTO approval_uses (tenant, lease_id, approval_id)
  SELECT o.tenant, o.lease_id, o.approval_id FROM approved o
  WHERE (o.lease_id IN (SELECT w.lease_id FROM written w)) IS TRUE
  RETURNING tenant, approval_id
), taken AS (
  UPDATE approvals a
  SET uses_left = a.uses_left - u.uses, state = CASE WHEN a.uses_left = u.uses THEN 'used' ELSE a.state END
  FROM (SELECT tenant, approval_id, count(*)::int4 AS uses FROM used GROUP BY tenant, approval_id) u
  WHERE a.tenant = u.tenant AND a.approval_id = u.approval_id
)`;

/** The renewed leases of this flush end after their overlap, unless this request was served before. */
const supersede = `superseded AS (
  UPDATE leases p
  SET settle_cause = 'superseded', settle_at = LEAST(p.settle_at, to_timestamp(i.supersede_at / 1000))
  FROM passed i
  WHERE i.supersede_at IS NOT NULL
    AND p.tenant = i.tenant AND p.lease_id = i.renewed_from AND p.state = 'active' AND p.settle_cause IS NULL
    AND ${isApproved}
    AND NOT EXISTS (
      SELECT FROM leases d WHERE d.tenant = i.tenant AND d.task_id = i.task_id AND d.request_id = i.request_id)
  RETURNING i.lease_id
)`;

/** Plain: nothing in the flush renews or needs an approval, as in most; half of the plan then need not be set up. */
const insertLeases = (plain: boolean, patience: Patience) => `
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(
    $1::text[], $2::text[], $3::int8[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::float8[], $15::float8[], $16::float8[], $17::text[],
    $18::int4[], $19::float8[], $20::text[], $21::text[], $22::float8[], $23::text[], $24::text[], $25::text[]
  ) AS i(tenant, task_id, epoch, lease_id, request_id, agent, workload, tool, tier,
    provider, handle, state, revocation_kind, issued_at, expires_at, settle_at, renewed_from,
    renewal_count, line_started_at, policy_revision, policy_rule, supersede_at,
    approval_id, arguments_digest, terms)
  WHERE to_timestamp(i.issued_at / 1000) < clock_timestamp() + ${maxAhead} AND ${atLockEpoch('$26')}
), ${gate(patience)}, ${plain ? '' : `${approvalGate}, ${supersede}, `}written AS (
  INSERT INTO leases (tenant, task_id, lease_id, request_id, agent, workload, tool, tier, provider, handle, state,
    revocation_kind, issued_at, expires_at, settle_at, renewed_from, renewal_count, line_started_at, policy_revision, policy_rule,
    terms)
  SELECT i.tenant, i.task_id, i.lease_id, i.request_id, i.agent, i.workload, i.tool, i.tier, i.provider, i.handle, i.state,
    i.revocation_kind, to_timestamp(i.issued_at / 1000), to_timestamp(i.expires_at / 1000), to_timestamp(i.settle_at / 1000),
    i.renewed_from, i.renewal_count, to_timestamp(i.line_started_at / 1000), i.policy_revision, i.policy_rule,
    i.terms::jsonb
  FROM passed i
  ${plain ? '' : `WHERE ${renews} AND ${isApproved}`}
  ON CONFLICT (tenant, task_id, request_id) DO NOTHING
  RETURNING lease_id
), ${plain ? '' : `${approvalUse}, `}${logged(27)}
SELECT lease_id FROM written`;

const inserting = (patience: Patience) => ({
  plain: { name: `insert-plain-leases-${patience}`, text: insertLeases(true, patience) },
  any: { name: `insert-leases-${patience}`, text: insertLeases(false, patience) },
});

const activateLeases = (patience: Patience) => `
WITH input AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::int8[], $4::text[], $5::float8[], $6::text[], $7::float8[], $8::text[],
    $9::float8[])
    AS i(tenant, task_id, epoch, lease_id, settle_at, renewed_from, supersede_at, handle, expires_at)
  WHERE ${atLockEpoch('$10')}
), ${gate(patience)}, superseded AS (
  UPDATE leases p
  SET settle_cause = 'superseded', settle_at = LEAST(p.settle_at, to_timestamp(i.supersede_at / 1000))
  FROM passed i
  WHERE i.supersede_at IS NOT NULL
    AND p.tenant = i.tenant AND p.lease_id = i.renewed_from AND p.state = 'active' AND p.settle_cause IS NULL
    AND EXISTS (SELECT FROM leases n WHERE n.tenant = i.tenant AND n.lease_id = i.lease_id AND n.state = 'pending')
  RETURNING i.lease_id
), written AS (
  UPDATE leases l
  SET state = 'active', settle_at = to_timestamp(i.settle_at / 1000), handle = i.handle,
    expires_at = LEAST(l.expires_at, to_timestamp(i.expires_at / 1000))
  FROM passed i
  WHERE ${renews} AND l.tenant = i.tenant AND l.lease_id = i.lease_id AND l.state = 'pending'
  RETURNING l.lease_id
), ${logged(11)}
SELECT lease_id FROM written`;

/** The credential exists already and is handed out again: the same gate, and the event. */
const reissueLeases = `
WITH input AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::int8[], $4::text[]) AS i(tenant, task_id, epoch, lease_id)
  WHERE ${atLockEpoch('$5')}
), ${gate('patient')}, written AS MATERIALIZED (
  SELECT i.lease_id FROM passed i
  CROSS JOIN LATERAL (
    SELECT FROM leases l
    WHERE l.tenant = i.tenant AND l.lease_id = i.lease_id AND l.state = 'active' AND l.expires_at > clock_timestamp()
  ) l
), ${logged(6)}
SELECT lease_id FROM written`;

const insertEvents = `${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`;

const tenantOfLease = ({ lease }: Pick<LeaseWrite, 'lease'>): string => lease.tenant;

export interface LeaseWriterOptions {
  connection: pg.ClientConfig;
  onError: (error: Error) => void;
}

/** The write path of issuing: lanes (insert, activate, record and those that wait), each with a connection of its own. */
export function createLeaseWriter(options: LeaseWriterOptions): LeaseWriter & { close(): Promise<void> } {
  const connections = Array.from({ length: 5 }, () => new WriterConnection(options.connection, options.onError));
  const lane = <T, R>(tenantOf: (item: T) => string, flush: (items: readonly T[]) => Promise<readonly R[]>) =>
    new GroupCommit<T, R>({ maxBatch: 128, maxQueue: 4_096, tenantOf, flush, isRefusal: isDatabaseRefusal });
  const insertLane = (connection: WriterConnection, patience: Patience) => {
    const statements = inserting(patience);
    return lane<LeaseWrite, boolean>(tenantOfLease, async (writes) => {
      const current = ofNewestLocks(writes);
      const plain = current.every((write) => write.supersedeAt === undefined && write.approval === undefined);
      const { name, text } = plain ? statements.plain : statements.any;
      const result = await connection.query(name, text, insertValues(current));
      return written(writes, result);
    });
  };
  const activateLane = (connection: WriterConnection, patience: Patience) => {
    const text = activateLeases(patience);
    return lane<LeaseWrite, boolean>(tenantOfLease, async (writes) => {
      const values = activateValues(ofNewestLocks(writes));
      const result = await connection.query(`activate-leases-${patience}`, text, values);
      return written(writes, result);
    });
  };

  const inserts = insertLane(connections[0]!, 'hasty');
  const activations = activateLane(connections[1]!, 'hasty');
  const patientInserts = insertLane(connections[3]!, 'patient');
  const patientActivations = activateLane(connections[4]!, 'patient');
  const reissues = lane<Reissue, boolean>(tenantOfLease, async (writes) => {
    const values = reissueValues(ofNewestLocks(writes));
    const result = await connections[2]!.query('reissue-leases', reissueLeases, values);
    return written(writes, result);
  });
  const records = lane<AuditEvent[], void>(
    ([event]) => event?.tenant ?? '',
    async (batches) => {
      await connections[2]!.query('insert-events', insertEvents, auditColumns(batches.flat()));
      return batches.map(() => undefined);
    },
  );

  return {
    insert: (write) => guarded(async () => (await inserts.write(write)) || (await patientInserts.write(write))),
    activate: (write) =>
      guarded(async () => (await activations.write(write)) || (await patientActivations.write(write))),
    reissue: (write) => guarded(() => reissues.write(write)),
    record: (events) => guarded(() => records.write(events)),
    close: async () => {
      const lanes = [inserts, activations, patientInserts, patientActivations, reissues, records];
      await Promise.all(lanes.map((one) => one.drained()));
      await Promise.all(connections.map((connection) => connection.close()));
    },
  };
}

type Reissue = Parameters<LeaseWriter['reissue']>[0];

/** One statement is of one epoch. What was decided under an earlier one is decided again. */
function ofNewestLocks<T extends Pick<LeaseWrite, 'lockEpoch'>>(writes: readonly T[]): readonly T[] {
  const newest = Math.max(...writes.map(({ lockEpoch }) => lockEpoch));
  return writes.every(({ lockEpoch }) => lockEpoch === newest)
    ? writes
    : writes.filter(({ lockEpoch }) => lockEpoch === newest);
}

function written(writes: readonly Pick<LeaseWrite, 'lease'>[], result: pg.QueryResult): boolean[] {
  const ids = new Set(result.rows.map((row: { lease_id: string }) => row.lease_id));
  return writes.map((write) => ids.has(write.lease.leaseId));
}

function insertValues(writes: readonly LeaseWrite[]): unknown[] {
  const column = (value: (write: LeaseWrite) => unknown) => writes.map(value);
  return [
    column((w) => w.lease.tenant),
    column((w) => w.lease.taskId),
    column((w) => w.epoch),
    column((w) => w.lease.leaseId),
    column((w) => w.lease.requestId),
    column((w) => w.lease.agent),
    column((w) => w.lease.workload),
    column((w) => w.lease.tool),
    column((w) => w.lease.tier),
    column((w) => w.lease.provider),
    column((w) => w.lease.handle),
    column((w) => w.lease.state),
    column((w) => w.lease.revocationKind),
    column((w) => w.lease.issuedAt),
    column((w) => w.lease.expiresAt),
    column((w) => w.settleAt),
    column((w) => w.lease.renewedFrom ?? null),
    column((w) => w.lease.renewalCount),
    column((w) => w.lease.lineStartedAt),
    column((w) => w.lease.policyRevision),
    column((w) => w.lease.policyRule),
    column((w) => w.supersedeAt ?? null),
    column((w) => w.approval?.approvalId ?? null),
    column((w) => w.approval?.argumentsDigest ?? null),
    column((w) => termsColumn(w.lease.terms)),
    writes[0]!.lockEpoch,
    ...auditColumns(writes.flatMap((w) => w.events)),
  ];
}

function activateValues(writes: readonly LeaseWrite[]): unknown[] {
  const column = (value: (write: LeaseWrite) => unknown) => writes.map(value);
  return [
    column((w) => w.lease.tenant),
    column((w) => w.lease.taskId),
    column((w) => w.epoch),
    column((w) => w.lease.leaseId),
    column((w) => w.settleAt),
    column((w) => w.lease.renewedFrom ?? null),
    column((w) => w.supersedeAt ?? null),
    column((w) => w.lease.handle),
    column((w) => w.lease.expiresAt),
    writes[0]!.lockEpoch,
    ...auditColumns(writes.flatMap((w) => w.events)),
  ];
}

function reissueValues(writes: readonly Reissue[]): unknown[] {
  const column = (value: (write: Reissue) => unknown) => writes.map(value);
  return [
    column((w) => w.lease.tenant),
    column((w) => w.lease.taskId),
    column((w) => w.epoch),
    column((w) => w.lease.leaseId),
    writes[0]!.lockEpoch,
    ...auditColumns(writes.flatMap((w) => w.events)),
  ];
}
