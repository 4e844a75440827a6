import { expect } from 'vitest';
import { maxLife, type Model } from './reference.ts';
import { cleared } from './signals.ts';
import { eventually } from './steps.ts';
import type { World } from './world.ts';

interface LeaseRow {
  lease_id: string;
  task_id: string;
  request_id: string;
  agent: string;
  access: string;
  state: string;
  outcome: string | null;
  handle: string;
  provider: string;
  too_long: boolean;
  decided: number;
  issued: number;
  abandoned: number;
  cause: string;
  is_over: boolean;
  on_feed: boolean;
}

/** The next sequence finds nothing in force, however this one came out. */
export async function clearAway(world: World): Promise<void> {
  const [{ locks, signals, clock }, other] = world.replicas;
  clock.ahead = other.clock.ahead = 0;
  for (const { lockId } of (await locks.listLocks({})).locks) {
    await locks.liftLock({ lockId, reason: 'the sequence is over' });
  }
  const { signals: said } = await signals.operator.listSignals({});
  if (said.length === 0) return;
  await signals.operator.clearSignals({ signalIds: said.map(({ signalId }) => signalId) });
  await cleared(world);
}

/**
 * Closes what a sequence left open, waits for the settlement, and then asks the databases, not the broker: each invariant
 * of the design that a sequence can break.
 */
export async function checkGroundTruth(model: Model, world: World): Promise<void> {
  const ids = model.tasks.map(({ taskId }) => taskId);
  if (ids.length === 0) return;
  const { tasks } = world.replicas[0];
  // Those whose time is over have closed by themselves.
  const open = model.tasks.filter((task) => task.open).map(({ taskId }) => taskId);
  await Promise.all(open.map((taskId) => tasks.closeTask({ taskId, wait: true }, { timeoutMs: 30_000 })));
  await eventually('the settlement of every task', async () => {
    const left = await world.database.query('SELECT FROM tasks WHERE task_id = ANY($1) AND settled_at IS NULL', [ids]);
    return left.rows.length === 0;
  });

  const { rows } = await world.database.query<LeaseRow>(
    `SELECT l.lease_id, l.task_id, l.request_id, l.agent, l.tool || ':' || l.tier AS access, l.state, l.outcome, l.handle, l.provider,
       l.settle_cause AS cause, l.expires_at <= $2 AS is_over,
       l.expires_at > l.issued_at + ($3::jsonb ->> (l.tool || ':' || l.tier))::float8 * interval '1 millisecond' AS too_long,
       count(*) FILTER (WHERE e.kind = 'decision.made' AND e.detail->>'effect' = 'allow' AND e.detail->>'policy_revision' = l.policy_revision)::int AS decided,
       count(*) FILTER (WHERE e.kind IN ('lease.issued', 'lease.renewed'))::int AS issued,
       count(*) FILTER (WHERE e.kind = 'lease.abandoned')::int AS abandoned,
       EXISTS (SELECT FROM revocations r WHERE r.tenant = l.tenant AND (r.task_id = l.task_id OR r.lease_id = l.lease_id)) AS on_feed
     FROM leases l
     JOIN tasks t USING (tenant, task_id)
     LEFT JOIN audit_events e ON e.tenant = l.tenant AND e.task_id = l.task_id AND e.lease_id = l.lease_id
     WHERE l.task_id = ANY($1) GROUP BY l.tenant, l.lease_id, t.tenant, t.task_id`,
    [ids, new Date(world.clock.now()), JSON.stringify(maxLife)],
  );
  const byId = new Map(rows.map((row) => [row.lease_id, row]));
  const handedOut = new Set(model.tasks.flatMap((task) => task.leases.map(({ leaseId }) => leaseId)));

  for (const task of model.tasks) {
    for (const lease of task.leases) {
      // Invariants 1 and 2: on record, for exactly this, decided and logged once.
      const row = byId.get(lease.leaseId);
      expect(row).toMatchObject({ task_id: task.taskId, agent: lease.agent, access: lease.access });
      expect(row).toMatchObject({ decided: 1, issued: 1, too_long: false });
      // What the model counts on was there until the end, and what a signal stopped was stopped by it.
      if (lease.live) expect(row!.cause).toBe('closed');
      if (lease.stopped) expect(row!.cause).toBe('signal');
    }
    // An approval of one use covers one credential.
    const used = task.approvals.filter(({ state }) => state === 'used').length;
    const byApproval = new Set(
      task.leases.filter(({ access }) => access === 'api:write').map(({ leaseId }) => leaseId),
    );
    expect(byApproval.size).toBe(used);
  }
  for (const row of rows) {
    // Invariant 5: every lease reached an outcome, and what nobody received was given up.
    expect(row.state).toBe('settled');
    expect(row.outcome).not.toBe('irrevocable');
    if (!handedOut.has(row.lease_id)) expect(row.issued === 0 || row.abandoned > 0).toBe(true);
    // A token that never left the broker is nobody's: the feed has those that did.
    // Once it has run out, the feed may forget it.
    if (row.provider === 'jwt' && row.outcome === 'revoked' && handedOut.has(row.lease_id) && !row.is_over)
      expect(row.on_feed).toBe(true);
  }
  // Invariant 4: one request, one lease.
  expect(new Set(rows.map((row) => `${row.task_id} ${row.request_id}`)).size).toBe(rows.length);

  // Invariant 3: a child has at most what its parent has, does not outlive it, and is closed with it.
  const wide = await world.database.query(
    `SELECT c.task_id FROM tasks c JOIN tasks p ON p.tenant = c.tenant AND p.task_id = c.parent_task_id
     WHERE c.task_id = ANY($1) AND (NOT p.tools @> c.tools OR c.closed_at > p.closed_at + interval '2 seconds')`,
    [ids],
  );
  expect(wide.rows).toEqual([]);

  const roles = rows.filter(({ provider }) => provider === 'postgres').map(({ handle }) => handle.split('/')[1]!);
  const left = await world.target.query('SELECT rolname FROM pg_roles WHERE rolname = ANY($1)', [roles]);
  expect(left.rows).toEqual([]);

  // Invariant 6: no secret in what is kept.
  const secrets = model.tasks.flatMap((task) => task.leases.flatMap(({ secrets: known }) => known));
  const kept = await world.database.query<{ text: string }>(
    `SELECT string_agg(e::text, '') AS text FROM audit_events e WHERE e.task_id = ANY($1)
     UNION ALL SELECT string_agg(l::text, '') FROM leases l WHERE l.task_id = ANY($1)`,
    [ids],
  );
  const all = kept.rows.map(({ text }) => text ?? '').join('');
  for (const secret of secrets) expect(all.includes(secret)).toBe(false);
}
