import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { sqlstateOf, TargetError } from './errors.ts';
import { asGrantor } from './issue.ts';
import type { Connection, PostgresTarget, TargetPool } from './target.ts';

type HandOver = Pick<PostgresTarget, 'reassignTo' | 'grantor'>;

/** What another replica that revokes the same role causes here: begin again and look. */
const undefinedObject = '42704';
/** Or what came to hang on it between a look and the drop: a session, an object. */
const changed = ['22012', '2BP01'];
const concurrent = new Set([undefinedObject, '40001', '40P01', '23505', 'XX000', ...changed]);
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

/** What hangs on a login that is shut, in the order in which it was looked at. */
interface Seen {
  oid: string;
  sessions: number[];
  prepared: { gid: string; database: string }[];
  /** Objects of the target's own database, or of the whole cluster. */
  owns: boolean;
  /** Nothing anywhere but memberships, which go with the role. */
  bare: boolean;
}

/**
 * Two messages and two commits where nothing hangs on it. To shut a role and to drop it PostgreSQL searches all memberships
 * of the broker's login, which costs more than all else here; the grant that ends sessions and hands over costs one more
 * search, so it is made only where there is something to end or to hand over.
 */
async function revokeOnce(connection: Connection, role: string, handOver: HandOver): Promise<void> {
  let seen = await shut(connection, role);
  if (seen !== undefined && seen.sessions.length > 0) seen = await endSessions(connection, role, seen.oid);
  if (seen === undefined) return;
  refusePreparedTransactions(seen);
  const left = seen.bare
    ? await drop(connection, role, seen.oid)
    : await handOverAndDrop(connection, role, seen, handOver);
  // A session that had passed the login check when the role was shut shows up only now.
  if (left.sessions.length > 0) await endLateSessions(connection, seen.oid);
  if (left.back) throw new TargetError(`${role} is there again after it was dropped`);
}

/** Committed before the look begins. Undefined: there is no such role (any more). */
async function shut(connection: Connection, role: string): Promise<Seen | undefined> {
  const name = pg.escapeIdentifier(role);
  try {
    return await looked(connection, role, `BEGIN;\nALTER ROLE ${name} NOLOGIN PASSWORD NULL;\nCOMMIT`);
  } catch (error) {
    if (sqlstateOf(error) !== undefinedObject) throw error;
    if (await roleExists(connection, role)) throw error;
    return undefined;
  }
}

/**
 * Does `first`, then looks, in one message. Each statement sees what was committed before it: what a session prepared before
 * it was seen to be gone is found.
 */
async function looked({ query }: Connection, role: string, first: string): Promise<Seen | undefined> {
  const of = pg.escapeLiteral(role);
  // pg_stat_activity without its joins, which read all roles.
  const results = await messages(
    query,
    `${first};
     SELECT r.oid::text AS oid, ARRAY(SELECT a.pid FROM pg_stat_get_activity(NULL) a WHERE a.usesysid = r.oid) AS sessions
       FROM pg_roles r WHERE r.rolname = ${of};
     SELECT (SELECT json_agg(p) FROM (
           SELECT gid, database FROM pg_prepared_xacts WHERE owner = ${of} LIMIT 5) p) AS prepared,
         EXISTS (SELECT FROM pg_shdepend d WHERE ${dependsOn} AND d.deptype = 'o'
           AND d.dbid IN (0, (SELECT b.oid FROM pg_database b WHERE b.datname = current_database()))) AS owns,
         NOT EXISTS (SELECT FROM pg_shdepend d WHERE ${dependsOn} AND d.classid <> 'pg_auth_members'::regclass)
           AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.grantor = r.oid) AS bare
       FROM pg_roles r WHERE r.rolname = ${of}`,
  );
  const [found, hangs] = results.slice(-2).map(({ rows }) => (rows as unknown[])[0]) as [
    Pick<Seen, 'oid' | 'sessions'> | undefined,
    { prepared: Seen['prepared'] | null; owns: boolean; bare: boolean } | undefined,
  ];
  if (found === undefined || hangs === undefined) return undefined;
  return { ...found, ...hangs, prepared: hangs.prepared ?? [] };
}

/** Objects that depend on the role, of `pg_shdepend d, pg_roles r`. */
const dependsOn = `d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid`;

/** Whoever created a role may administer it; to end its sessions one has to be a member. */
async function endSessions(connection: Connection, role: string, oid: string): Promise<Seen | undefined> {
  const seen = await looked(connection, role, `BEGIN;\n${joinRole(role)};\nCOMMIT;\n${terminate(oid)}`);
  if (seen !== undefined && seen.sessions.length > 0) throw stay(seen.sessions);
  return seen;
}

/** By the role's number: sessions of a role that is dropped already. */
async function endLateSessions({ query }: Connection, oid: string): Promise<void> {
  const results = await messages(query, `${terminate(oid)};\nSELECT ARRAY(${sessionsOf(oid)}) AS sessions`);
  const { sessions } = (results.at(-1)!.rows as { sessions: number[] }[])[0]!;
  if (sessions.length > 0) throw stay(sessions);
}

const joinRole = (role: string) => `GRANT ${pg.escapeIdentifier(role)} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE`;

const sessionsOf = (oid: string) =>
  `SELECT a.pid FROM pg_stat_get_activity(NULL) a WHERE a.usesysid = ${pg.escapeLiteral(oid)}::oid`;

/** A transaction sees the sessions as they were when it first looked, unless it is told to look anew. */
const terminate = (oid: string) =>
  `SELECT pg_terminate_backend(s.pid, ${terminateWait}) FROM (${sessionsOf(oid)}) s; SELECT pg_stat_clear_snapshot()`;

function stay(sessions: readonly number[]): TargetError {
  const pids = sessions.slice(0, 10).join(', ');
  return new TargetError(
    `the login is shut, but its sessions (pid ${pids}) do not end: a superuser of the target has to end them; the broker tries again`,
  );
}

/** A prepared transaction outlives its session and holds its locks until someone ends it. Only its owner or a superuser may. */
function refusePreparedTransactions({ prepared }: Seen): void {
  if (prepared.length === 0) return;
  const list = prepared.map(({ gid, database }) => `${pg.escapeLiteral(gid)} in database ${database}`).join(', ');
  throw new TargetError(
    `the login is shut and its sessions are gone, but it left prepared transactions: a superuser of the target has to run ROLLBACK PREPARED ${list.slice(0, 300)}; the broker tries again`,
  );
}

/** What is left after the drop. */
interface Left {
  back: boolean;
  sessions: number[];
}

/** Something that came to hang on it meanwhile makes the server refuse; the next attempt sees it. */
async function drop({ query }: Connection, role: string, oid: string): Promise<Left> {
  return leftOf(await messages(query, dropping(role, oid)));
}

/**
 * One transaction, and a look once it is committed. It fails (division by zero) where a session has shown up by now: as long
 * as the role exists its sessions can be ended.
 */
function dropping(role: string, oid: string, first = ''): string {
  const name = pg.escapeIdentifier(role);
  return `BEGIN;
    ${first}DROP ROLE ${name};
    SELECT 1 / (NOT EXISTS (${sessionsOf(oid)}))::int;
    COMMIT;
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = ${pg.escapeLiteral(role)}) AS back, ARRAY(${sessionsOf(oid)}) AS sessions`;
}

const leftOf = (results: pg.QueryResult[]): Left => (results.at(-1)!.rows as Left[])[0]!;

async function handOverAndDrop(
  { query }: Connection,
  role: string,
  { oid, owns }: Seen,
  handOver: HandOver,
): Promise<Left> {
  const name = pg.escapeIdentifier(role);
  try {
    const reassign = owns ? await reassigning(query, name, oid, handOver) : '';
    return leftOf(
      await messages(query, dropping(role, oid, `${joinRole(role)};\n${reassign}DROP OWNED BY ${name};\n`)),
    );
  } catch (error) {
    // The connection is thrown away after a failure, and the transaction with it.
    throw explainDrop(error, role);
  }
}

async function reassigning(
  query: Connection['query'],
  name: string,
  oid: string,
  { reassignTo, grantor }: HandOver,
): Promise<string> {
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
  const statements = [`REASSIGN OWNED BY ${name} TO ${owner}`];
  if (found !== undefined && !found.ours) {
    // Handing over needs membership in both roles. Taken for this transaction only: the broker's login does not keep the
    // group's privileges. Grants of one role to one member collide, so one transaction at a time gets here.
    statements.unshift(asGrantor(`GRANT ${owner} TO SESSION_USER WITH INHERIT TRUE, SET TRUE`, grantor));
    statements.push(asGrantor(`REVOKE ${owner} FROM SESSION_USER GRANTED BY CURRENT_USER`, grantor));
  }
  return `${statements.join(';\n')};\n`;
}

/** Several statements in one message have several results. A failed one may leave its transaction behind. */
async function messages(query: Connection['query'], sql: string): Promise<pg.QueryResult[]> {
  try {
    return (await query(sql)) as unknown as pg.QueryResult[];
  } catch (error) {
    await query('ROLLBACK').catch(() => undefined);
    throw error;
  }
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
