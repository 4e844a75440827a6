import pg from 'pg';
import type { Millis } from '../../domain/time.ts';
import { sqlstateOf } from './errors.ts';
import { grantsMembership, render } from './statements.ts';
import type { StatementTemplate, StatementValues } from './statements.ts';
import type { Connection } from './target.ts';

const duplicateObject = '42710';
const uniqueViolation = '23505';
/** "tuple concurrently updated" has no code of its own. */
const concurrentlyUpdated = 'XX000';
const maxAttempts = 10;

/**
 * Makes the login in one round trip and one transaction: statements sent in one message commit or fail together. When
 * the role exists (a retry for the same lease), its password is replaced instead, without LOGIN: a role that is being
 * revoked meanwhile stays shut. Nothing is committed after `deadline` (of our monotonic clock).
 */
export async function issueLogin(
  connection: Connection,
  statements: readonly StatementTemplate[],
  deadline: Millis,
  values: StatementValues,
  grantor: string | undefined,
): Promise<void> {
  const guard = lateGuard(connection.targetTime(deadline));
  const create = [
    ...statements.map((template) =>
      asGrantor(render(template, values), grantsMembership(template) ? grantor : undefined),
    ),
    guard,
  ].join(';\n');
  try {
    await connection.query(create);
  } catch (error) {
    const code = sqlstateOf(error);
    // Two at once for one lease: the loser meets the unique index instead of the name.
    if (code !== duplicateObject && code !== uniqueViolation) throw error;
    await replaceSecret(connection, deadline, values);
  }
}

/** A new password for a role that exists; where there is none (it was revoked meanwhile) this makes none. */
export async function replaceSecret(connection: Connection, deadline: Millis, values: StatementValues): Promise<void> {
  const role = pg.escapeIdentifier(values.role);
  const password = pg.escapeLiteral(values.password);
  const guard = lateGuard(connection.targetTime(deadline));
  await replacePassword(
    connection,
    `ALTER ROLE ${role} PASSWORD ${password} VALID UNTIL ${pg.escapeLiteral(values.expires)};\n${guard}`,
  );
}

/** Two retries at once for one lease: PostgreSQL fails the second instead of letting it wait for the first. */
async function replacePassword(connection: Connection, sql: string): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await connection.query(sql);
      return;
    } catch (error) {
      if (sqlstateOf(error) !== concurrentlyUpdated || attempt >= maxAttempts) throw error;
    }
  }
}

/** The role is taken on for this statement alone: what follows, and what uses the connection next, is the login's own. */
export function asGrantor(sql: string, grantor: string | undefined): string {
  return grantor === undefined ? sql : `SET LOCAL ROLE ${pg.escapeIdentifier(grantor)};\n${sql};\nSET LOCAL ROLE NONE`;
}

/**
 * The last statement before the commit. A message can lie in a broken network's buffers for minutes after we gave up on
 * it, and a statement can wait for a lock. By the target's own clock the transaction then fails (division by zero)
 * instead of making a login that the settler has already looked for and not found.
 */
function lateGuard(latest: Date): string {
  const at = pg.escapeLiteral(latest.toISOString());
  return `SELECT 1 / (clock_timestamp() < ${at}::timestamptz)::int`;
}
