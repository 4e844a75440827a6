import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { sqlstateOf, TargetError } from './errors.ts';
import { asGrantor } from './issue.ts';
import type { Connection, PostgresTarget, TargetPool } from './target.ts';

type HandOver = Pick<PostgresTarget, 'reassignTo' | 'grantor'>;

/** What another replica that revokes the same role causes here: begin again and look. */
const concurrent = new Set(['42704', '40001', '40P01', '23505', 'XX000']);
const maxAttempts = 20;
const terminateWait = 2_000;

/**
 * Takes a login away in the order in which nothing can come back: shut (committed), sessions ended, what it owns handed
 * over, its grants and the role dropped; then a last look. Any step may have been done before, by another replica or
 * before a crash.
 */
export async function revokeLogin(
  pool: TargetPool,
  role: string,
  handOver: HandOver,
  signal: AbortSignal,
): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await pool.use(signal, (connection) => revokeOnce(connection, role, handOver));
      return;
    } catch (error) {
      const code = sqlstateOf(error);
      if (code === undefined || !concurrent.has(code) || attempt >= maxAttempts) throw error;
      await sleep(10 * attempt, undefined, { signal });
    }
  }
}

export async function roleExists({ query }: Connection, role: string): Promise<boolean> {
  const { rowCount } = await query('SELECT FROM pg_roles WHERE rolname = $1', [role]);
  return rowCount !== 0;
}

async function revokeOnce(connection: Connection, role: string, handOver: HandOver): Promise<void> {
  const { query } = connection;
  const found = await query(
    `SELECT r.oid::text AS oid, r.rolcanlogin AS open, pg_has_role(current_user, r.oid, 'USAGE') AS ours
       FROM pg_roles AS r WHERE r.rolname = $1`,
    [role],
  );
  const state = found.rows[0] as { oid: string; open: boolean; ours: boolean } | undefined;
  if (state === undefined) return;
  const name = pg.escapeIdentifier(role);

  if (state.open) await query(`ALTER ROLE ${name} NOLOGIN PASSWORD NULL`);
  // Whoever created a role may administer it; to end its sessions and hand over what it owns one has to be a member.
  if (!state.ours) await query(`GRANT ${name} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE`);
  await endSessions(connection, role, state.oid);
  await refusePreparedTransactions(connection, role);
  await dropRole(connection, role, state.oid, handOver);
  // A session that had passed the login check when the role was shut shows up only now.
  await endSessions(connection, role, state.oid);
  if (await roleExists(connection, role)) throw new TargetError(`${role} is there again after it was dropped`);
}

/** By the role's number: it also finds sessions of a role that is dropped already. */
async function endSessions({ query }: Connection, role: string, oid: string): Promise<void> {
  const { rows } = await query(
    `SELECT pid, pg_terminate_backend(pid, ${terminateWait}) AS ended FROM pg_stat_activity WHERE usesysid = $1::oid`,
    [oid],
  );
  if (rows.length === 0) return;
  const left = await query('SELECT pid FROM pg_stat_activity WHERE usesysid = $1::oid LIMIT 10', [oid]);
  if (left.rows.length === 0) return;
  const pids = (left.rows as { pid: number }[]).map(({ pid }) => pid).join(', ');
  throw new TargetError(
    `the login is shut, but its sessions (pid ${pids}) do not end: a superuser of the target has to end them; the broker tries again`,
  );
}

/** A prepared transaction outlives its session and holds its locks until someone ends it. Only its owner or a superuser may. */
async function refusePreparedTransactions({ query }: Connection, role: string): Promise<void> {
  const { rows } = await query('SELECT gid, database FROM pg_prepared_xacts WHERE owner = $1 LIMIT 5', [role]);
  const prepared = rows as { gid: string; database: string }[];
  if (prepared.length === 0) return;
  const list = prepared.map(({ gid, database }) => `${pg.escapeLiteral(gid)} in database ${database}`).join(', ');
  throw new TargetError(
    `the login is shut and its sessions are gone, but it left prepared transactions: a superuser of the target has to run ROLLBACK PREPARED ${list.slice(0, 300)}; the broker tries again`,
  );
}

async function dropRole({ query }: Connection, role: string, oid: string, handOver: HandOver): Promise<void> {
  const name = pg.escapeIdentifier(role);
  await query('BEGIN');
  try {
    const owns = await query(
      `SELECT FROM pg_shdepend
        WHERE refclassid = 'pg_authid'::regclass AND refobjid = $1::oid AND deptype = 'o'
          AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) LIMIT 1`,
      [oid],
    );
    if (owns.rowCount !== 0) await reassign(query, name, oid, handOver);
    await query(`DROP OWNED BY ${name}`);
    await query(`DROP ROLE ${name}`);
    await query('COMMIT');
  } catch (error) {
    // The connection is thrown away after a failure, and the transaction with it.
    throw explainDrop(error, role);
  }
}

async function reassign(
  query: Connection['query'],
  name: string,
  oid: string,
  { reassignTo, grantor }: HandOver,
): Promise<void> {
  // Its first group by name, unless configured; a login without a group leaves what it owns to the broker's own role.
  const { rows } = await query(
    `SELECT rolname::text AS owner, pg_has_role(current_user, oid, 'USAGE') AND pg_has_role(current_user, oid, 'SET') AS ours
       FROM pg_roles
      WHERE CASE WHEN $2::text IS NULL THEN oid IN (SELECT roleid FROM pg_auth_members WHERE member = $1::oid)
                 ELSE rolname = $2 END
      ORDER BY rolname LIMIT 1`,
    [oid, reassignTo ?? null],
  );
  const found = rows[0] as { owner: string; ours: boolean } | undefined;
  if (found === undefined && reassignTo !== undefined) {
    throw new TargetError(
      `there is no role ${reassignTo} (reassignTo) to hand over to: create it or correct the target's configuration`,
    );
  }
  const owner = found === undefined ? 'CURRENT_USER' : pg.escapeIdentifier(found.owner);
  const borrow = found !== undefined && !found.ours;
  // Handing over needs membership in both roles. Taken for this transaction only: the broker's login does not keep the
  // group's privileges. Grants of one role to one member collide, so one transaction at a time gets here.
  if (borrow) await query(asGrantor(`GRANT ${owner} TO SESSION_USER WITH INHERIT TRUE, SET TRUE`, grantor));
  await query(`REASSIGN OWNED BY ${name} TO ${owner}`);
  if (borrow) await query(asGrantor(`REVOKE ${owner} FROM SESSION_USER GRANTED BY CURRENT_USER`, grantor));
}

function explainDrop(error: unknown, role: string): unknown {
  const code = sqlstateOf(error);
  switch (code) {
    case '2BP01': {
      // The server lists what still depends on the role: objects of another database cannot be reached from this one.
      const detail = String((error as { detail?: unknown }).detail ?? '')
        .replaceAll('\n', '; ')
        .slice(0, 300);
      return new TargetError(
        `the login is shut and its sessions are gone, but other objects depend on the role (${detail}): in each database named there run REASSIGN OWNED BY and DROP OWNED BY ${role}; the broker tries again`,
        code,
      );
    }
    case '55P03':
      return new TargetError(
        'the login is shut and its sessions are gone, but other sessions hold locks on what it owns: end them, or wait; the broker tries again',
        code,
      );
    case '42501':
      return new TargetError(
        `the login is shut and its sessions are gone, but the broker's login may not hand over or drop what it owns (${error instanceof Error ? error.message.slice(0, 200) : ''}): grant it ADMIN on the owning group role, and that role CREATE on the schema; the broker tries again`,
        code,
      );
    default:
      return error;
  }
}
