import type pg from 'pg';
import type { Ending, OpenLease } from '../domain/reevaluation.ts';
import type { SignalReevaluationStore, SignalWork, Stopped } from '../domain/signals/reevaluation.ts';
import type { SubjectKind } from '../domain/signals/model.ts';
import type { Instant } from '../domain/time.ts';
import { transaction } from './pool.ts';
import { withTasks } from './reevaluation-store.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest } from './rows.ts';
import { channel } from './wake.ts';

type Row = Record<string, unknown>;

interface Entry {
  tenant: string;
  position: string;
  subject_kind: SubjectKind;
  subject: string;
  pass: number;
  began_at: Date;
  cursor_lease: string;
}

/** All entries about one subject: one look at its leases serves them all. */
interface Group {
  tenant: string;
  kind: SubjectKind;
  subject: string;
  entries: Entry[];
  /** The least of its entries' cursors. */
  cursor: string;
}

export function createSignalReevaluationStore(pool: pg.Pool): SignalReevaluationStore {
  return { step: (work, look, now, judge) => step(pool, work, look, now, judge) };
}

async function step(
  pool: pg.Pool,
  work: SignalWork,
  look: boolean,
  now: Instant,
  judge: (open: readonly OpenLease[]) => Promise<readonly Ending[]>,
) {
  return await transaction(pool, async (client) => {
    const { rows: entries } = await client.query<Entry>({
      name: 'claim-signal-reevaluations',
      // Index signal_reevaluations_due. What has not been looked at yet goes before what is looked at once more.
      text: `SELECT tenant, position, subject_kind, subject, pass, began_at, cursor_lease FROM signal_reevaluations
        WHERE due_at <= clock_timestamp() ORDER BY pass > 0, due_at LIMIT $1 FOR UPDATE SKIP LOCKED`,
      values: [work.entries],
    });
    if (entries.length === 0) return undefined;
    const groups = groupsOf(entries);
    const each = Math.max(1, Math.floor(work.leases / groups.length));
    const seen = new Map<Group, string[]>();
    const rows: Row[] = [];
    if (look) {
      for (const [group, leases] of await leasesOf(client, groups, each)) {
        seen.set(
          group,
          leases.map((row) => row.lease_id as string),
        );
        rows.push(...leases);
      }
    }
    const ended: Ending[] = [];
    for (const [tenant, own] of byTenant(rows)) {
      const named = await judge(await withTasks(client, tenant, own));
      if (named.length > 0) ended.push(...(await end(client, tenant, named, now)));
    }
    await advance(client, work, groups, seen, each);
    const more = entries.length === work.entries || [...seen.values()].some(({ length }) => length === each);
    return {
      looked: rows.length,
      stopped: ended.map((one): Stopped => ({ ...one, sinceSignal: age(groups, one, now) })),
      more,
    };
  });
}

function groupsOf(entries: readonly Entry[]): Group[] {
  const groups = new Map<string, Group>();
  for (const entry of entries) {
    const { tenant, subject_kind: kind, subject, cursor_lease: cursor } = entry;
    const key = `${tenant}\n${kind}\n${subject}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { tenant, kind, subject, entries: [entry], cursor });
    else {
      group.entries.push(entry);
      if (cursor < group.cursor) group.cursor = cursor;
    }
  }
  return [...groups.values()];
}

/**
 * Where the open leases of a subject are: those of its open tasks, and of the tasks below them, which are decided by what is
 * said of any task above. Tables are entered by the subject's own index (tasks_open_of_agent, tasks_open_of_workload, the
 * primary key), then tasks_children, then the leases by task, once for each (OFFSET 0 keeps it so): the task of an open lease
 * is open. A tool has leases in any task, so that all that are open are walked (leases_due).
 */
const ofTasks = (subject: string) => `(
  SELECT l.* FROM (
    WITH RECURSIVE below AS (
      SELECT t.task_id FROM tasks t WHERE t.tenant = s.tenant AND t.${subject} = s.subject AND t.state = 'open'
      UNION
      SELECT c.task_id FROM below b JOIN tasks c ON c.tenant = s.tenant AND c.parent_task_id = b.task_id AND c.state = 'open'
    )
    SELECT task_id FROM below
  ) t CROSS JOIN LATERAL (
    SELECT l.* FROM leases l
    WHERE l.tenant = s.tenant AND l.task_id = t.task_id AND l.state = 'active' AND l.lease_id > s.after OFFSET 0
  ) l OFFSET 0)`;
const sources: Readonly<Record<SubjectKind, string>> = {
  agent: ofTasks('agent'),
  workload: ofTasks('agent_workload'),
  task: ofTasks('task_id'),
  tool: `(SELECT l.* FROM leases l
    WHERE l.state <> 'settled' AND l.state = 'active' AND l.tenant = s.tenant AND l.tool = s.subject AND l.lease_id > s.after
    OFFSET 0)`,
};

/** Not locked: a renewal or a close is never held up, and what becomes of a row meanwhile is seen when it is written. */
async function leasesOf(client: pg.PoolClient, groups: readonly Group[], each: number): Promise<Map<Group, Row[]>> {
  const found = new Map<Group, Row[]>();
  for (const kind of Object.keys(sources) as SubjectKind[]) {
    const own = groups.filter((group) => group.kind === kind);
    if (own.length === 0) continue;
    const { rows } = await client.query<Row & { place: string }>({
      name: `signalled-leases-of-${kind}`,
      text: `SELECT s.place, l.* FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
          AS s(tenant, subject, after, place)
        CROSS JOIN LATERAL (SELECT l.* FROM ${sources[kind]} l ORDER BY l.lease_id LIMIT $4) l
        ORDER BY s.place, l.lease_id`,
      values: [
        own.map(({ tenant }) => tenant),
        own.map(({ subject }) => subject),
        own.map(({ cursor }) => cursor),
        each,
      ],
    });
    for (const group of own) found.set(group, []);
    for (const row of rows) found.get(own[Number(row.place) - 1]!)!.push(row);
  }
  return found;
}

function byTenant(rows: readonly Row[]): Map<string, Row[]> {
  const groups = new Map<string, Map<string, Row>>();
  for (const row of rows) {
    const tenant = row.tenant as string;
    const own = groups.get(tenant) ?? new Map<string, Row>();
    groups.set(tenant, own);
    // One lease may be found by its agent and by its workload.
    own.set(row.lease_id as string, row);
  }
  return new Map([...groups].map(([tenant, own]) => [tenant, [...own.values()]]));
}

/** Marks for settlement what is still active; a self-contained token (no handle) is on the feed with the commit. */
async function end(
  client: pg.PoolClient,
  tenant: string,
  endings: readonly Ending[],
  now: Instant,
): Promise<readonly Ending[]> {
  const { rows } = await client.query<{ lease_id: string }>({
    name: 'stop-leases',
    text: `WITH named AS (
        SELECT lease_id FROM leases WHERE tenant = $1 AND lease_id = ANY($2) AND state = 'active'
        ORDER BY lease_id FOR UPDATE SKIP LOCKED
      ), stopped AS (
        UPDATE leases l SET state = 'settling', settle_at = LEAST(l.settle_at, $3), settle_cause = 'signal'
        FROM named n WHERE l.tenant = $1 AND l.lease_id = n.lease_id
        RETURNING l.lease_id, l.task_id, l.handle, l.expires_at
      ), feed AS (
        INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at)
        SELECT $1, lease_id, clock_timestamp(), expires_at FROM stopped WHERE handle = '' AND expires_at > $3
      ), woken AS (
        SELECT pg_notify('${channel}', $1 || ' ' || task_id) FROM (SELECT DISTINCT task_id FROM stopped) t
      ), logged AS (
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(4)} WHERE e.lease_id IN (SELECT s.lease_id FROM stopped s)
      )
      SELECT lease_id, (SELECT count(*) FROM woken) AS woken FROM stopped`,
    values: [
      tenant,
      endings.map(({ lease }) => lease.leaseId),
      new Date(now),
      ...auditColumns(endings.map(({ event }) => event)),
    ],
  });
  const stopped = new Set(rows.map(({ lease_id: id }) => id));
  return endings.filter(({ lease }) => stopped.has(lease.leaseId));
}

/** Entries whose subject has more leases go on behind the last one seen; the others to their next pass, or away. */
async function advance(
  client: pg.PoolClient,
  work: SignalWork,
  groups: readonly Group[],
  seen: ReadonlyMap<Group, readonly string[]>,
  each: number,
): Promise<void> {
  const next: { entry: Entry; pass: number; wait: number; cursor: string }[] = [];
  const over: Entry[] = [];
  for (const group of groups) {
    const ids = seen.get(group) ?? [];
    const last = ids.length < each ? undefined : ids.at(-1)!;
    for (const entry of group.entries) {
      const pass = entry.pass + 1;
      const wait = work.passes[pass];
      if (last !== undefined) {
        const cursor = entry.cursor_lease > last ? entry.cursor_lease : last;
        next.push({ entry, pass: entry.pass, wait: work.passes[entry.pass] ?? 0, cursor });
      } else if (wait === undefined) over.push(entry);
      else next.push({ entry, pass, wait, cursor: '' });
    }
  }
  if (over.length > 0) {
    await client.query({
      name: 'end-signal-reevaluations',
      text: `DELETE FROM signal_reevaluations r USING unnest($1::text[], $2::int8[]) AS o(tenant, position)
        WHERE r.tenant = o.tenant AND r.position = o.position`,
      values: [over.map(({ tenant }) => tenant), over.map(({ position }) => position)],
    });
  }
  if (next.length === 0) return;
  await client.query({
    name: 'advance-signal-reevaluations',
    text: `UPDATE signal_reevaluations r
      SET pass = n.pass, cursor_lease = n.cursor, due_at = r.began_at + n.wait * interval '1 millisecond'
      FROM unnest($1::text[], $2::int8[], $3::int4[], $4::float8[], $5::text[]) AS n(tenant, position, pass, wait, cursor)
      WHERE r.tenant = n.tenant AND r.position = n.position`,
    values: [
      next.map(({ entry }) => entry.tenant),
      next.map(({ entry }) => entry.position),
      next.map(({ pass }) => pass),
      next.map(({ wait }) => wait),
      next.map(({ cursor }) => cursor),
    ],
  });
}

/** How long ago the newest signal came that was looked at for the first time together with this lease. */
function age(groups: readonly Group[], { lease }: Ending, now: Instant): number {
  const mine = groups.filter(({ tenant, kind, subject }) => {
    if (tenant !== lease.tenant) return false;
    return kind === 'task' || { agent: lease.agent, workload: lease.workload, tool: lease.tool }[kind] === subject;
  });
  const began = Math.max(...mine.flatMap(({ entries }) => entries.map(({ began_at: at }) => at.getTime())));
  return Number.isFinite(began) ? Math.max(0, now - began) : 0;
}
