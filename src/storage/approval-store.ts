import type pg from 'pg';
import { notice } from '../domain/approvals/build.ts';
import type { Approval } from '../domain/approvals/model.ts';
import type {
  ApprovalChange,
  ApprovalFilter,
  ApprovalStore,
  ExactUse,
  NewApproval,
  Notice,
  RequestLimits,
} from '../domain/approvals/store.ts';
import { BrokerError } from '../domain/errors.ts';
import type { Instant } from '../domain/time.ts';
import { approvalFromRow, approvalValues, insertApproval, selectApprovals } from './approval-rows.ts';
import { insertNotifications, type Outbox } from './notification-store.ts';
import { guarded, transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest } from './rows.ts';
import { notifyTask } from './wake.ts';

type Row = Record<string, unknown>;
type Client = Pick<pg.ClientBase, 'query'>;

/** It acts for the task that holds it for those below, or for one of these. Indexes of tasks: primary key, tasks_children. */
const isParty = (workload: string) => `a.kind = 'for_child' AND (
  EXISTS (SELECT FROM tasks t WHERE t.tenant = a.tenant AND t.task_id = a.task_id AND t.agent_workload = ${workload})
  OR EXISTS (SELECT FROM tasks t WHERE t.tenant = a.tenant AND t.parent_task_id = a.task_id AND t.agent = a.agent
    AND t.agent_workload = ${workload}))`;

const live = `a.state IN ('pending', 'approved') AND COALESCE(a.expires_at, a.decide_by) > $NOW`;

export function createApprovalStore(pool: pg.Pool, outbox: Outbox): ApprovalStore {
  return {
    get: (tenant, approvalId) => guarded(() => one(pool, 'a.tenant = $1 AND a.approval_id = $2', [tenant, approvalId])),
    list: (filter) => guarded(() => list(pool, filter)),

    isPartyTo: (approval, workload) =>
      guarded(async () => {
        const { rows } = await pool.query(
          `SELECT FROM approvals a WHERE a.tenant = $1 AND a.approval_id = $2 AND ${isParty('$3')}`,
          [approval.tenant, approval.approvalId, workload],
        );
        return rows.length > 0;
      }),

    emergency: (tenant, taskId, access) =>
      guarded(() =>
        // Index approvals_emergency.
        one(
          pool,
          `a.kind = 'break_glass' AND a.state = 'approved' AND a.tenant = $1 AND a.task_id = $2 AND a.tool = $3 AND a.tier = $4
            AND a.expires_at > clock_timestamp()`,
          [tenant, taskId, access.tool, access.tier],
        ),
      ),

    find: (key, now) => guarded(() => find(pool, key, now)),

    lastUse: (lease) =>
      guarded(async () => {
        // Back along the line by primary keys, to the first lease that has one.
        const { rows } = await pool.query<{ renewal_count: number; used_at: Date }>(
          `WITH RECURSIVE line AS (
            SELECT l.lease_id, l.renewed_from, l.renewal_count, u.used_at
            FROM leases l LEFT JOIN approval_uses u ON u.tenant = l.tenant AND u.lease_id = l.lease_id
            WHERE l.tenant = $1 AND l.lease_id = $2
            UNION ALL
            SELECT l.lease_id, l.renewed_from, l.renewal_count, u.used_at
            FROM line p JOIN leases l ON l.tenant = $1 AND l.lease_id = p.renewed_from
            LEFT JOIN approval_uses u ON u.tenant = l.tenant AND u.lease_id = l.lease_id
            WHERE p.used_at IS NULL
          )
          SELECT renewal_count, used_at FROM line WHERE used_at IS NOT NULL`,
          [lease.tenant, lease.leaseId],
        );
        return rows[0] && { renewalCount: rows[0].renewal_count, at: rows[0].used_at.getTime() };
      }),

    request: async (requests, limits, record) => {
      if (requests.length === 0) return [];
      return await transaction(pool, (client) => request(client, outbox, requests, limits, record));
    },

    change: async (tenant, approvalId, decide) =>
      await transaction(pool, async (client) => {
        const { rowCount } = await client.query(
          'SELECT FROM approvals WHERE tenant = $1 AND approval_id = $2 FOR UPDATE',
          [tenant, approvalId],
        );
        if (rowCount === 0) return undefined;
        const current = (await one(client, 'a.tenant = $1 AND a.approval_id = $2', [tenant, approvalId]))!;
        const change = decide(current);
        return change === undefined ? current : await apply(client, outbox, current, change);
      }),

    settleDue: async (now, limit, change) =>
      await transaction(pool, async (client) => {
        // Index approvals_due has only the live ones, which are few.
        const { rows } = await client.query<{ tenant: string; approval_id: string; open: boolean }>(
          `SELECT a.tenant, a.approval_id, t.state = 'open' AS open
           FROM approvals a JOIN tasks t ON t.tenant = a.tenant AND t.task_id = a.task_id
           WHERE a.state IN ('pending', 'approved') AND (COALESCE(a.expires_at, a.decide_by) <= $1 OR t.state <> 'open')
           ORDER BY a.tenant, a.approval_id LIMIT $2 FOR UPDATE OF a SKIP LOCKED`,
          [new Date(now), limit],
        );
        const settled: Approval[] = [];
        for (const row of rows) {
          const current = (await one(client, 'a.tenant = $1 AND a.approval_id = $2', [row.tenant, row.approval_id]))!;
          settled.push(await apply(client, outbox, current, change(current, row.open)));
        }
        return settled;
      }),
  };
}

async function one(client: Client, where: string, values: unknown[]): Promise<Approval | undefined> {
  const { rows } = await client.query(`${selectApprovals} WHERE ${where}`, values);
  return rows[0] && approvalFromRow(rows[0] as Row);
}

/** The live one; else the last one of the same use, under any revision, whose deny still cools down. */
async function find(client: Client, key: ExactUse, now: Instant): Promise<Approval | undefined> {
  const forChild = key.kind === 'for_child';
  const same = `a.kind = '${forChild ? 'for_child' : 'request'}' AND ($7::text IS NULL OR a.agent = $7) AND a.tenant = $1 AND a.task_id = $2 AND a.tool = $3 AND a.tier = $4 AND a.arguments_digest = $5`;
  const values = [
    key.tenant,
    key.taskId,
    key.tool,
    key.tier,
    key.arguments.digest,
    new Date(now),
    forChild ? key.agent : null,
  ];
  // Indexes approvals_live and approvals_live_for_child.
  const current = await one(client, `${same} AND a.policy_revision = $8 AND ${live.replace('$NOW', '$6')}`, [
    ...values,
    key.policyRevision,
  ]);
  // Index approvals_of_task. A time-out counts from its end, whether or not the worker has looked at it yet.
  return (
    current ??
    (await one(
      client,
      `${same} AND a.state IN ('denied', 'timed_out') AND a.cool_down_until > $6 ORDER BY a.approval_id DESC LIMIT 1`,
      values,
    ))
  );
}

async function request(
  client: pg.PoolClient,
  outbox: Outbox,
  requests: readonly NewApproval[],
  limits: RequestLimits & { epoch: number },
  record: Parameters<ApprovalStore['request']>[2],
): Promise<{ approval: Approval; asked: boolean }[]> {
  const { tenant, taskId, requestedAt: now } = requests[0]!;
  const agent = askingAgent(requests[0]!);
  // One after the other for an agent: counts hold, and the same request is made once.
  await client.query('SELECT pg_advisory_xact_lock(hashtextextended($1, 0))', [`approvals ${tenant} ${agent}`]);
  if (requests.some(({ kind }) => kind === 'for_child')) await holdTask(client, tenant, taskId, limits.epoch);
  await clearEnded(client, outbox, tenant, taskId, now);
  const results: { approval: Approval; asked: boolean }[] = [];
  const made: Approval[] = [];
  for (const wanted of requests) {
    const known =
      made.find((other) => other.kind === wanted.kind && isSame(other, wanted)) ??
      (wanted.kind === 'break_glass' ? await emergencyOf(client, wanted) : await find(client, wanted, now));
    if (known !== undefined) {
      results.push({ approval: known, asked: made.includes(known) });
      continue;
    }
    // Told of one, people can decide all that are alike; each stays an approval of its own.
    const alike = requests.length === 1 ? await groupOf(client, wanted, now) : undefined;
    const group = made[0]?.groupId ?? alike ?? wanted.approvalId;
    await client.query(insertApproval, approvalValues({ ...wanted, groupId: group }));
    for (const vote of wanted.votes) await insertVote(client, wanted, vote);
    const approval = (await one(client, 'a.tenant = $1 AND a.approval_id = $2', [tenant, wanted.approvalId]))!;
    made.push(approval);
    results.push({ approval, asked: true });
  }
  // An emergency is not held up by how often others were asked.
  if (made.some(({ kind }) => kind !== 'break_glass')) await holdLimits(client, tenant, taskId, agent, limits);
  const { events, notices } = record(made);
  await write(client, outbox, tenant, events, notices, now);
  if (made.length > 0) await notifyTask(client, tenant, taskId);
  return results;
}

function isSame(a: NewApproval, b: NewApproval): boolean {
  return a.agent === b.agent && a.tool === b.tool && a.tier === b.tier && a.arguments.digest === b.arguments.digest;
}

/** The agent of the task that asks. */
function askingAgent({ agent, parentAgent }: NewApproval): string {
  return parentAgent ?? agent;
}

/**
 * A hand-over cancels what its task holds for those below, and closes these. What is asked for at the same moment is there
 * before it, and cancelled, or not at all: whoever has the task afterwards has not asked for it.
 */
async function holdTask(client: Client, tenant: string, taskId: string, epoch: number): Promise<void> {
  const { rowCount } = await client.query(
    'SELECT FROM tasks WHERE tenant = $1 AND task_id = $2 AND epoch = $3 AND closed_at IS NULL FOR SHARE',
    [tenant, taskId, epoch],
  );
  if (rowCount === 1) return;
  throw new BrokerError(
    'IN_PROGRESS',
    `task ${taskId} was changed while approvals were asked for: ask again with the same request_id`,
  );
}

async function emergencyOf(client: Client, wanted: NewApproval): Promise<Approval | undefined> {
  return await one(
    client,
    `a.kind = 'break_glass' AND a.state IN ('pending', 'approved') AND a.tenant = $1 AND a.task_id = $2 AND a.tool = $3 AND a.tier = $4`,
    [wanted.tenant, wanted.taskId, wanted.tool, wanted.tier],
  );
}

/** Frees the place of what has ended where the worker has not come to it yet. */
async function clearEnded(client: Client, outbox: Outbox, tenant: string, taskId: string, now: Instant): Promise<void> {
  const { rows } = await client.query<{ approval_id: string; state: string }>(
    `WITH ended AS (
      UPDATE approvals a SET
        state = CASE a.state WHEN 'pending' THEN 'timed_out' ELSE 'expired' END,
        decided_at = COALESCE(a.decided_at, $3),
        cool_down_until = CASE a.state WHEN 'pending' THEN a.decide_by + a.cool_down_ms * interval '1 millisecond' END
      WHERE a.tenant = $1 AND a.task_id = $2 AND a.state IN ('pending', 'approved')
        AND COALESCE(a.expires_at, a.decide_by) <= $3
      RETURNING a.*
    ), logged AS (
      INSERT INTO audit_events (tenant, kind, at, actor, task_id, lease_id, detail)
      SELECT tenant, 'approval.' || state, $3, 'broker', task_id, NULL,
      json_build_object('approval', approval_id, 'tool', tool, 'tier', tier, 'arguments_digest', arguments_digest,
        'policy_revision', policy_revision)
      FROM ended
    )
    SELECT approval_id, state FROM ended`,
    [tenant, taskId, new Date(now)],
  );
  // People hear of it as when the worker comes to it first.
  for (const { approval_id: approvalId, state } of rows) {
    if (state !== 'timed_out') continue;
    const ended = (await one(client, 'a.tenant = $1 AND a.approval_id = $2', [tenant, approvalId]))!;
    await insertNotifications(client, outbox, tenant, notice('approval.timed_out', [ended], now), now);
  }
}

/**
 * The same use, asked for another task of the agent, that still waits. Only a group of nothing else is joined: one word for
 * it must not be a word for what the approver did not look at.
 */
async function groupOf(client: Client, wanted: NewApproval, now: Instant): Promise<string | undefined> {
  if (wanted.kind !== 'request') return undefined;
  const { rows } = await client.query<{ group_id: string }>(
    `SELECT group_id FROM approvals a
     WHERE tenant = $1 AND agent = $2 AND requested_at > $3 AND kind = 'request' AND state = 'pending' AND decide_by > $4
       AND tool = $5 AND tier = $6 AND arguments_digest = $7 AND policy_revision = $8
       AND NOT EXISTS (SELECT FROM approvals m WHERE m.tenant = a.tenant AND m.group_id = a.group_id
         AND (m.kind, m.tool, m.tier, m.arguments_digest) <> (a.kind, a.tool, a.tier, a.arguments_digest))
     ORDER BY requested_at LIMIT 1`,
    [
      wanted.tenant,
      wanted.agent,
      new Date(now - 86_400_000 * 7),
      new Date(now),
      wanted.tool,
      wanted.tier,
      wanted.arguments.digest,
      wanted.policyRevision,
    ],
  );
  return rows[0]?.group_id;
}

async function holdLimits(
  client: Client,
  tenant: string,
  taskId: string,
  agent: string,
  limits: RequestLimits,
): Promise<void> {
  // Indexes approvals_of_task, approvals_of_agent and approvals_of_parent_agent.
  const { rows } = await client.query<{ pending: number; recent: number; oldest: Date | null }>(
    `WITH asked AS (
      SELECT requested_at FROM approvals WHERE tenant = $1 AND agent = $3 AND requested_at > $4 AND kind = 'request'
      UNION ALL
      SELECT requested_at FROM approvals WHERE tenant = $1 AND parent_agent = $3 AND requested_at > $4
    )
    SELECT
      (SELECT count(*)::int FROM approvals WHERE tenant = $1 AND task_id = $2 AND state = 'pending') AS pending,
      (SELECT count(*)::int FROM asked) AS recent, (SELECT min(requested_at) FROM asked) AS oldest`,
    [tenant, taskId, agent, new Date(limits.since)],
  );
  const { pending, recent, oldest } = rows[0]!;
  if (pending > limits.maxPending) {
    throw new BrokerError(
      'RATE_LIMITED',
      `task ${taskId} has ${limits.maxPending} requests waiting for people, the most it may have: wait until some are decided`,
      { retryAfterMs: 30_000 },
    );
  }
  if (recent > limits.maxSince) {
    throw new BrokerError(
      'RATE_LIMITED',
      `agent ${agent} has asked people ${limits.maxSince} times within the hour, the most it may: ask later, or for everything at once with RequestApprovals`,
      { retryAfterMs: Math.max(1_000, (oldest?.getTime() ?? limits.since) - limits.since) },
    );
  }
}

/** The live ones of one task, each to what `change` says. */
export async function cancelOfTask(
  client: pg.PoolClient,
  outbox: Outbox,
  tenant: string,
  taskId: string,
  change: (current: Approval) => ApprovalChange,
): Promise<void> {
  // Index approvals_of_task. In the order in which the lease writer takes them.
  const { rows } = await client.query<{ approval_id: string }>(
    `SELECT approval_id FROM approvals WHERE tenant = $1 AND task_id = $2 AND state IN ('pending', 'approved')
     ORDER BY tenant, approval_id FOR UPDATE`,
    [tenant, taskId],
  );
  for (const { approval_id: id } of rows) {
    const current = (await one(client, 'a.tenant = $1 AND a.approval_id = $2', [tenant, id]))!;
    await apply(client, outbox, current, change(current));
  }
}

async function apply(
  client: pg.PoolClient,
  outbox: Outbox,
  current: Approval,
  change: ApprovalChange,
): Promise<Approval> {
  const { tenant, approvalId, taskId } = current;
  if (change.vote !== undefined) await insertVote(client, current, change.vote);
  if (change.set !== undefined) {
    const { state, decidedAt, expiresAt, coolDownUntil } = change.set;
    const at = (value: Instant | undefined) => (value === undefined ? null : new Date(value));
    await client.query(
      `UPDATE approvals SET state = $3, decided_at = COALESCE($4, decided_at), expires_at = COALESCE($5, expires_at),
        cool_down_until = COALESCE($6, cool_down_until) WHERE tenant = $1 AND approval_id = $2`,
      [tenant, approvalId, state, at(decidedAt), at(expiresAt), at(coolDownUntil)],
    );
  }
  const now = change.events[0]?.at ?? current.requestedAt;
  await write(client, outbox, tenant, change.events, change.notices, now);
  await notifyTask(client, tenant, taskId);
  return (await one(client, 'a.tenant = $1 AND a.approval_id = $2', [tenant, approvalId]))!;
}

async function insertVote(
  client: Client,
  { tenant, approvalId }: Pick<Approval, 'tenant' | 'approvalId'>,
  vote: Approval['votes'][number],
): Promise<void> {
  // A yes that its giver takes back is a no; the words of both are in the audit.
  await client.query(
    `INSERT INTO approval_votes (tenant, approval_id, approver, verdict, comment, quorums, voted_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7)
     ON CONFLICT (tenant, approval_id, approver) DO UPDATE
       SET verdict = EXCLUDED.verdict, comment = EXCLUDED.comment, quorums = EXCLUDED.quorums, voted_at = EXCLUDED.voted_at`,
    [tenant, approvalId, vote.approver, vote.verdict, vote.comment, vote.quorums, new Date(vote.at)],
  );
}

async function write(
  client: Client,
  outbox: Outbox,
  tenant: string,
  events: ApprovalChange['events'],
  notices: readonly Notice[],
  now: Instant,
): Promise<void> {
  if (events.length > 0) {
    await client.query(`${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`, auditColumns(events));
  }
  await insertNotifications(client, outbox, tenant, notices, now);
}

async function list(pool: pg.Pool, filter: ApprovalFilter) {
  const { visibleTo } = filter;
  // Ids grow with time: the primary key gives newest first, and is the page token. Index approvals_of_approver.
  const { rows } = await pool.query(
    `${selectApprovals}
     WHERE a.tenant = $1 AND ($2::text IS NULL OR a.approval_id < $2)
       AND (cardinality($3::text[]) = 0 OR a.state = ANY($3))
       AND ($4::text IS NULL OR a.task_id = $4) AND ($5::text IS NULL OR a.group_id = $5)
       AND ($6::text[] IS NULL
         OR a.opener = $7 OR (a.kind = 'for_child' AND a.requested_by = $7) OR (${isParty('$7')})
         OR (a.kind <> 'for_child' AND a.agent = ANY($8) AND (a.workload IS NULL OR a.workload = $7))
         OR EXISTS (SELECT FROM approval_votes v
           WHERE v.tenant = a.tenant AND v.approval_id = a.approval_id AND v.approver = $7)
         OR ($9 AND a.approvers && $6 AND $7 <> ALL(a.excluded) AND a.agent <> ALL($8)
           AND (a.parent_agent IS NULL OR a.parent_agent <> ALL($8))))
     ORDER BY a.approval_id DESC LIMIT $10`,
    [
      filter.tenant,
      filter.after ?? null,
      filter.states,
      filter.taskId ?? null,
      filter.groupId ?? null,
      visibleTo?.names ?? null,
      visibleTo?.workload ?? null,
      visibleTo?.agents ?? [],
      visibleTo?.decides ?? false,
      filter.pageSize + 1,
    ],
  );
  const items = rows.slice(0, filter.pageSize).map((row) => approvalFromRow(row as Row));
  return { items, next: rows.length > filter.pageSize ? items.at(-1)!.approvalId : undefined };
}
