import type pg from 'pg';
import type { DueToken, TaskToken, TaskTokenStore } from '../domain/task-tokens.ts';
import type { Instant, Millis } from '../domain/time.ts';
import { guarded } from './pool.ts';
import { notifyTask } from './wake.ts';

interface Row {
  tenant: string;
  server: string;
  accessor: string;
  task_id: string;
  expires_at: Date;
}

export function createTaskTokenStore(pool: pg.Pool): TaskTokenStore {
  return {
    insert: (token, dueAt) =>
      guarded(async () => {
        await pool.query({
          name: 'insert-task-token',
          text: `INSERT INTO task_tokens (tenant, server, accessor, task_id, expires_at, due_at) VALUES ($1, $2, $3, $4, $5, $6)`,
          values: [
            token.tenant,
            token.server,
            token.accessor,
            token.taskId,
            new Date(token.expiresAt),
            new Date(dueAt),
          ],
        });
      }),

    claim: (servers, now, claimFor, limit) => claim(pool, servers, now, claimFor, limit),

    keep: (tokens, dueAt) =>
      guarded(async () => {
        if (tokens.length === 0) return;
        await pool.query({
          name: 'keep-task-tokens',
          text: `UPDATE task_tokens k SET due_at = LEAST(to_timestamp(i.due_at / 1000), k.expires_at + interval '1 second')
            FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[]) AS i(tenant, server, accessor, due_at)
            WHERE k.tenant = i.tenant AND k.server = i.server AND k.accessor = i.accessor`,
          values: [
            tokens.map(({ tenant }) => tenant),
            tokens.map(({ server }) => server),
            tokens.map(({ accessor }) => accessor),
            dueAt,
          ],
        });
      }),

    hanging: ({ server, accessor }) =>
      guarded(async () => {
        const { rows } = await pool.query<{ attempted: boolean; leases: number }>({
          name: 'hanging-on-task-token',
          text: `SELECT count(*) FILTER (WHERE l.state = 'pending') > 0 AS attempted, count(*)::int AS leases
            FROM task_tokens k JOIN leases l ON ${hangsOnIt}
            WHERE k.server = $1 AND k.accessor = $2`,
          values: [server, accessor],
        });
        return rows[0]!;
      }),

    gone: (token, lost, now) => gone(pool, token, lost, now),
    retire: (token, now) => retire(pool, token, now),

    known: (server, named) =>
      guarded(async () => {
        if (named.length === 0) return new Set<string>();
        // Index leases_at_vault, entered once for each name.
        const { rows } = await pool.query<{ name: string }>({
          name: 'known-at-vault',
          text: `SELECT i.name FROM unnest($2::text[]) AS i(name)
            WHERE EXISTS (
              SELECT FROM leases l
              WHERE l.provider = 'vault' AND split_part(split_part(l.handle, '=', 2), ' ', 1) = i.name
                AND split_part(l.handle, '/', 1) = $1)`,
          values: [server, named],
        });
        return new Set(rows.map(({ name }) => name));
      }),

    attempting: (server, path, until, now) =>
      guarded(async () => {
        // Index leases_due: an attempt is due within moments.
        const { rows } = await pool.query<{ attempting: boolean }>({
          name: 'attempting-at-vault',
          text: `SELECT EXISTS (
              SELECT FROM leases
              WHERE state = 'pending' AND settle_at <= $4 AND provider = 'vault' AND split_part(handle, '/', 1) = $1
                AND right(handle, length($2) + 1) = ':' || $2 AND issued_at <= $3) AS attempting`,
          values: [server, path, new Date(until), new Date(now + 300_000)],
        });
        return rows[0]!.attempting;
      }),

    lost: (server, path, now) =>
      guarded(async () => {
        // Index leases_due: each is looked at again within moments.
        const { rows } = await pool.query<{ lost: number }>({
          name: 'lost-at-vault',
          text: `SELECT count(*)::int AS lost FROM leases
            WHERE state = 'settling' AND settle_at <= $3 AND provider = 'vault' AND split_part(handle, '/', 1) = $1
              AND right(handle, length($2) + 1) = ':' || $2`,
          values: [server, path, new Date(now + 300_000)],
        });
        return rows[0]!.lost;
      }),
  };
}

/** A lease of this token's task that has the token in its handle, of `task_tokens k`. Index: the leases of a task. */
const hangsOnIt = `l.tenant = k.tenant AND l.task_id = k.task_id AND l.state <> 'settled'
  AND split_part(l.handle, '/', 1) = k.server AND position(k.accessor IN l.handle) > 0`;

async function claim(
  pool: pg.Pool,
  servers: readonly string[],
  now: Instant,
  claimFor: Millis,
  limit: number,
): Promise<DueToken[]> {
  return await guarded(async () => {
    const { rows } = await pool.query<Row & { ended: boolean }>({
      name: 'claim-task-tokens',
      // Index task_tokens_due. A token outlives its task only until somebody looks.
      text: `UPDATE task_tokens k SET due_at = $2
        FROM tasks t
        WHERE (k.tenant, k.server, k.accessor) IN (
            SELECT d.tenant, d.server, d.accessor FROM task_tokens d
            WHERE d.due_at <= $1 AND d.server = ANY($3)
            ORDER BY d.due_at LIMIT $4 FOR UPDATE SKIP LOCKED)
          AND t.tenant = k.tenant AND t.task_id = k.task_id
        RETURNING k.tenant, k.server, k.accessor, k.task_id, k.expires_at,
          (t.closed_at IS NOT NULL AND NOT EXISTS (SELECT FROM leases l WHERE ${hangsOnIt} AND l.state = 'pending'))
            OR (k.retired AND NOT EXISTS (SELECT FROM leases l WHERE ${hangsOnIt})) AS ended`,
      values: [new Date(now), new Date(now + claimFor), servers, limit],
    });
    return rows.map((row) => ({ ...tokenFromRow(row), wanted: row.ended ? 'ended' : 'alive' }));
  });
}

/** The row goes; what was made with a token that was wanted has gone with it, and is due. */
async function gone(
  pool: pg.Pool,
  { server, accessor }: Pick<TaskToken, 'server' | 'accessor'>,
  lost: boolean,
  now: Instant,
): Promise<number> {
  return await guarded(async () => {
    const { rows } = await pool.query<{ tenant: string; task_id: string; due: number }>(
      `WITH k AS (
        DELETE FROM task_tokens WHERE server = $1 AND accessor = $2 RETURNING *
      ), due AS (
        UPDATE leases l SET state = 'settling', settle_at = $4, settle_cause = COALESCE(l.settle_cause, 'lost')
        FROM k WHERE $3 AND l.state = 'active' AND ${hangsOnIt}
        RETURNING l.lease_id
      )
      SELECT tenant, task_id, (SELECT count(*)::int FROM due) AS due FROM k`,
      [server, accessor, lost, new Date(now)],
    );
    const [row] = rows;
    if (row === undefined) return 0;
    if (row.due > 0) await notifyTask(pool, row.tenant, row.task_id);
    return row.due;
  });
}

async function retire(
  pool: pg.Pool,
  { server, accessor }: Pick<TaskToken, 'server' | 'accessor'>,
  now: Instant,
): Promise<Instant | undefined> {
  return await guarded(async () => {
    const { rows } = await pool.query<{ until: Date | null }>(
      // A pending lease may yet become somebody's credential; one that is being settled is nobody's any more.
      `WITH k AS (
        UPDATE task_tokens SET retired = true, due_at = LEAST(due_at, $3) WHERE server = $1 AND accessor = $2 RETURNING *
      )
      SELECT max(l.expires_at) AS until FROM k JOIN leases l ON ${hangsOnIt} AND l.state IN ('pending', 'active')`,
      [server, accessor, new Date(now)],
    );
    return rows[0]?.until?.getTime();
  });
}

function tokenFromRow(row: Row): TaskToken {
  const { tenant, server, accessor, task_id: taskId, expires_at } = row;
  return { tenant, server, accessor, taskId, expiresAt: expires_at.getTime() };
}
