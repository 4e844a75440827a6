import pg from 'pg';
import type { Millis } from '../../domain/time.ts';
import { sqlstateOf } from './errors.ts';
import { render } from './statements.ts';
import type { StatementTemplate, StatementValues } from './statements.ts';
import type { Connection } from './target.ts';

const duplicateObject = '42710';
const uniqueViolation = '23505';

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
): Promise<void> {
  const guard = lateGuard(connection.targetTime(deadline));
  const create = [...statements.map((template) => render(template, values)), guard].join(';\n');
  try {
    await connection.query(create);
  } catch (error) {
    const code = sqlstateOf(error);
    // Two at once for one lease: the loser meets the unique index instead of the name.
    if (code !== duplicateObject && code !== uniqueViolation) throw error;
    const role = pg.escapeIdentifier(values.role);
    const password = pg.escapeLiteral(values.password);
    await connection.query(
      `ALTER ROLE ${role} PASSWORD ${password} VALID UNTIL ${pg.escapeLiteral(values.expires)};\n${guard}`,
    );
  }
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
